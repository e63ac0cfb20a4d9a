"""What a run would do, as frozen plain data, before it does anything.

The plan holds everything a task needs besides its own indices; it is written to the work folder
once and read by every worker process. `fingerprint` covers what decides the labels and nothing
else: neither tile size nor workers are in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import TypeAdapter

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Lattice, Region, fit_axis
from densebatch.cells.ngff import Version  # noqa: TC001  pydantic looks the annotation up at run time
from densebatch.engines.backend import Engine
from densebatch.models.model import ModelSpec, choose_rescale, find_model
from densebatch.planning.settings import SKIP_CONTRAST
from densebatch.planning.survey import (
    ChannelBounds,
    ChannelSurvey,
    contrast_in,
    signal_side,
    survey_channel,
)
from densebatch.slides.slide import SlideInfo, open_slide
from densebatch.tracing.tile import TraceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from densebatch.planning.settings import SegmentSettings
    from densebatch.slides.slide import Slide

# Cores of a predict task, along each axis, make up about this many pixels: large enough that the
# scheduler is idle, small enough that losing a task costs about a second of network time.
_GROUP_PX = 1024
_PATCH_MULTIPLE = 16  # Cellpose's own padding; the network's stride divides it
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
    group_y, group_x : cores of a predict task along each axis
    active : base64 of the packed bits of the cores that are evaluated, in raster order
    skip_contrast : patches below it are not evaluated; 0 evaluates all
    trace : thresholds and limits of tracing
    travel_px : travel that the first tracing halo allows for
    ngff, copy_image, in_place : form of the output
    versions : of what the bits depend on
    notes : what the user should know of how settings were taken
    engine : what evaluates the network; `engines.settle_engine` decides it last
    """

    slide: SlideInfo
    model: ModelSpec
    membrane: tuple[ChannelBounds, ...]
    nuclei: ChannelBounds | None
    um_per_px: float | None
    rescale: float
    rescale_reason: str
    lattice: Lattice
    group_y: int
    group_x: int
    active: str
    skip_contrast: float
    trace: TraceSettings
    travel_px: int
    ngff: Version
    copy_image: bool
    in_place: bool
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    engine: Engine = field(default_factory=Engine)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the slide in pixels."""
        return self.slide.height, self.slide.width

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
        """Predict tasks: blocks of cores, each one chunk of the flow field."""
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

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the labels."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Serialise; equal plans give equal text."""
        return json.dumps(asdict(self), sort_keys=True)


_ADAPTER = TypeAdapter(Plan)


def parse_plan(text: str) -> Plan:
    """Inverse of `Plan.to_json`."""
    return _ADAPTER.validate_json(text)


@lru_cache(maxsize=4)
def load_plan(path: str) -> Plan:
    """The plan of a work folder, read once per process.

    The file's name carries the fingerprint, so that a cached plan cannot be stale.
    """
    return parse_plan(Path(path).read_text())


def _choose_channels(
    slide: Slide, settings: SegmentSettings, model: ModelSpec
) -> tuple[list[int], int | None, tuple[str, ...]]:
    """Membrane channels, the nuclear channel that the network gets, and remarks."""
    if settings.membrane:
        membrane = [slide.channel_index(name) for name in settings.membrane]
    else:
        membrane = [slide.default_channel()]
    if len(set(membrane)) != len(membrane):
        raise InputError(
            f"{slide.info.path}: membrane channels {', '.join(settings.membrane)} name one channel "
            "twice; each is accepted once"
        )
    nuclei = slide.channel_index(settings.nuclei) if settings.nuclei is not None else None
    if nuclei is None or model.nuclei:
        return membrane, nuclei, ()
    # An input that a network never saw in training would shift all of its statistics.
    note = (
        f"model {model.name} was trained without a nuclear channel: "
        f"{slide.info.channels[nuclei]} is measured in the cell table but not given to the network"
    )
    return membrane, None, (note,)


def find_active_cores(
    lattice: Lattice, surveys: Sequence[ChannelSurvey], scale: tuple[float, float], threshold: float
) -> NDArray[np.bool_]:
    """Cores whose patch holds signal.

    A patch is judged with all of its margin, grown to whole survey blocks, so that a cell at a
    core's border keeps the core alive.
    """
    cores = lattice.cores
    active = np.zeros((cores.rows, cores.cols), bool)
    for row, col in cores:
        patch = lattice.patch(row, col)
        region = Region(
            math.floor(max(patch.y0, 0) * scale[0]),
            math.floor(max(patch.x0, 0) * scale[1]),
            math.ceil(patch.y1 * scale[0]),
            math.ceil(patch.x1 * scale[1]),
        )
        active[row, col] = contrast_in(surveys, region) > threshold
    return active


_INT32 = 2**31 - 1


def _check_settings(path: str | Path, settings: SegmentSettings) -> None:
    """What only a plan can know to be impossible."""
    for name in ("min_size", "max_size"):
        value = getattr(settings, name)
        if value is not None and value > _INT32:
            raise InputError(f"setting {name!r} = {value}: accepted is up to {_INT32} px")
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        # neither the plan nor OME-Zarr metadata could name it
        raise InputError(
            f"{str(path)!r}: the name is not valid UTF-8; accepted are names that are, so rename it"
        ) from error


def build_plan(path: str | Path, settings: SegmentSettings) -> Plan:
    """Read metadata and one pass of pixels, and decide everything.

    Parameters
    ----------
    path
        The slide.
    settings
        What the user asked for.

    Returns
    -------
    Plan

    Raises
    ------
    InputError
        If the slide, a channel, the model or the scale cannot be used.
    """
    return survey_plan(draft_plan(path, settings))


