"""Settings of a run: frozen, strict, one docstring and unit each; YAML in, JSON Schema out."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  pydantic looks the annotation up at run time
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from densebatch.base.errors import InputError

# A patch whose means over half a cell's width span less than this share of the slide's normalised
# range holds nothing that the network would find. tests/test_skipping.py proves it on real fields:
# the faintest cell that the bundled network finds there spans 0.0337 in its own neighbourhood, and
# dimmed tissue is found down to 0.0159. Simulated glass spans 0.0044 at most.
SKIP_CONTRAST = 0.0079

# The smallest bundled model within 0.01 mean AP of the best (benchmarks/model/README.md).
DEFAULT_MODEL = "dense-small"

_RUN_ONLY = {"tile", "workers", "scheduler_address", "scheduler_file", "keep_flows"}


def _refuse_truth(value: object) -> object:
    """YAML's yes, no, on and off are no numbers, though Python would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is accepted, not a truth value")  # noqa: TRY004
    return value


def _name_channels(value: object) -> object:
    """One channel may be given without a list around it."""
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _name_version(value: object) -> object:
    """YAML reads an unquoted 0.5 as a number."""
    return str(value) if isinstance(value, float) else value


# the JSON Schema loses a limit that stands outside of "| None" or after the validator
_Number = Annotated[float, BeforeValidator(_refuse_truth)]
BackendName = Literal[
    "auto", "torch", "torch-bf16", "compile", "compile-bf16",
    "openvino", "openvino-bf16", "openvino-int8",
]  # fmt: skip
_Positive = Annotated[float, Field(gt=0), BeforeValidator(_refuse_truth)]
_Integer = Annotated[int, BeforeValidator(_refuse_truth)]
_Count = Annotated[int, Field(ge=0), BeforeValidator(_refuse_truth)]
_PositiveCount = Annotated[int, Field(gt=0), BeforeValidator(_refuse_truth)]


