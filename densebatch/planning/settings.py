"""Settings of a run: frozen, strict, one docstring and unit each; YAML in, JSON Schema out."""

from __future__ import annotations

import math
from pathlib import Path  # noqa: TC003  pydantic looks the annotation up at run time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from densebatch.base.settings import (
    Count,
    Duration,
    Fractions,
    Integer,
    Names,
    Number,
    Positive,
    PositiveCount,
    read_settings,
    refuse_bool,
)
from densebatch.measuring.schema import RADIUS_UM, name_quantile
from densebatch.ngff.metadata import Version  # noqa: TC001  as `Path`
from densebatch.workers.scheduler import PATIENCE_S, Scheduler, read_certificates

# The smallest bundled model within 0.01 mean AP of the best (benchmarks/model/README.md).
DEFAULT_MODEL = "dense-small"


def _name_version(value: object) -> object:
    """YAML reads an unquoted 0.5 as a number."""
    return str(value) if isinstance(value, float) else value


def _read_diameter(value: object) -> object:
    """A positive number, which is text on the command line, or `auto`.

    All is checked here, because pydantic would tell what is wrong for each of the two kinds.
    """
    if value is None or value == "auto":
        return value
    try:
        number = float(refuse_bool(value))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        if isinstance(value, bool):
            raise
        raise ValueError("accepted are a diameter in px, and auto") from error
    if not math.isfinite(number):
        raise ValueError("input should be a finite number")
    if number <= 0:
        raise ValueError("input should be greater than 0")
    return number


Diameter = Annotated[
    Annotated[float, Field(gt=0)] | Literal["auto"] | None, BeforeValidator(_read_diameter)
]

BackendName = Literal[
    "auto", "torch", "torch-bf16", "compile", "compile-bf16",
    "openvino", "openvino-bf16", "openvino-int8",
]  # fmt: skip


# What only a model's flows, or only a segmenter's labels, depend on.
_OF_FLOWS = frozenset({
    "model", "flow_threshold", "cellprob_threshold", "min_size", "max_size", "skip_background",
    "device", "backend", "keep_flows",
})  # fmt: skip
_OF_SEGMENTERS = frozenset({"segmenter_options", "overlap"})
# What only a run of nuclei and cells together looks at.
_OF_NUCLEI = frozenset({"nuclei_model", "nuclei_diameter", "membrane_width"})
NUCLEI_MODEL = "dense-nuclei"


