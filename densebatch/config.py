"""Settings of a run: frozen, strict, one docstring and unit each; YAML in, JSON Schema out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from densebatch.errors import InputError

# A patch whose 4x4 means span less than this share of the slide's normalised range holds nothing
# that the network would find. tests/test_skipping.py proves it on real fields: the faintest cell
# that the bundled network finds there stands in several times this contrast.
SKIP_CONTRAST = 0.1


class SegmentSettings(BaseModel):
    """Everything that a user can decide about a segmentation.

    The first group decides the labels and is part of the run's fingerprint. The second decides
    where and how fast the work is done; labels do not depend on it, bit for bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    membrane: tuple[str, ...] = Field(
        (), description="membrane or cytoplasm channels, by name or index; combined by maximum"
    )
    nuclei: str | None = Field(None, description="nuclear channel, by name or index")
    model: str = Field("dense", description="bundled model, or path of a checkpoint")
    pixel_size: float | None = Field(None, gt=0, description="um per pixel, if not the metadata's")
    diameter: float | None = Field(None, gt=0, description="cell diameter in px; sets the scale")
    flow_threshold: float = Field(0.4, ge=0, description="largest flow error of a cell; 0 keeps all")
    cellprob_threshold: float = Field(0.0, description="foreground has a larger logit")
    min_size: int = Field(15, ge=0, description="smallest cell in px")
    max_size: int | None = Field(None, gt=0, description="largest cell in px; default from the model")
    skip_background: bool = Field(True, description="do not evaluate patches without signal")
    ngff: Literal["0.4", "0.5"] = Field("0.5", description="OME-Zarr version of the output")
    image: Literal["auto", "copy", "none"] = Field(
        "auto", description="image pyramid beside the labels; auto copies unless it is OME-Zarr"
    )
    in_place: bool = Field(False, description="write labels into the OME-Zarr slide itself")

    tile: int = Field(2048, ge=64, description="side of a tracing tile in px")
    workers: int | None = Field(None, ge=0, description="Dask workers; 0 runs in this process")
    scheduler_address: str | None = Field(None, description="running Dask scheduler")
    scheduler_file: Path | None = Field(None, description="its scheduler file")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the network runs")
    keep_flows: bool = Field(False, description="leave the flow field in OUT/work when done")

    def science(self) -> dict[str, Any]:
        """The settings that decide the result."""
        run_only = {
            "tile", "workers", "scheduler_address", "scheduler_file", "keep_flows", "device",
        }
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in run_only}


def load_settings(path: Path | None, **overrides: object) -> SegmentSettings:
    """Settings from a YAML file, with those given on the command line on top.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    values: dict[str, object] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise InputError(f"{path}: not a readable YAML file ({error})") from error
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds a {type(values).__name__}; accepted is a mapping")
    values.update({k: v for k, v in overrides.items() if v is not None})
    try:
        return SegmentSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = ", ".join(SegmentSettings.model_fields)
        hint = f"; accepted settings: {known}" if first["type"] == "extra_forbidden" else ""
        source = f"{path}: " if path is not None else ""
        raise InputError(
            f"{source}setting {where!r} = {first.get('input')!r}: {first['msg'].lower()}{hint}"
        ) from error