class SegmentSettings(BaseModel):
    """Everything that a user can decide about a segmentation.

    The first group decides the labels and is part of the run's fingerprint. The second decides
    where and how fast the work is done; labels do not depend on it, bit for bit.
    """

    # channels may be numbers in YAML; NaN compares with nothing and would drop every cell
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )

    membrane: Annotated[tuple[str, ...], BeforeValidator(_name_channels)] = Field(
        default=(),
        description="membrane or cytoplasm channels, by name or index; combined by maximum",
    )
    nuclei: str | None = Field(default=None, description="nuclear channel, by name or index")
    model: str = Field(
        default=DEFAULT_MODEL, description="bundled or fetched model, or path of a file"
    )
    pixel_size: _Positive | None = Field(
        default=None, description="um per pixel, if not the metadata's"
    )
    diameter: _Positive | None = Field(
        default=None, description="cell diameter in px; sets the scale"
    )
    flow_threshold: _Number = Field(
        default=0.4, ge=0, description="largest flow error of a cell; 0 keeps all"
    )
    cellprob_threshold: _Number = Field(default=0.0, description="foreground has a larger logit")
    min_size: _Count = Field(default=15, description="smallest cell in px")
    max_size: _PositiveCount | None = Field(
        default=None, description="largest cell in px; default from the model"
    )
    skip_background: bool = Field(
        default=True, description="do not evaluate patches without signal"
    )
    ngff: Annotated[Literal["0.4", "0.5"], BeforeValidator(_name_version)] = Field(
        default="0.5", description="OME-Zarr version of the output"
    )
    image: Literal["auto", "copy", "none"] = Field(
        default="auto",
        description="image pyramid beside the labels; auto copies unless it is OME-Zarr",
    )
    in_place: bool = Field(default=False, description="write labels into the OME-Zarr slide itself")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where the network runs"
    )
    backend: BackendName = Field(
        default="torch",
        description="what evaluates the network; auto is the fastest in a trial",
    )

    tile: _Integer = Field(default=2048, ge=64, description="side of a tracing tile in px")
    workers: _Count | None = Field(default=None, description="Dask workers; 0 runs in this process")
    scheduler_address: str | None = Field(default=None, description="running Dask scheduler")
    scheduler_file: Path | None = Field(default=None, description="its scheduler file")
    keep_flows: bool = Field(
        default=False, description="leave the flow field in OUT/work when done"
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> SegmentSettings:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is below min_size {self.min_size}")
        if self.in_place and self.image == "copy":
            raise ValueError("labels written into the slide bring no copy of its image")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether a running Dask scheduler does the work, rather than this machine."""
        return self.scheduler_address is not None or self.scheduler_file is not None

    @property
    def starts_workers(self) -> bool:
        """Whether worker processes do the work that this program starts on this machine."""
        return not self.is_remote and self.workers != 0

    def science(self) -> dict[str, Any]:
        """The settings that decide the result."""
        return self.model_dump(mode="json", exclude=_RUN_ONLY)


# what a sweep varies itself, and what only says how labels are written
_NOT_IN_SWEEP = (
    *("flow_threshold", "cellprob_threshold"),
    *("ngff", "image", "in_place", "keep_flows"),
)
_Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(_refuse_truth)]
_Amount = Annotated[float, Field(ge=0), BeforeValidator(_refuse_truth)]


class SweepSettings(BaseModel):
    """Which settings to try on one flow field, and how to score them.

    Every combination of the first three is scored. The defaults are those that Han et al. 2024
    varied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flow_threshold: tuple[_Amount, ...] = Field(
        default=(0.3, 0.4, 0.5), min_length=1, description="largest flow errors; 0 keeps all"
    )
    cellprob_threshold: tuple[_Number, ...] = Field(
        default=(-1.0, 0.0, 1.0), min_length=1, description="foreground has a larger logit"
    )
    min_size: tuple[_Count, ...] = Field(
        default=(0, 50, 100, 200),
        min_length=1,
        description="px; at scoring, smaller cells are removed on both sides before matching",
    )
    iou: tuple[_Share, ...] = Field(
        default=(0.5,), min_length=1, description="IoU from which a cell counts as found"
    )
    segment: SegmentSettings = Field(
        default_factory=SegmentSettings,
        description="all else, as for `densebatch segment`; its min_size acts when tracing",
    )

    @field_validator("flow_threshold", "cellprob_threshold", "min_size", "iou")
    @classmethod
    def _refuse_repeats(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("names a value twice")
        return values

    @field_validator("segment")
    @classmethod
    def _refuse_ineffective(cls, segment: SegmentSettings) -> SegmentSettings:
        for name in _NOT_IN_SWEEP:
            if name in segment.model_fields_set:
                where = "; it is accepted beside segment" if name in cls.model_fields else ""
                raise ValueError(f"{name} has no effect here{where}")
        return segment


_Settings = TypeVar("_Settings", bound=BaseModel)


def _tell(value: object) -> str:
    """A value in at most a line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def load_settings(path: Path | None, **overrides: object) -> SegmentSettings:
    """Settings from a YAML file, with those given on the command line on top.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    return _load(SegmentSettings, path, overrides)


def load_sweep(path: Path | None) -> SweepSettings:
    """Settings of a sweep from a YAML file; errors as for `load_settings`."""
    return _load(SweepSettings, path, {})


def _load(kind: type[_Settings], path: Path | None, overrides: dict[str, object]) -> _Settings:
    values: object = None
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise InputError(f"{path}: not a readable YAML file ({reason[:200]})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}; accepted is a mapping")
    given = {k: v for k, v in overrides.items() if v is not None}
    try:
        return kind.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        nested = kind is SweepSettings and where.startswith("segment.")
        known = ", ".join((SegmentSettings if nested else kind).model_fields)
        unknown = first["type"] in ("extra_forbidden", "invalid_key")
        hint = f"; accepted settings: {known}" if unknown else ""
        source = f"{path}: " if path is not None and first["loc"][0] not in given else ""
        message = first["msg"].removeprefix("Value error, ").lower().replace("tuple", "list")
        raise InputError(
            f"{source}setting {where!r} = {_tell(first.get('input'))}: {message}{hint}"
        ) from error
