"""The demo: simulate a slide with exact truth, segment it, score it, show it on one page."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.cells.read import open_labels
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import Progress, SegmentResult, segment
from densebatch.scoring.files import ScoreOptions, score_files
from densebatch.scoring.overlay import RED, YELLOW, draw_overlay, encode_png
from densebatch.scoring.results import CellMatches
from densebatch.slides.simulated import Tissue
from densebatch.slides.simulated_file import write_slide
from densebatch.slides.slide import open_slide

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.scoring.results import ImageScore

_CROP_PX = 384
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;margin:2rem auto;max-width:76rem;"
    "padding:0 1rem}.row{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0}"
    "figure img{width:24rem;max-width:100%;image-rendering:pixelated}"
    "figcaption{font-size:.9em;max-width:24rem}table{border-collapse:collapse}"
    "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}"
    "code{background:#f3f3f3;padding:.1em .3em}"
)


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

    Raises
    ------
    InputError
        If `out` is in use.
    """  # fmt: skip
    tissue = Tissue(height=size_px, width=size_px, seed=seed, empty_fraction=0.2)
    slide = out / "slide.ome.zarr"
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
    done = out / ".simulated"
    if not done.exists():
        shutil.rmtree(slide, ignore_errors=True)
        if progress is not None:
            progress.note(f"simulating {size_px} x {size_px} px of tissue")
        write_slide(tissue, slide, threads=2)
        done.touch()
    settings = SegmentSettings(membrane=("membrane",), workers=workers)
    result = segment(slide, out / "result", settings, progress=progress)
    truth = slide / "labels" / "truth"
    score = score_files(result.labels, truth, ScoreOptions(), workers=2).images[0]
    page = out / "index.html"
    page.write_text(_write_page(tissue, slide, truth, result, score), encoding="utf-8")
    return DemoResult(result, score, page)


def _pick_crop(score: ImageScore, shape: tuple[int, int]) -> Region:
    """A field of median score among those with many cells: neither the best nor the worst."""
    fields = sorted(score.fields, key=lambda f: f.score.tp + f.score.fn)
    crowded = sorted(fields[len(fields) // 2 :], key=lambda f: f.score.ap)
    at = crowded[len(crowded) // 2].region if crowded else Region(0, 0, *shape)
    y0 = max(0, min(at.y0, shape[0] - _CROP_PX))
    x0 = max(0, min(at.x0, shape[1] - _CROP_PX))
    return Region(y0, x0, y0 + _CROP_PX, x0 + _CROP_PX).clip(*shape)


def _outline(
    labels: NDArray[np.uint32], image: NDArray[np.generic], colour: tuple[int, int, int]
) -> bytes:
    """A label image's outlines on the tissue, in one colour."""
    nothing = np.zeros(0, np.uint32)
    ids = np.unique(labels[labels > 0])
    none = np.zeros(ids.size, bool)
    if colour == RED:
        cells = CellMatches(ids, none, nothing, none[:0], none[:0])
        return encode_png(draw_overlay(labels, np.zeros_like(labels), cells, image, scale=2))
    cells = CellMatches(nothing, none[:0], ids, ~none, none)
    return encode_png(draw_overlay(np.zeros_like(labels), labels, cells, image, scale=2))


def _figure(png: bytes, caption: str) -> str:
    coded = base64.b64encode(png).decode()
    text = escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{coded}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def _write_page(
    tissue: Tissue, slide: Path, truth: Path, result: SegmentResult, score: ImageScore
) -> str:
    """One page without anything to load from elsewhere."""
    crop = _pick_crop(score, (tissue.height, tissue.width))
    image = open_slide(slide).read(0, crop)
    expected = open_labels(truth)[crop.slices]
    found = open_labels(result.labels)[crop.slices]
    if score.cells is None:
        raise ValueError("the score does not tell what became of each cell")
    matched = encode_png(draw_overlay(expected, found, score.cells, image, scale=2))
    where = f"rows {crop.y0} to {crop.y1}, columns {crop.x0} to {crop.x1}"
    rows = "".join(
        f"<tr><td>{float(threshold):.2f}</td><td>{at.tp}</td><td>{at.fp}</td><td>{at.fn}</td>"
        f"<td>{at.ap:.3f}</td><td>{at.precision:.3f}</td><td>{at.recall:.3f}</td></tr>"
        for threshold, at in zip(score.settings.thresholds, score.by_threshold, strict=True)
    )
    report = result.report
    return "".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width'><title>densebatch demo</title>",
            f"<style>{_STYLE}</style></head><body><h1>densebatch demo</h1>",
            f"<p>A simulated slide of {tissue.height} x {tissue.width} px "
            f"({tissue.um_per_px} µm/px, seed {tissue.seed}) with {score.n_truth} stained cells; "
            f"the network, trained on real tissue only, found {result.cells} in "
            f"{report['seconds']['total']:.0f} s. It was evaluated on {report['network_patches']} "
            "patches; empty glass was skipped.</p>",
            f"<p>AP at IoU 0.50: <b>{score.at('0.50').ap:.3f}</b></p><div class='row'>",
            _figure(_outline(expected, image, RED), f"Truth (red), {where}"),
            _figure(_outline(found, image, YELLOW), "Prediction (yellow)"),
            _figure(matched, "What matched: found yellow, missed red, spurious green"),
            "</div><h2>Score</h2><table><tr><th>IoU</th><th>TP</th><th>FP</th><th>FN</th>"
            f"<th>AP</th><th>precision</th><th>recall</th></tr>{rows}</table>",
            f"<h2>Look at it</h2><p><code>napari --plugin napari-ome-zarr {escape(str(slide))}"
            f"</code><br><code>napari --plugin napari-ome-zarr {escape(report['view'])}</code></p>",
            "</body></html>\n",
        ]
    )