class SegmentSettings(BaseModel):
    """Everything that a user can decide about a segmentation.

    The first group decides the labels and is part of the run's fingerprint. The second decides
    what is measured of the cells, and the third where and how fast the work is done; labels do not
    depend on them, bit for bit.
    """

    # channels may be numbers in YAML; NaN compares with nothing and would drop every cell
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )

    membrane: Names = Field(
        default=(),
        description="membrane or cytoplasm channels, by name or index (#2: always the index), one "
        "or a list; combined by maximum",
    )
    nuclei: str | None = Field(default=None, description="nuclear channel, by name or index")
    scene: str | None = Field(
        default=None, description="image of a file that holds several, by name or index"
    )
    axes: str | None = Field(
        default=None,
        description="a letter per dimension of the pixels, such as CYX, if not the metadata's",
    )
    z: str | None = Field(
        default=None,
        description="focal plane of several, by index, or max: the largest value of all",
    )
    t: str | None = Field(default=None, description="point in time of several, by index")
    panel: str | None = Field(
        default=None,
        description="CSV file with the columns channel, name, keep and deepcell, which names the "
        "channels of imaging mass cytometry",
    )
    roi: Path | None = Field(
        default=None,
        description="file of the areas that count: GeoJSON of QuPath, ImageJ ROIs, or a mask image",
    )
    exclude: Path | None = Field(
        default=None, description="likewise, of the areas that do not count"
    )
    tissue: Literal["none", "auto"] = Field(
        default="none", description="whether only what looks like tissue counts (auto), or all"
    )
    model: str = Field(
        default=DEFAULT_MODEL, description="bundled or fetched model, or path of a file"
    )
    segmenter: str | None = Field(
        default=None,
        description="label segmenter instead of a model: its name, module:function, or command:...",
    )
    segmenter_options: dict[str, Any] = Field(default={}, description="of the segmenter")
    overlap: Integer | None = Field(
        default=None,
        ge=2,
        description="px that a segmenter's tiles share; default: 4 cell diameters",
    )
    pixel_size: Positive | None = Field(
        default=None, description="um per pixel, if not the metadata's"
    )
    diameter: Diameter = Field(
        default=None,
        description="cell diameter in px, or auto, an estimate from a few fields; sets the scale, "
        "or the overlap of a segmenter's tiles",
    )
    diameter_um: Positive | None = Field(
        default=None, description="cell diameter in um instead; needs a pixel size"
    )
    flow_threshold: Number = Field(
        default=0.4, ge=0, description="largest flow error of a cell; 0 keeps all"
    )
    cellprob_threshold: Number = Field(default=0.0, description="foreground has a larger logit")
    min_size: Count = Field(default=15, description="smallest cell in px")
    max_size: PositiveCount | None = Field(
        default=None, description="largest cell in px; default from the model"
    )
    skip_background: bool = Field(
        default=True, description="do not evaluate patches without signal"
    )
    compartments: bool = Field(
        default=False,
        description="segment nuclei as well, and write nuclei, cytoplasm and membrane of each cell",
    )
    nuclei_model: str = Field(
        default=NUCLEI_MODEL, description="of the nuclei: a model, or a label segmenter"
    )
    nuclei_diameter: Diameter = Field(
        default=None, description="nuclear diameter in px; default: auto, an estimate, for a model"
    )
    expand: Positive | None = Field(
        default=None,
        description="um by which nuclei without a cell grow into one; without membrane all do",
    )
    membrane_width: Positive = Field(
        default=1.0, description="um inside a cell's outline that are its membrane"
    )
    mask_debris: bool = Field(
        default=True,
        description="leave out specks far brighter than the tissue, and dead pixels; show rare "
        "bright cells apart from the tissue",
    )
    normalise: Literal["slide", "together"] = Field(
        default="slide",
        description="whose pixels decide what becomes 0 and 1: each slide's own, or those of all "
        "slides of a cohort together",
    )
    ngff: Annotated[Version, BeforeValidator(_name_version)] = Field(
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

    channels: Names = Field(
        default=(),
        description="channels that are measured, by name or index, one or a list; default: all",
    )
    quantiles: Fractions = Field(
        default=(), description="of each cell's pixels, from 0 to 1, besides the median"
    )
    neighbour_radius: Positive = Field(
        default=RADIUS_UM, description="um between centroids within which cells are neighbours"
    )

    fraction: Names = Field(
        default=(),
        description="channels of whose pixels the share over a value is measured, such as CD3=400",
    )
    positive: Names = Field(
        default=(),
        description="what makes cells positive: CHANNEL[:STATISTIC]=CUT, where the cut is a value, "
        "otsu, mixture or labels:PATH, and the statistic mean",
    )
    phenotype: Names = Field(
        default=(), description="cells positive in some markers, negative in others: [NAME=]A+ B-"
    )

    tile: Integer = Field(
        default=2048,
        ge=64,
        description="side of a tile in px, which decides labels with a segmenter only",
    )
    workers: Count | None = Field(default=None, description="Dask workers; 0 runs in this process")
    scheduler_address: str | None = Field(default=None, description="running Dask scheduler")
    scheduler_file: Path | None = Field(default=None, description="its scheduler file")
    patience: Duration = Field(
        default=PATIENCE_S,
        description="how long a scheduler's workers are waited for, in seconds or such as 10m",
    )
    tls_ca_file: Path | None = Field(
        default=None, description="PEM file of the authority of a scheduler at tls://"
    )
    tls_cert: Path | None = Field(default=None, description="PEM file of our certificate for it")
    tls_key: Path | None = Field(
        default=None, description="PEM file of its key, if that is not in tls_cert"
    )
    keep_flows: bool = Field(
        default=False, description="leave the flow field in OUT/work when done"
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> SegmentSettings:
        if self.max_size is not None and self.max_size < self.min_size:
            raise ValueError(f"max_size {self.max_size} is below min_size {self.min_size}")
        if self.diameter is not None and self.diameter_um is not None:
            raise ValueError(
                f"diameter {self.diameter} and diameter_um {self.diameter_um:g} both set the "
                "scale; accepted is one of them"
            )
        if self.in_place and self.image == "copy":
            raise ValueError("labels written into the slide bring no copy of its image")
        names = [name_quantile(fraction) for fraction in self.quantiles]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the quantiles {', '.join(map(str, self.quantiles))} are not distinct"
            )
        self._refuse_other_road()
        self._refuse_half_compartments()
        read_certificates(
            self.tls_ca_file, self.tls_cert, self.tls_key, has_scheduler=self.is_remote
        )
        return self

    def _refuse_other_road(self) -> None:
        """Refuse what has no effect, because labels are made otherwise."""
        if self.segmenter is not None and self.diameter == "auto":
            raise ValueError(
                "--diameter auto is found with a model; a segmenter's cells are stated in px or um"
            )
        others = _OF_FLOWS if self.segmenter is not None else _OF_SEGMENTERS
        for name in sorted(self.model_fields_set & others):
            if getattr(self, name) == type(self).model_fields[name].default:
                continue  # as a report has it
            option = "--" + name.replace("_", "-")
            if self.segmenter is None:
                raise ValueError(f"{option} is accepted with --segmenter only")
            raise ValueError(
                f"{option} is for models, whose flows become cells here; the segmenter "
                f"{self.segmenter} makes cells itself and takes --segmenter-options"
            )

    def _refuse_half_compartments(self) -> None:
        """Refuse nuclei that nobody can find, and what is said of nuclei that nobody looks for."""
        if self.is_joined and self.nuclei is None:
            asked = "compartments" if self.compartments else "expand"
            raise ValueError(f"--{asked} needs the nuclear channel: name it with --nuclei")
        if self.is_joined and self.normalise == "together":
            raise ValueError(
                "--normalise together is for runs of one kind; with --compartments or --expand "
                "each slide has bounds of its own"
            )
        if not self.is_joined:
            for name in sorted(self.model_fields_set & _OF_NUCLEI):
                if getattr(self, name) != type(self).model_fields[name].default:
                    option = "--" + name.replace("_", "-")
                    raise ValueError(f"{option} is accepted with --compartments or --expand only")

    @property
    def is_joined(self) -> bool:
        """Whether nuclei are segmented beside the cells, or instead of them, and joined."""
        return self.compartments or self.expand is not None

    def split_runs(self) -> dict[str, SegmentSettings]:
        """Settings of the runs that are joined: of cells, if they have a channel, and of nuclei.

        Neither copies the image, and what they measure is of no use to anybody: one channel.
        """
        from densebatch.segmenters.find import BUILT_IN  # which `--help` need not wait for

        common: dict[str, Any] = {
            "compartments": False, "expand": None, "nuclei_model": NUCLEI_MODEL,
            "nuclei_diameter": None, "membrane_width": 1.0, "image": "none", "in_place": False,
            "channels": (self.nuclei,), "quantiles": (), "fraction": (), "positive": (),
            "phenotype": (),
        }  # fmt: skip
        runs = {}
        if self.membrane or self.expand is None:
            runs["cells"] = self.model_copy(update=common)
        is_segmenter = ":" in self.nuclei_model or self.nuclei_model in BUILT_IN
        runs["nuclei"] = self.model_copy(
            update={
                **common,
                "membrane": (self.nuclei,),
                "nuclei": None,
                "model": DEFAULT_MODEL if is_segmenter else self.nuclei_model,
                "segmenter": self.nuclei_model if is_segmenter else None,
                "segmenter_options": {},
                "overlap": None,
                "diameter": self.nuclei_diameter or (None if is_segmenter else "auto"),
                "diameter_um": None,
                "max_size": None,
            }
        )
        return runs

    @property
    def scheduler(self) -> Scheduler | None:
        """The running Dask scheduler that does the work, if one does.

        Raises
        ------
        InputError
            If both its address and its file are given.
        """
        if not self.is_remote:
            return None
        certificates = read_certificates(self.tls_ca_file, self.tls_cert, self.tls_key)
        return Scheduler(self.scheduler_address, self.scheduler_file, certificates, self.patience)

    @property
    def is_remote(self) -> bool:
        """Whether a running Dask scheduler does the work, rather than this machine."""
        return self.scheduler_address is not None or self.scheduler_file is not None


def load_settings(path: Path | None, **overrides: object) -> SegmentSettings:
    """Settings from a YAML file, with those given on the command line on top.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    return read_settings(SegmentSettings, path, overrides)
