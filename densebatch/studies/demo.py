"""The demo: simulate a slide with exact truth, segment cells and nuclei, score, show on a page."""

from __future__ import annotations

import json
import logging
import shlex
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
from densebatch.simulation.tissue import CHANNELS, Tissue
from densebatch.slides.slide import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from densebatch.scoring.results import ImageScore

log = logging.getLogger(__name__)

_CROP_PX = 384
_SCALE = 2  # of the pictures
_NUCLEI_MODEL = "dense-nuclei"
_NUCLEI_UM = 4.5  # median diameter, which the network has to be told


@dataclass(frozen=True)
class Scored:
    """A run on the simulated slide, and its score.

    Attributes
    ----------
    channel : that was segmented
    truth : label image
    result, score : of the run
    """

    channel: str
    truth: Path
    result: SegmentResult
    score: ImageScore


@dataclass(frozen=True)
class DemoResult:
    """What the demo made: cells and nuclei with their scores, and the page."""

    cells: Scored
    nuclei: Scored
    page: Path


def run_demo(
    out: Path,
    *,
    size_px: int = 2048,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DemoResult:
    """Simulate, segment cells and nuclei, score both and write `out/index.html`.

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
        The runs, their scores, and the page.

    Raises
    ------
    InputError
        If `out` is in use, or cannot be written.
    """
    tissue = Tissue(height=size_px, width=size_px, seed=seed, empty_fraction=0.2)
    _claim_folder(out, tissue)
    slide = _simulate_slide(out, tissue, progress)
    cells = SegmentSettings(membrane=(CHANNELS[0],), workers=workers)
    nuclei = SegmentSettings(
        membrane=(CHANNELS[1],), model=_NUCLEI_MODEL, diameter_um=_NUCLEI_UM, image="none",
        workers=workers,
    )  # fmt: skip
    made = DemoResult(
        _segment(slide, "truth", out / "result", cells, progress),
        _segment(slide, "nuclei", out / "nuclei", nuclei, progress),
        out / "index.html",
    )
    made.page.write_text(_write_page(tissue, slide, made), encoding="utf-8")
    log_event(log, "page written", path=str(made.page))
    return made


def _segment(
    slide: Path, truth: str, out: Path, settings: SegmentSettings, progress: Progress | None
) -> Scored:
    """Segment a channel and compare with one of the slide's label images."""
    result = segment(slide, out, settings, progress=progress)
    labels = slide / "labels" / truth
    score = score_files(result.labels, labels, ScoreOptions(), workers=2).images[0]
    return Scored(settings.membrane[0], labels, result, score)


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
    if not (done.exists() and (slide / "labels" / "nuclei").exists()):
        shutil.rmtree(slide, ignore_errors=True)
        if progress is not None:
            progress.note(f"simulating {tissue.height} x {tissue.width} px of tissue")
        write_slide(tissue, slide, nuclei=True, threads=2)
        done.touch()
    return slide


def _write_page(tissue: Tissue, slide: Path, made: DemoResult) -> str:
    """The page: one field in pictures, the score at each threshold, how to look at it."""
    crop = _choose_crop(made.cells.score, (tissue.height, tissue.width))
    report = made.cells.result.report
    rows = [
        [
            format_threshold(threshold),
            *map(str, (at.tp, at.fp, at.fn)),
            *map(format_number, (at.ap, at.precision, at.recall, of_nuclei.ap)),
        ]
        for threshold, at, of_nuclei in zip(
            made.cells.score.settings.thresholds,
            made.cells.score.by_threshold,
            made.nuclei.score.by_threshold,
            strict=True,
        )
    ]
    return render_page(
        "demo.html",
        title="densebatch demo",
        tissue=tissue,
        n_truth=made.cells.score.n_truth,
        n_found=made.cells.result.cells,
        n_nuclei=made.nuclei.score.n_truth,
        n_nuclei_found=made.nuclei.score.at("0.50").tp,
        n_nuclei_spurious=made.nuclei.score.at("0.50").fp,
        nuclei_um=_NUCLEI_UM,
        seconds=report["seconds"]["total"],
        network_patches=report["network_patches"],
        ap=format_number(made.cells.score.at("0.50").ap),
        nuclei_ap=format_number(made.nuclei.score.at("0.50").ap),
        pictures=_draw(made.cells, slide, crop),
        nuclei_pictures=_draw(made.nuclei, slide, crop),
        headings=["IoU", "TP", "FP", "FN", "AP", "precision", "recall", "AP of nuclei"],
        rows=rows,
        views=shlex.join(
            [str(slide.absolute()), report["view"], made.nuclei.result.report["view"]]
        ),
    )


def _draw(found: Scored, slide: Path, crop: Region) -> list[Picture]:
    """A field of a run in three pictures."""
    image = open_slide(slide).read(CHANNELS.index(found.channel), crop)
    expected = open_labels(found.truth)[crop.slices]
    labels = open_labels(found.result.labels)[crop.slices]
    where = f"rows {crop.y0} to {crop.y1}, columns {crop.x0} to {crop.x1}"
    drawn = {
        f"Truth (red), {where}": draw_outlines(expected, image, RED, scale=_SCALE),
        "Prediction (yellow)": draw_outlines(labels, image, YELLOW, scale=_SCALE),
        "What matched: truth red, found yellow, spurious green; red alone was missed": draw_overlay(
            expected, labels, found.score.cells, image, scale=_SCALE
        ),
    }
    return [Picture(caption, encode_png(pixels)) for caption, pixels in drawn.items()]


def _choose_crop(score: ImageScore, shape: tuple[int, int]) -> Region:
    """A field of median score among those with many cells: neither the best nor the worst."""
    fields = sorted(score.fields, key=lambda f: f.score.tp + f.score.fn)
    crowded = sorted(fields[len(fields) // 2 :], key=lambda f: f.score.ap)
    at = crowded[len(crowded) // 2].region if crowded else Region(0, 0, *shape)
    y0 = max(0, min(at.y0, shape[0] - _CROP_PX))
    x0 = max(0, min(at.x0, shape[1] - _CROP_PX))
    return Region(y0, x0, y0 + _CROP_PX, x0 + _CROP_PX).clip(*shape)
