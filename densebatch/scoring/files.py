"""Score files: pair them, score each pair, and draw the pictures of the report."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.page import Picture
from densebatch.cells.components import settle_masks
from densebatch.cells.pairs import find_partners, pair_labels
from densebatch.cells.pixels import as_labels
from densebatch.cells.read import open_labels, open_pixels
from densebatch.scoring.blocks import FIELD_PX
from densebatch.scoring.contingency import check_same_shape
from densebatch.scoring.overlay import choose_fields, draw_overlay, encode_png, find_strips
from densebatch.scoring.score import score_labels
from densebatch.scoring.settings import ScoreSettings, format_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from densebatch.cells.pairs import Pair, Pairing
    from densebatch.cells.pixels import Pixels, PixelSource
    from densebatch.scoring.blocks import Workers
    from densebatch.scoring.results import FieldScore, ImageScore

log = logging.getLogger(__name__)

# Up to this size an image is shown whole, and its fields are small enough to show something.
WHOLE_PX = 2048 * 2048
SMALL_FIELD_PX = 256
MAX_WHOLE = 12
N_WORST, N_SAMPLE = 6, 4
# A picture is enlarged by a whole number until it is about so long, but not beyond MAX_SCALE.
PICTURE_PX = 768
_FEW_LABELS = 10  # cells of the truth for each label of a prediction, from which that is told
MAX_SCALE = 4


@dataclass(frozen=True)
class ScoreOptions:
    """What to do beside the plain scores.

    Attributes
    ----------
    settings
        Thresholds, matching, sizes.
    boundary_px
        Tolerance of the boundary F-score; None for none.
    ignore
        Image, or folder of images, that is not zero where nothing is to be counted.
    image
        Image, or folder of images, to draw on; None draws on black.
    allow_missing
        Leave out label images without a partner.
    field_px
        Edge of the fields; None takes 256 for images up to 4 Mpx and 1024 for larger ones.
    scene
        Which image of files that hold several, by name or index; the only one of others is taken.
    """

    settings: ScoreSettings = field(default_factory=ScoreSettings)
    boundary_px: float | None = None
    ignore: Path | None = None
    image: Path | None = None
    allow_missing: bool = False
    field_px: int | None = None
    scene: str | None = None


@dataclass(frozen=True)
class FileScores:
    """Scores of one prediction, in the order of its pairs, and what is to be known of its files."""

    pairing: Pairing
    images: tuple[ImageScore, ...]
    notes: tuple[str, ...] = ()


def score_files(
    pred: Path,
    truth: Path,
    options: ScoreOptions | None = None,
    *,
    workers: Workers = 1,
    show_progress: Callable[[int, int], None] = lambda done, total: None,
) -> FileScores:
    """Score label images on disk.

    Parameters
    ----------
    pred, truth
        Two label images, or two folders of them paired by name; see `pair_labels`.
    options
        What to compute.
    workers
        Threads, an executor or a Dask client.
    show_progress
        Called with the numbers of pairs done and of all.

    Returns
    -------
    FileScores
        How files were paired, and the scores of each pair.

    Raises
    ------
    InputError
        For whatever cannot be paired, read or scored, with the file's name.
    """
    options = options or ScoreOptions()
    pairing = pair_labels(pred, truth, allow_missing=options.allow_missing)
    log_event(log, "label images paired", pred=str(pred), truth=str(truth), n=len(pairing.pairs))
    names = [pair.name for pair in pairing.pairs]
    regions = {} if options.ignore is None else find_partners(options.ignore, names)
    if options.ignore is not None and (missing := sorted(set(names) - regions.keys())):
        raise InputError(f"{options.ignore} has no ignored region for {missing[0]}")
    images = []
    # A dictionary, because the files of a folder often have the same to tell.
    notes: dict[str, None] = {}
    for k, pair in enumerate(pairing.pairs):
        show_progress(k, len(names))
        images.append(_score_pair(pair, regions.get(pair.name), options, workers, notes))
    show_progress(len(names), len(names))
    return FileScores(pairing, tuple(images), tuple(notes))


def _score_pair(
    pair: Pair,
    region: Path | None,
    options: ScoreOptions,
    workers: Workers,
    notes: dict[str, None],
) -> ImageScore:
    scene, masks = options.scene, bool(options.settings.label_components)
    truth = open_labels(pair.truth, scene, masks=masks)
    pred = open_labels(pair.pred, scene, masks=masks)
    # An ignored region is a mask by its meaning.
    ignore = None if region is None else open_labels(region, scene, masks=True)
    for labels in filter(None, (truth, pred, ignore)):
        notes.update(dict.fromkeys(f"{labels.path.name}: {note}" for note in labels.notes))
    check_same_shape(truth, pred)
    if ignore is not None:
        check_same_shape(truth, ignore)
    score = score_labels(
        truth,
        pred,
        options.settings,
        name=pair.name,
        ignore=ignore,
        boundary_px=options.boundary_px,
        field_px=options.field_px or (SMALL_FIELD_PX if _is_small(truth) else FIELD_PX),
        workers=workers,
    )
    log_event(
        log,
        "image scored",
        image=pair.name,
        truth_cells=score.n_truth,
        predicted_cells=score.n_pred,
        ap=round(score.at(score.settings.focus).ap, 4),
    )
    if 0 < score.n_pred * _FEW_LABELS <= score.n_truth:
        notes[
            f"{pair.pred.name}: has {score.n_pred} labels where the truth has {score.n_truth} "
            "cells; each label is one cell, so a mask of classes scores next to nothing"
        ] = None
    return score


def _open_side(path: Path, scene: str | None, score: ImageScore, side: str) -> PixelSource:
    """A side as it was scored: a mask's pieces get the same numbers again."""
    if side not in score.labelled:
        return open_labels(path, scene, masks=bool(score.settings.label_components))
    return settle_masks(open_labels(path, scene, masks=True), True, str(path))[0]


