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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from densebatch.base.geometry import Grid, Lattice

# pydantic looks these annotations up at run time
from densebatch.engines.backend import Engine
from densebatch.models.flow_models import get_kind
from densebatch.models.model import CPNET, Model
from densebatch.ngff.metadata import Version  # noqa: TC001
from densebatch.planning.scale import DiameterEstimate  # noqa: TC001
from densebatch.slides.slide import SlideInfo  # noqa: TC001
from densebatch.survey.normalization import ChannelBounds  # noqa: TC001
from densebatch.tracing.tile import TraceSettings  # noqa: TC001

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BACKGROUND_LOGIT = -20.0


@dataclass(frozen=True)
class Plan:
    """Geometry, normalisation, model and thresholds of a run.

    Attributes
    ----------
    slide : the input
    model : the weights and their conditions of use (without the card)
    membrane, nuclei : bounds of the channels that the network sees
    um_per_px : pixel size in use, None if unknown
    rescale, rescale_reason : slide pixels to network pixels
    lattice : patches at the network's scale
    group_y, group_x : lattice cores of a predict task along each axis
    active : base64 of the packed bits of the lattice cores that are evaluated, in raster order
    mask_debris : whether debris is looked for and shown to the network as 0, and rare bright cells
        apart from the tissue
    skip_contrast : patches whose contrast is not above it are not evaluated; -1 evaluates all
    trace : thresholds and limits of tracing
    travel_px : travel that the first tracing halo allows for
    ngff, copy_image, in_place : form of the output
    versions : of what the bits depend on
    notes : what the user should know of how settings were taken
    engine : what evaluates the network; `run.engine.add_engine` decides it last
    estimate : of the diameter of the slide's cells, if that was asked for; `rescale` follows from
        it, so that it is no part of the run's identity
    """

    slide: SlideInfo
    model: Model
    membrane: tuple[ChannelBounds, ...]
    nuclei: ChannelBounds | None
    um_per_px: float | None
    rescale: float
    rescale_reason: str
    lattice: Lattice
    group_y: int
    group_x: int
    active: str
    mask_debris: bool
    skip_contrast: float
    trace: TraceSettings
    travel_px: int
    ngff: Version
    copy_image: bool
    in_place: bool
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    engine: Engine = field(default_factory=Engine)
    estimate: DiameterEstimate | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the slide in pixels."""
        return self.slide.height, self.slide.width

    @property
    def seen_channels(self) -> tuple[ChannelBounds, ...]:
        """Of what the network sees, membrane channels first."""
        return (*self.membrane, *([self.nuclei] if self.nuclei is not None else []))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What each input plane of the network shows: `membrane`, `nuclei`, or `empty` for 0."""
        return get_kind(self.model.kind).inputs

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

    def tiles(self, side_px: int) -> Grid:
        """Tracing tiles of a size, in slide pixels."""
        return Grid(*self.shape, side_px, side_px)

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

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the labels.

        Pixels that were surveyed are told by their digests, so that a slide which was only
        touched or copied stays the same; before that, by size and time of its files.
        """
        document = _leave_out_notes(self)
        if all(b.content for b in self.seen_channels):
            document["slide"]["identity"] = ""
        if (
            self.model.kind == CPNET
        ):  # so that a run that began before there were other kinds goes on
            del document["model"]["kind"]
        return _digest(json.dumps(document, sort_keys=True))

    @property
    def edition(self) -> str:
        """Digest of all of the plan: it changes with its slide's times as well."""
        return _digest(self.to_json())

    def to_json(self) -> str:
        """Serialise; equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _leave_out_notes(plan: Plan) -> dict[str, Any]:
    """The plan as plain data without what is told of it, which depends on how it was asked for."""
    document = asdict(plan)
    del document["estimate"]
    for holder in (document, document["slide"], document["model"]):
        del holder["notes"]
    return document


_ADAPTER = TypeAdapter(Plan)


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
    if name == "model.sha256":
        return f"model {plan.model.name} had the weights {old[:12]}… and now has {new[:12]}…"
    if name == "active":
        return "active patches (those that hold signal) are others"
    return f"{name} was {old!r} and is now {new!r}"


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
        "slide", "model", "engine", "trace", "membrane", "nuclei", "um_per_px", "rescale",
        "versions",
    )  # fmt: skip
    if old.slide.identity != new.slide.identity and _have_equal_content(old, new):
        before["slide"].pop("identity")
        after["slide"].pop("identity")
    for key in (*first, *sorted(set(before) - set(first))):
        found = walk(before.get(key), after.get(key), key)
        if found:
            return found
    return "nothing"
