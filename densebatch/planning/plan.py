"""What a run would do, as frozen plain data, before it does anything.

The plan holds everything a task needs besides its own indices; it is written to the work folder
once and read by every worker process. `fingerprint` covers what decides the labels and nothing
else: neither tile size nor workers are in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import TypeAdapter

from densebatch.base.geometry import Grid, Lattice, Region

# pydantic looks these annotations up at run time
from densebatch.engines.backend import Engine
from densebatch.merging.layout import Layout
from densebatch.models.flow_models import get_kind
from densebatch.models.model import CPNET, Model
from densebatch.ngff.metadata import Version  # noqa: TC001
from densebatch.planning.scale import DiameterEstimate  # noqa: TC001
from densebatch.regions.areas import Areas  # noqa: TC001
from densebatch.regions.tissue import TissueSearch  # noqa: TC001
from densebatch.slides.info import SlideInfo  # noqa: TC001
from densebatch.survey.normalization import ChannelBounds  # noqa: TC001
from densebatch.tracing.tile import TraceSettings  # noqa: TC001

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BACKGROUND_LOGIT = -20.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every run decides: its slide, the channels that are seen, and the form of the output.

    How labels are made is added by the plan of each road: `FlowPlan`, `LabelPlan`, `JoinPlan`.

    Attributes
    ----------
    stages : names of the stages that a run goes through
    slide : the input
    membrane, nuclei : bounds of the channels that the network or the segmenter sees
    um_per_px : pixel size in use, None if unknown
    mask_debris : whether debris is looked for and shown as 0, and rare bright cells to a network
        apart from the tissue
    ngff, copy_image, in_place : form of the output
    versions : of what the bits depend on
    notes : what the user should know of how settings were taken
    region, tissue : the part of the slide that counts, None for all; how tissue was looked for
    """

    stages: ClassVar[tuple[str, ...]]

    slide: SlideInfo
    membrane: tuple[ChannelBounds, ...]
    nuclei: ChannelBounds | None
    um_per_px: float | None
    mask_debris: bool
    ngff: Version
    copy_image: bool
    in_place: bool
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    region: Areas | None = None
    tissue: TissueSearch | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the slide in pixels."""
        return self.slide.height, self.slide.width

    @property
    def seen_channels(self) -> tuple[ChannelBounds, ...]:
        """Of what the network or the segmenter sees, membrane channels first."""
        return (*self.membrane, *([self.nuclei] if self.nuclei is not None else []))

    @property
    def hole_px(self) -> int:
        """Side of the largest hole of a cell, which is missing with a cell that is in doubt."""
        return 0

    def counts_in(self, part: Region) -> bool:
        """Whether any pixel there counts; the part may reach outside the slide."""
        return self.region is None or self.region.touches(part)

    def count_px(self, part: Region) -> int:
        """Pixels of a part of the slide that count."""
        return part.area if self.region is None else self.region.count(part)

    def tiles(self, side_px: int) -> Grid:
        """Tiles of a size in slide pixels, each of which gets its labels from one task."""
        return Grid(*self.shape, side_px, side_px)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the labels.

        Pixels that were surveyed are told by their digests, so that a slide which was only
        touched or copied stays the same; before that, by size and time of its files.
        """
        return _digest(json.dumps(self._list_decisive(), sort_keys=True))

    def _list_decisive(self) -> dict[str, Any]:
        """The plan as plain data without what does not decide the labels."""
        document = _leave_out_notes(self)
        if all(b.content for b in self.seen_channels):
            document["slide"]["identity"] = ""
        # What the panel says is among the channels; where it lies decides nothing. And a run that
        # began before planes could be chosen goes on.
        del document["slide"]["panel"]
        for name in ("z", "t"):
            if document["slide"][name] is None:
                del document["slide"][name]
        # So that a run that began before there were regions goes on.
        if self.region is None:
            del document["region"]
        return document

    @property
    def edition(self) -> str:
        """Digest of all of the plan: it changes with its slide's times as well."""
        return _digest(self.to_json())

    def to_json(self) -> str:
        """Serialise; equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class FlowPlan(Plan):
    """A network is evaluated on patches, and its flows are traced: labels know no tiles.

    Attributes
    ----------
    model : the weights and their conditions of use (without the card)
    rescale, rescale_reason : slide pixels to network pixels
    lattice : patches at the network's scale
    group_y, group_x : lattice cores of a predict task along each axis
    active : base64 of the packed bits of the lattice cores that are evaluated, in raster order
    skip_contrast : patches whose contrast is not above it are not evaluated; -1 evaluates all
    trace : thresholds and limits of tracing
    travel_px : travel that the first tracing halo allows for
    engine : what evaluates the network; `run.engine.add_engine` decides it last
    estimate : of the diameter of the slide's cells, if that was asked for; `rescale` follows from
        it, so that it is no part of the run's identity
    """

    stages: ClassVar[tuple[str, ...]] = ("predict", "trace", "number")

    model: Model
    rescale: float
    rescale_reason: str
    lattice: Lattice
    group_y: int
    group_x: int
    active: str
    skip_contrast: float
    trace: TraceSettings
    travel_px: int
    engine: Engine = field(default_factory=Engine)
    estimate: DiameterEstimate | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """What each input plane of the network shows: `membrane`, `nuclei`, or `empty` for 0."""
        return get_kind(self.model.kind).inputs

    @property
    def hole_px(self) -> int:
        """As of `Plan`: a cell is smaller than two diameters, and so are its holes."""
        return self.travel_px

    @property
    def network_shape(self) -> tuple[int, int]:
        """Height and width of the slide at the network's scale."""
        return self.lattice.y.length, self.lattice.x.length

    @property
    def background_logit(self) -> float:
        """Cell probability written where the network is not evaluated."""
        return _BACKGROUND_LOGIT

    @property
    def active_cores(self) -> NDArray[np.bool_]:
        """`(rows, cols)` of lattice cores: True where the network is evaluated."""
        cores = self.lattice.cores
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.active), np.uint8))
        return bits[: len(cores)].astype(bool).reshape(cores.rows, cores.cols)

    @property
    def groups(self) -> Grid:
        """Predict tasks: blocks of lattice cores, each one chunk of the flow field."""
        return Grid(
            *self.network_shape,
            self.group_y * self.lattice.y.step,
            self.group_x * self.lattice.x.step,
        )

    @property
    def network_batch(self) -> int:
        """Patches of a batch, where the device takes many.

        Two batches make up a group: while one is computed, the other is on its way.
        """
        return -(-self.group_y * self.group_x // 2)

    @property
    def network_patches(self) -> int:
        """Patches that the network is evaluated on."""
        return int(self.active_cores.sum())

    @property
    def network_px(self) -> int:
        """Pixels that the network is evaluated on, at its own scale."""
        return self.network_patches * self.lattice.patch_area

    @property
    def covered_px(self) -> int:
        """Pixels of the slide, at the network's scale, whose patch is not skipped."""
        cores, active = self.lattice.cores, self.active_cores
        return sum(cores[index].area for index in cores if active[index])

    def _list_decisive(self) -> dict[str, Any]:
        document = super()._list_decisive()
        # So that a run that began before there were other kinds goes on.
        if self.model.kind == CPNET:
            del document["model"]["kind"]
        return document


@dataclass(frozen=True, kw_only=True)
class LabelPlan(Plan):
    """A segmenter labels overlapping tiles, and their labels are merged: tiles decide labels.

    Attributes
    ----------
    segmenter : as the user named it, see `segmenters.find`
    segmenter_identity : digest of what it does
    options : complete, of the segmenter
    levels : Otsu's threshold over the tissue of each plane that the segmenter sees, 0 to 1
    tile_px : side of what the segmenter sees at once
    overlap_px : that tiles share with the next, at least
    diameter_px : of a cell, as stated, else of 10 um
    """

    stages: ClassVar[tuple[str, ...]] = ("label", "compare", "paint", "number")

    segmenter: str
    segmenter_identity: str
    options: dict[str, Any]
    levels: tuple[float, ...]
    tile_px: int
    overlap_px: int
    diameter_px: float

    @property
    def planes(self) -> tuple[str, ...]:
        """What each plane of the segmenter's image shows."""
        return ("membrane", *(["nuclei"] if self.nuclei is not None else []))

    @cached_property
    def layout(self) -> Layout:
        """Tiles that the segmenter sees, all in which a pixel counts, in raster order."""
        rows, cols = (_place_tiles(n, self.tile_px, self.overlap_px) for n in self.shape)
        return Layout(
            tuple(
                tile
                for y in rows
                for x in cols
                if self.counts_in(
                    tile := Region(y, x, y + self.tile_px, x + self.tile_px).clip(*self.shape)
                )
            )
        )


@dataclass(frozen=True, kw_only=True)
class JoinPlan(Plan):
    """Two finished runs, of cells and of nuclei, become cells with compartments.

    Attributes
    ----------
    runs : fingerprints of the runs, by what they segment: `nuclei`, and `cells` unless cells are
        grown from nuclei alone
    made_by : model or segmenter of each run, for the record
    grow_px : by which nuclei without a cell grow into one; 0 for not at all
    ring_px : width of the membrane inside a cell's outline
    """

    stages: ClassVar[tuple[str, ...]] = ("match", "join", "number")

    runs: dict[str, str]
    made_by: dict[str, str]
    grow_px: float
    ring_px: float

    def _list_decisive(self) -> dict[str, Any]:
        # What the runs have decided is in their fingerprints.
        return {"runs": self.runs, "grow_px": self.grow_px, "ring_px": self.ring_px,
                "form": [self.ngff, self.copy_image, self.in_place]}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConvertPlan(Plan):
    """A slide is copied, and nothing is segmented.

    Attributes
    ----------
    n_levels : of the copy
    """

    stages: ClassVar[tuple[str, ...]] = ("copy",)

    n_levels: int

    def _list_decisive(self) -> dict[str, Any]:
        document = _leave_out_notes(self)
        return {name: document[name] for name in ("slide", "um_per_px", "ngff", "region")}


def _place_tiles(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin along an axis: the last one ends with it, and shares more if need be.

    Examples
    --------
    >>> _place_tiles(10, 4, 1), _place_tiles(11, 4, 1), _place_tiles(3, 4, 1)
    ([0, 3, 6], [0, 3, 6, 7], [0])
    """
    n = max(1, -(-(length - overlap) // (side - overlap)))
    return [max(0, min(k * (side - overlap), length - side)) for k in range(n)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _leave_out_notes(plan: Plan) -> dict[str, Any]:
    """The plan as plain data without what is told of it, which depends on how it was asked for."""
    left_out = ("estimate", "tissue")  # which scale and region tell
    document = {name: value for name, value in asdict(plan).items() if name not in left_out}
    if plan.region is not None:  # packed runs are told by their digest
        document["region"].pop("runs")
        document["region"].pop("files")
    for holder in (document, document["slide"], document.get("model", {})):
        holder.pop("notes", None)
    for name in ("um_per_px_from", "levels", "compression", "origin_um", "origin_from"):
        document["slide"].pop(name, None)
    return document


# Each has fields of its own that it cannot be without.
_ADAPTER: TypeAdapter[FlowPlan | LabelPlan | JoinPlan | ConvertPlan] = TypeAdapter(
    FlowPlan | LabelPlan | JoinPlan | ConvertPlan
)


def parse_plan(text: str) -> Plan:
    """Inverse of `Plan.to_json`."""
    return _ADAPTER.validate_json(text)


@lru_cache(maxsize=4)
def load_plan(path: str) -> Plan:
    """The plan of a work folder, read once per process.

    The file's name carries its edition, so that a cached plan cannot be stale.
    """
    return parse_plan(Path(path).read_text())


def _have_equal_content(old: Plan, new: Plan) -> bool:
    """Whether two plans have surveyed the same channels and found the same pixels."""
    found = [{b.channel: b.content for b in plan.seen_channels} for plan in (old, new)]
    return found[0] == found[1] and all(found[0].values())


def _describe_change(name: str, old: Any, new: Any, plan: Plan) -> str:  # noqa: ANN401
    """A changed setting in words; what nobody can compare by eye is named by what it means."""
    if name == "slide.identity":
        return (
            f"the slide {plan.slide.path} has changed since, or was replaced (files of the slide "
            "have got another size or time, as they do when they are changed or mended)"
        )
    if name.endswith(".content"):
        return f"the pixels of the slide {plan.slide.path} have changed since ({name})"
    if name == "model.sha256" and isinstance(plan, FlowPlan):
        return f"model {plan.model.name} had the weights {old[:12]}… and now has {new[:12]}…"
    if name == "segmenter_identity" and isinstance(plan, LabelPlan):
        return f"the code of the segmenter {plan.segmenter} has changed since"
    if name.startswith("runs.") and isinstance(plan, JoinPlan):
        return f"the {name.removeprefix('runs.')} are segmented otherwise"
    if name.split(".")[0] == "region":
        return "region that counts (--roi, --exclude, --tissue) is another"
    if name == "active":
        return "active patches (those that hold signal) are others"
    return f"{name} was {old!r} and is now {new!r}"


def _name_road(plan: Plan) -> str:
    if isinstance(plan, JoinPlan):
        return "of cells and nuclei together"
    return f"by the segmenter {plan.segmenter}" if isinstance(plan, LabelPlan) else "by a model"


def describe_difference(old: Plan, new: Plan) -> str:
    """The first setting in which two plans differ, in words."""
    before, after = _leave_out_notes(old), _leave_out_notes(new)

    def walk(a: Any, b: Any, name: str) -> str | None:  # noqa: ANN401
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(set(a) | set(b)):
                found = walk(a.get(key), b.get(key), f"{name}.{key}" if name else key)
                if found:
                    return found
            return None
        if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
            for index, (x, y) in enumerate(zip(a, b, strict=True)):
                found = walk(x, y, f"{name}[{index}]")
                if found:
                    return found
            return None
        return None if a == b else _describe_change(name, a, b, new)

    # what the user can see comes before what follows from it
    first = (
        "slide", "segmenter", "segmenter_identity", "model", "engine", "trace", "tile_px",
        "overlap_px", "options", "region", "membrane", "nuclei", "um_per_px", "rescale",
        "versions",
    )  # fmt: skip
    if old.slide.identity != new.slide.identity and _have_equal_content(old, new):
        before["slide"].pop("identity")
        after["slide"].pop("identity")
    if type(old) is not type(new):
        made = [_name_road(plan) for plan in (old, new)]
        return f"its labels were made {made[0]} and are now asked for {made[1]}"
    for key in (*first, *sorted(set(before) - set(first))):
        found = walk(before.get(key), after.get(key), key)
        if found:
            return found
    return "nothing"
