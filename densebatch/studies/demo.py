"""The demo: simulate a slide with exact truth, segment it, score it, show it on one page."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.log import log_event
from densebatch.base.page import Picture, render_page
from densebatch.cells.read import open_labels
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import Progress, SegmentResult, segment
from densebatch.scoring.files import ScoreOptions, score_files
from densebatch.scoring.overlay import RED, YELLOW, draw_outlines, draw_overlay, encode_png
from densebatch.scoring.report import format_number
from densebatch.scoring.settings import format_threshold
from densebatch.simulation.slide_file import write_slide
from densebatch.simulation.tissue import Tissue
from densebatch.slides.slide import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.scoring.results import ImageScore

log = logging.getLogger(__name__)

_CROP_PX = 384
_SCALE = 2  # of the pictures


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: the run, its score, and the page."""

    result: SegmentResult
    score: ImageScore
    page: Path


def run_demo(
    out: Path,
    *,
    size_px: int = 2048,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Simulate, segment, score and write `out/index.html`.

    Parameters
    ----------
    out
        Folder: absent, empty, or of the same demo, which is then completed.
    size_px
        Side of the simulated slide.
    seed
        Of the simulation.
    workers
        As for `segment`.
    progress
        Receives stages and tasks.

    Returns
    -------
    DemoResult
        The run, its score, and the page.

    Raises
    ------
    InputError
        If `out` is in use, or cannot be written.
    """
    tissue = Tissue(height=size_px, width=size_px, seed=seed, empty_fraction=0.2)
    _claim_folder(out, tissue)
    slide = _simulate_slide(out, tissue, progress)
    settings = SegmentSettings(membrane=("membrane",), workers=workers)
    result = segment(slide, out / "result", settings, progress=progress)
    truth = slide / "labels" / "truth"
    score = score_files(result.labels, truth, ScoreOptions(), workers=2).images[0]
    page = out / "index.html"
    page.write_text(_write_page(tissue, slide, truth, result, score), encoding="utf-8")
    log_event(log, "page written", path=str(page))
    return DemoResult(result, score, page)


def _claim_folder(out: Path, tissue: Tissue) -> None:
    """Make the folder and mark it as this demo's, unless it holds something else."""
    marker = out / "demo.json"
    identity = json.dumps(asdict(tissue), sort_keys=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and (not marker.exists() or marker.read_text() != identity):
            raise InputError(
                f"{out}: is in use; accepted is a new or empty folder, or one of the same demo"
            )
        marker.write_text(identity)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error


def _simulate_slide(out: Path, tissue: Tissue, progress: Progress | None) -> Path:
    """The slide, with its truth as labels inside; a whole one of an earlier call is kept."""
    slide, done = out / "slide.ome.zarr", out / ".simulated"
    if not done.exists():
        shutil.rmtree(slide, ignore_errors=True)
        if progress is not None:
            progress.note(f"simulating {tissue.height} x {tissue.width} px of tissue")
        write_slide(tissue, slide, threads=2)
        done.touch()
    return slide


def _write_page(
    tissue: Tissue, slide: Path, truth: Path, result: SegmentResult, score: ImageScore
) -> str:
    """The page: one field in three pictures, the score at each threshold, how to look at it."""
    crop = _choose_crop(score, (tissue.height, tissue.width))
    image = open_slide(slide).read(0, crop)
    expected = open_labels(truth)[crop.slices]
    found = open_labels(result.labels)[crop.slices]
    where = f"rows {crop.y0} to {crop.y1}, columns {crop.x0} to {crop.x1}"
    drawn = {
        f"Truth (red), {where}": draw_outlines(expected, image, RED, scale=_SCALE),
        "Prediction (yellow)": draw_outlines(found, image, YELLOW, scale=_SCALE),
        "What matched: found yellow, missed red, spurious green": draw_overlay(
            expected, found, score.cells, image, scale=_SCALE
        ),
    }
    rows = [
        [
            format_threshold(threshold),
            *map(str, (at.tp, at.fp, at.fn)),
            *map(format_number, (at.ap, at.precision, at.recall)),
        ]
        for threshold, at in zip(score.settings.thresholds, score.by_threshold, strict=True)
    ]
    report = result.report
    return render_page(
        "demo.html",
        title="densebatch demo",
        tissue=tissue,
        n_truth=score.n_truth,
        n_found=result.cells,
        seconds=report["seconds"]["total"],
        network_patches=report["network_patches"],
        ap=format_number(score.at("0.50").ap),
        pictures=[Picture(caption, encode_png(pixels)) for caption, pixels in drawn.items()],
        headings=["IoU", "TP", "FP", "FN", "AP", "precision", "recall"],
        rows=rows,
        views=[slide, report["view"]],
    )


def _choose_crop(score: ImageScore, shape: tuple[int, int]) -> Region:
    """A field of median score among those with many cells: neither the best nor the worst."""
    fields = sorted(score.fields, key=lambda f: f.score.tp + f.score.fn)
    crowded = sorted(fields[len(fields) // 2 :], key=lambda f: f.score.ap)
    at = crowded[len(crowded) // 2].region if crowded else Region(0, 0, *shape)
    y0 = max(0, min(at.y0, shape[0] - _CROP_PX))
    x0 = max(0, min(at.x0, shape[1] - _CROP_PX))
    return Region(y0, x0, y0 + _CROP_PX, x0 + _CROP_PX).clip(*shape)