def draft_plan(path: str | Path, settings: SegmentSettings) -> Plan:
    """The plan as far as metadata tell: all but normalisation bounds and patches to skip.

    Enough to know what a run needs, before a slide that declares 10^12 px is read.

    Parameters, returns and errors as for `build_plan`.
    """
    _check_settings(path, settings)
    slide = open_slide(path)
    info = slide.info
    model = find_model(settings.model)
    membrane, nuclei, notes = _choose_channels(slide, settings, model)
    if settings.in_place and info.kind != "ome-zarr":
        raise InputError(
            f"{info.path}: labels can be written in place only into OME-Zarr, this is {info.kind}"
        )
    if settings.in_place and "ngff" in settings.model_fields_set and settings.ngff != info.ngff:
        raise InputError(
            f"{info.path}: is OME-Zarr {info.ngff}, and labels written into it are too; "
            f"--ngff {settings.ngff} is not accepted with --in-place"
        )
    um_per_px = settings.pixel_size or info.um_per_px
    rescale, reason = choose_rescale(model, um_per_px, settings.diameter)
    height, width = (max(1, round(n * rescale)) for n in (info.height, info.width))
    lattice = Lattice(
        fit_axis(height, model.patch_px, model.margin_px, _PATCH_MULTIPLE),
        fit_axis(width, model.patch_px, model.margin_px, _PATCH_MULTIPLE),
    )
    diameter = model.diameter_px / rescale
    trace = TraceSettings(
        cellprob_threshold=settings.cellprob_threshold,
        flow_threshold=settings.flow_threshold,
        min_size_px=settings.min_size,
        max_size_px=settings.max_size or math.ceil(math.pi / 4 * (10 * diameter) ** 2),
        # an Euler step is at most about a network pixel long
        iterations=max(1, round(200 / rescale)),
        travel_limit_px=max(256, math.ceil(16 * diameter)),
    )
    return Plan(
        slide=info,
        model=ModelSpec(**{**asdict(model), "card": {}}),
        membrane=tuple(_unknown_bounds(info, channel) for channel in membrane),
        nuclei=_unknown_bounds(info, nuclei) if nuclei is not None else None,
        um_per_px=um_per_px,
        rescale=rescale,
        rescale_reason=reason,
        lattice=lattice,
        group_y=max(1, round(_GROUP_PX / lattice.y.step)),
        group_x=max(1, round(_GROUP_PX / lattice.x.step)),
        active=_pack(np.ones((lattice.cores.rows, lattice.cores.cols), bool)),
        skip_contrast=SKIP_CONTRAST if settings.skip_background else -1.0,
        trace=trace,
        travel_px=16 * math.ceil(2 * diameter / 16),
        ngff=cast("Version", info.ngff) if settings.in_place else settings.ngff,
        copy_image=settings.image == "copy"
        or (settings.image == "auto" and info.kind != "ome-zarr"),
        in_place=settings.in_place,
        versions={name: version(name) for name in ("densebatch", "torch", "numpy", "numba")},
        notes=notes,
    )


def survey_plan(draft: Plan) -> Plan:
    """Complete a draft with what one pass over the pixels tells."""
    slide = open_slide(draft.slide.path)
    n_membrane = len(draft.membrane)
    used = [*draft.membrane, *([draft.nuclei] if draft.nuclei is not None else [])]
    percentiles, side = draft.model.percentiles, signal_side(draft.rescale)
    surveys = [survey_channel(slide, b.channel, percentiles, side) for b in used]
    bounds = [survey.bounds for survey in surveys]
    threshold = draft.skip_contrast
    if not any(b.high > b.low for b in bounds[:n_membrane]):
        # a slide without any contrast has nothing to evaluate, whatever is asked for
        threshold = np.inf
    scale = (draft.shape[0] / draft.network_shape[0], draft.shape[1] / draft.network_shape[1])
    return replace(
        draft,
        membrane=tuple(bounds[:n_membrane]),
        nuclei=bounds[-1] if draft.nuclei is not None else None,
        active=_pack(find_active_cores(draft.lattice, surveys, scale, threshold)),
        notes=(*draft.notes, *_odd_pixels(bounds)),
    )


def _odd_pixels(bounds: Sequence[ChannelBounds]) -> Iterator[str]:
    """Notes on channels in which a user would not expect what is found."""
    for b in bounds:
        if b.nonfinite_px:
            yield (
                f"channel {b.name}: {b.nonfinite_px} pixels are NaN or infinite; the network sees "
                "0 there, for plus infinity 1"
            )
        if b.high <= b.low:
            yield f"channel {b.name}: has no contrast, so nothing is found in it"


def _unknown_bounds(info: SlideInfo, channel: int) -> ChannelBounds:
    return ChannelBounds(channel, info.channels[channel], 0.0, 0.0, 0.0, 0)


def _pack(active: NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(active).tobytes()).decode()


def describe_difference(old: Plan, new: Plan) -> str:
    """The first setting in which two plans differ, in words."""
    before, after = asdict(old), asdict(new)

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
        return None if a == b else f"{name} was {a!r} and is now {b!r}"

    # what the user can see comes before what follows from it
    first = (
        "slide", "model", "engine", "trace", "membrane", "nuclei", "um_per_px", "rescale",
        "versions",
    )  # fmt: skip
    for key in (*first, *sorted(set(before) - set(first))):
        found = walk(before.get(key), after.get(key), key)
        if found:
            return found
    return "nothing"
