"""The demo, on a small slide: what the page says is what was run and scored."""

import json
import re
import shlex

import pytest

from densebatch.base.errors import InputError
from densebatch.run.segment import Progress
from densebatch.scoring.files import score_files
from densebatch.studies.demo import run_demo


class Notes(Progress):
    """Keeps what is noted."""

    def __init__(self):
        self.noted = []

    def note(self, text):
        self.noted.append(text)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    notes = Notes()
    return out, run_demo(out, size_px=256, seed=3, workers=0, progress=notes), notes.noted


def test_the_page_tells_the_run_and_its_score(made):
    out, demo, noted = made
    assert demo.page == out / "index.html"
    page = demo.page.read_text(encoding="utf-8")
    assert "A simulated slide of 256 x 256 px (0.5 µm/px, seed 3) with" in page
    assert f" with {demo.cells.score.n_truth} stained cells" in page
    assert f"found {demo.cells.result.cells} in" in page
    at = demo.cells.score.at("0.50")
    assert at.tp >= 10
    assert f"AP at IoU 0.50: <b>{at.ap:.3f}</b>" in page
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)][1:]
    assert [row[0] for row in rows] == [f"0.{k}" for k in range(50, 100, 5)]
    assert rows[0][1:5] == [f"{at.tp}", f"{at.fp}", f"{at.fn}", f"{at.ap:.3f}"]
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 6
    nuclei = demo.nuclei.score
    assert f"found {nuclei.at('0.50').tp} of the {nuclei.n_truth} nuclei" in page
    assert f"and {nuclei.at('0.50').fp} more that are none" in page
    assert rows[0][7] == f"{nuclei.at('0.50').ap:.3f}"
    assert f"AP at IoU 0.50: <b>{nuclei.at('0.50').ap:.3f}</b>" in page
    assert "told that nuclei are 4.5 µm wide" in page
    labels = [str(run.result.labels) for run in (demo.cells, demo.nuclei)]
    look = shlex.join([str(out / "slide.ome.zarr"), *labels])
    assert f"napari --plugin napari-ome-zarr {look}</code>" in page
    assert noted[0] == "simulating 256 x 256 px of tissue"


def test_the_score_is_that_of_the_files(made):
    out, demo, _ = made
    truth = out / "slide.ome.zarr" / "labels"
    for run, name in ((demo.cells, "truth"), (demo.nuclei, "nuclei")):
        (score,) = score_files(run.result.labels, truth / name).images
        assert score == run.score


def test_nuclei_of_dark_cells_are_found_too(made):
    _, demo, _ = made
    score = demo.nuclei.score
    assert score.n_truth > demo.cells.score.n_truth
    assert score.at("0.50").ap > 0.8


def test_the_same_demo_is_completed_and_another_refused(made):
    out, demo, _ = made
    notes = Notes()
    again = run_demo(out, size_px=256, seed=3, workers=0, progress=notes)
    assert (again.cells.score, again.nuclei.score) == (demo.cells.score, demo.nuclei.score)
    assert not [text for text in notes.noted if text.startswith("simulating")]
    with pytest.raises(InputError, match="is in use; accepted is a new or empty folder"):
        run_demo(out, size_px=256, seed=4, workers=0)
    assert json.loads((out / "demo.json").read_text())["seed"] == 3


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        run_demo(tmp_path / "file" / "out", size_px=256)
