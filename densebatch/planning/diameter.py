"""Estimate the cells' diameter of a slide: the scale at which the network finds what it was taught.

A few fields of tissue are segmented as if cells were half, once, twice, four and eight times as
wide as the network knows them. A network that was taught cells of one size finds those of a slide
to be of about their true size even where the guess is off by half, so the right guess is the one
that comes back. Cells that are enlarged many times fall to pieces, and pieces of any size look like
small cells: a small guess may come back too. Therefore guesses are tried from the largest down, and
the first that comes back counts, if cells take up as much room then as on any other guess, or a
quarter of it.

All is done once for a slide, in the process that plans the run, on fields that follow from the
survey alone: neither tiles nor workers play a part.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Grid, Region
from densebatch.base.log import log_event
from densebatch.base.machine import count_cores
from densebatch.base.resampling import axis_weights, resample
from densebatch.engines.backend import REFERENCE, PatchShape, evaluate_patches
from densebatch.engines.make import make_backend
from densebatch.models.flow_models import get_kind
from densebatch.models.model import load_network
from densebatch.planning.scale import DiameterEstimate
from densebatch.survey.kernels import BLOCK_PX
from densebatch.survey.normalization import normalize
from densebatch.survey.reader import blocks_of
from densebatch.tracing.tile import TraceSettings, trace_tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from densebatch.engines.backend import Backend
    from densebatch.models.model import Model
    from densebatch.slides.slide import Slide
    from densebatch.survey.channel import ChannelSurvey
    from densebatch.survey.normalization import ChannelBounds

log = logging.getLogger(__name__)

MAX_FIELDS = 8
_FIELD_BLOCKS = (8, 4, 2)  # sides of fields; of a small slide they are smaller, to be as many
_GUESSES = (8.0, 4.0, 2.0, 1.0, 0.5)  # of the model's diameter
_SHARE = 0.25  # of the most room that cells take up on any guess
_LIMITS = (1 / 4, 16.0)  # of the model's diameter, beyond which there is no telling
_REFINED = 2  # times that what came back is the next guess
_MIN_CELLS = 3  # whose median tells a size
_MAX_LANES = 4


@dataclass(frozen=True)
class Sighting:
    """What the network finds in all fields when cells are taken to be of some diameter.

    Attributes
    ----------
    guess_px : diameter that cells are taken to have, slide pixels
    diameter_px : median of those that no field cuts, slide pixels; NaN if they are too few
    cells : number of those
    room : share of the fields that all cells take up
    """

    guess_px: float
    diameter_px: float
    cells: int
    room: float


def choose_fields(surveys: Sequence[ChannelSurvey], shape: tuple[int, int]) -> list[Region]:
    """Choose fields with as much contrast as any, spread over a slide.

    Parameters
    ----------
    surveys
        Of the channels that the network sees.
    shape
        Height and width of the slide.

    Returns
    -------
    list
        Up to `MAX_FIELDS` regions of 64 to 256 px, in raster order: of those whose contrast is at
        least half that of the best, evenly. None if there is no contrast.
    """
    spans = [survey.highest - survey.lowest for survey in surveys]
    contrast = np.maximum.reduce(spans)
    # Beyond what becomes 1 there is debris; where pieces cannot be read contrast is infinite.
    contrast = np.where(np.isfinite(contrast), np.clip(contrast, 0.0, 1.0), 0.0)
    grids = (Grid(*shape, side * BLOCK_PX, side * BLOCK_PX) for side in _FIELD_BLOCKS)
    grid = next((g for g in grids if len(g) >= MAX_FIELDS), None)
    if grid is None:
        grid = Grid(*shape, _FIELD_BLOCKS[-1] * BLOCK_PX, _FIELD_BLOCKS[-1] * BLOCK_PX)
    totals = {index: float(contrast[blocks_of(grid[index])].sum()) for index in grid}
    best = max(totals.values())
    if best == 0:
        return []
    good = [index for index, total in totals.items() if total >= best / 2]
    places = np.linspace(0, len(good) - 1, min(MAX_FIELDS, len(good))).round().astype(int)
    return [grid[good[k]] for k in places]


class FieldTrial:
    """Fields of a slide that the network can be shown at any scale.

    Parameters
    ----------
    slide, model
        What is segmented, and by what.
    membrane, nuclei
        Bounds of the channels that the network sees.
    fields
        Of the slide; a patch of the network is put around the middle of each.
    device
        `cpu` or `cuda`.
    """

    def __init__(
        self,
        slide: Slide,
        model: Model,
        membrane: Sequence[ChannelBounds],
        nuclei: ChannelBounds | None,
        fields: Sequence[Region],
        device: str,
    ) -> None:
        self._slide, self._model, self._fields = slide, model, fields
        self._channels = {"membrane": membrane, "nuclei": [] if nuclei is None else [nuclei]}
        side, margin = model.patch_px, model.margin_px
        kept = Region(margin, margin, side - margin, side - margin)
        lanes = min(_MAX_LANES, count_cores()) if device == "cpu" else 1
        self._backend: Backend = make_backend(
            REFERENCE, device, load_network(model), PatchShape(side, side, kept),
            batch=len(fields), lanes=lanes,
        )  # fmt: skip

    def look(self, guess_px: float) -> Sighting:
        """Segment all fields as if cells had a diameter.

        Parameters
        ----------
        guess_px
            Slide pixels.
        """
        network_px = self._model.diameter_px
        shown = [
            view
            for field in self._fields
            if (view := self._show(field, network_px / guess_px)) is not None
        ]
        if not shown:
            return Sighting(guess_px, math.nan, 0, 0.0)
        outputs = evaluate_patches(self._backend, [patch for patch, _ in shown])
        settings = TraceSettings(
            max_size_px=math.ceil(math.pi / 4 * (10 * network_px) ** 2),
            travel_limit_px=max(256, math.ceil(16 * network_px)),
        )
        whole_cells, covered, n_px = [], 0, 0
        for flows, (_, known) in zip(outputs, shown, strict=True):
            part = np.ascontiguousarray(flows[:, *known.slices])
            window = Region(0, 0, *known.shape)
            labels = trace_tile(part, window, window, known.shape, settings).labels
            areas = np.bincount(labels.ravel())
            covered += int(areas[1:].sum())
            n_px += labels.size
            areas[[0, *labels[0], *labels[-1], *labels[:, 0], *labels[:, -1]]] = 0
            whole_cells.append(areas[areas > 0])
        diameters = 2.0 * np.sqrt(np.concatenate(whole_cells) / np.pi) * guess_px / network_px
        median = float(np.median(diameters)) if diameters.size >= _MIN_CELLS else math.nan
        return Sighting(guess_px, median, diameters.size, covered / n_px)

    def _show(self, field: Region, factor: float) -> tuple[NDArray[np.float32], Region] | None:
        """What the network sees around a field, and which part of its output is of the slide.

        None if the slide cannot be read there.
        """
        side, margin = self._model.patch_px, self._model.margin_px
        info = self._slide.info
        y, x = (field.y0 + field.y1) / 2, (field.x0 + field.x1) / 2
        half = side / factor / 2
        around = Region(round(y - half), round(x - half), round(y + half), round(x + half))
        inside = around.clip(info.height, info.width)
        shape = tuple(min(side, max(1, round(n * factor))) for n in inside.shape)
        rows, cols = (
            axis_weights(np.arange(n_out), n_in, n_out)
            for n_in, n_out in zip(inside.shape, shape, strict=True)
        )
        names = get_kind(self._model.kind).inputs
        patch = np.zeros((len(names), side, side), np.float32)
        y0, x0 = ((side - n) // 2 for n in shape)
        place = Region(y0, x0, y0 + shape[0], x0 + shape[1])
        try:
            for name, channels in self._channels.items():
                if channels and name in names:
                    seen = np.maximum.reduce([self._read(inside, b) for b in channels])
                    patch[names.index(name), *place.slices] = resample(seen, rows, cols)
        except (InputError, OSError):
            return None
        kept = side - 2 * margin
        known = place.shift(-margin, -margin)
        return patch, known.clip(kept, kept)

    def _read(self, region: Region, bounds: ChannelBounds) -> NDArray[np.float32]:
        info = self._slide.info
        around = region.expand(bounds.reach_px).clip(info.height, info.width)
        shown = normalize(self._slide.read(bounds.channel, around), bounds)
        return shown[region.shift(-around.y0, -around.x0).slices]


def find_fixed_point(sightings: Sequence[Sighting]) -> float | None:
    """The largest guess that comes back, where cells take up enough room.

    Parameters
    ----------
    sightings
        On guesses that fall.

    Returns
    -------
    float or None
        Between the last guess that came back smaller and the first that came back larger, on a
        logarithmic scale; or what came back of the guess with the most room if there are none such;
        None if cells were found on no guess.
    """
    known = [s for s in sightings if not math.isnan(s.diameter_px)]
    if not known:
        return None
    enough = _SHARE * max(s.room for s in known)
    seen = [s for s in known if s.room >= enough]
    for above, below in itertools.pairwise(seen):
        high, low = (math.log(s.diameter_px / s.guess_px) for s in (above, below))
        if high <= 0 <= low:
            share = low / (low - high) if low > high else 0.5
            return float(below.guess_px * (above.guess_px / below.guess_px) ** share)
    return max(seen, key=lambda s: s.room).diameter_px


def estimate_diameter(
    slide: Slide,
    model: Model,
    membrane: Sequence[ChannelBounds],
    nuclei: ChannelBounds | None,
    fields: Sequence[Region],
    device: str,
) -> DiameterEstimate:
    """Estimate the diameter of the cells in some fields of a slide.

    Parameters
    ----------
    slide, model, membrane, nuclei, fields, device
        See `FieldTrial`.
    """
    if not fields:
        return DiameterEstimate(None, 0, 0)
    trial = FieldTrial(slide, model, membrane, nuclei, fields, device)
    guess_px = find_fixed_point([trial.look(factor * model.diameter_px) for factor in _GUESSES])
    if guess_px is None:
        return DiameterEstimate(None, 0, len(fields))
    cells = 0
    for _ in range(_REFINED):
        found = trial.look(guess_px)
        if math.isnan(found.diameter_px):
            break
        guess_px, cells = found.diameter_px, found.cells
    if cells == 0:  # as if the slide were of the diameter found, it has none
        return DiameterEstimate(None, 0, len(fields))
    if not _LIMITS[0] <= guess_px / model.diameter_px <= _LIMITS[1]:
        return DiameterEstimate(None, 0, len(fields))
    # Three digits, so that a device that rounds otherwise hardly ever gives another estimate.
    estimate = DiameterEstimate(float(f"{guess_px:.3g}"), cells, len(fields))
    log_event(log, "diameter estimated", **asdict(estimate))
    return estimate