def _is_small(labels: PixelSource) -> bool:
    return labels.shape[0] * labels.shape[1] <= WHOLE_PX


def draw_pictures(scores: FileScores, options: ScoreOptions) -> list[Picture]:
    """Overlays of small images as a whole, of the worst fields, and of a sample of the others.

    Whatever the size of a slide, only the chosen fields are read.

    Parameters
    ----------
    scores
        Of one prediction.
    options
        With which they were computed; `image` is drawn on.

    Returns
    -------
    list of Picture
        In the order of the pairs.

    Raises
    ------
    InputError
        For an image to draw on that shows other pixels, or cannot be read.
    """
    names = [pair.name for pair in scores.pairing.pairs]
    backgrounds = {} if options.image is None else find_partners(options.image, names)
    worst = _choose_worst(scores.images)
    pictures: list[Picture] = []
    for k, (pair, score) in enumerate(zip(scores.pairing.pairs, scores.images, strict=True)):
        truth, pred = (
            _open_side(path, options.scene, score, side)
            for path, side in ((pair.truth, "truth"), (pair.pred, "pred"))
        )
        focus = score.settings.focus
        wanted: list[tuple[str, Region | None, float]] = []
        if _is_small(truth) and k < MAX_WHOLE:
            wanted.append(("", None, score.at(focus).ap))
        wanted += [(", one of the worst fields", f.region, f.score.ap) for f in worst[k]]
        if not _is_small(truth):
            sample = choose_fields(score.fields, N_WORST, N_SAMPLE)[N_WORST:]
            wanted += [(", a field drawn by chance", f.region, f.score.ap) for f in sample]
        background = None
        if pair.name in backgrounds:
            background = open_pixels(backgrounds[pair.name], scene=options.scene)
        if background is not None and background.shape != truth.shape:
            sizes = ["x".join(map(str, shape)) for shape in (background.shape, truth.shape)]
            raise InputError(
                f"{background.path} is {sizes[0]} px but {pair.truth} is {sizes[1]} px; a "
                "background shows the same pixels"
            )
        for what, region, ap in wanted:
            caption = f"{pair.name}{what}: AP {ap:.3f} at IoU ≥ {format_threshold(focus)}"
            if region is not None:
                caption += f", rows {region.y0} to {region.y1}, columns {region.x0} to {region.x1}"
            png = _draw(truth, pred, score, background, region)
            pictures.append(Picture(caption, png))
    return pictures


def _choose_worst(images: Sequence[ImageScore]) -> list[list[FieldScore]]:
    """The worst fields of all images together, by image."""
    fields = [
        (k, field.region in strips, field)
        for k, score in enumerate(images)
        for strips in [find_strips(score.fields)]
        for field in choose_fields(score.fields, N_WORST)
    ]
    worst = sorted(fields, key=lambda item: (item[1], item[2].score.ap))[:N_WORST]
    return [[field for image, _, field in worst if image == k] for k in range(len(images))]


def _draw(
    truth: PixelSource,
    pred: PixelSource,
    score: ImageScore,
    background: Pixels | None,
    region: Region | None,
) -> bytes:
    """A PNG of a region, or of the whole image."""
    part = region or Region(0, 0, *truth.shape)
    grey = None
    if background is not None:
        grey = background.read(part).max(axis=0)
    scale = max(1, min(MAX_SCALE, PICTURE_PX // max(part.shape)))
    labels = as_labels(truth[part.slices]), as_labels(pred[part.slices])
    return encode_png(draw_overlay(*labels, score.cells, grey, scale=scale))
