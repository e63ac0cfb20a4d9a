"""Whole runs on microscopes' files: labels know no tiles, and workers open the file themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest

from densebatch.run.segment import segment
from tests.helpers import microscope_files as files
from tests.helpers.run_files import call_main, output_bytes, read_report, read_result, simulate

pytestmark = pytest.mark.extra
PIXELS = np.repeat(simulate(140, 190, seed=3), 2, 0)[:2]
PIXELS[0] //= 2
OPTIONS = {"membrane": ("CD3",), "model": "dense-tiny", "device": "cpu", "pixel_size": 0.5}


def czi(folder):
    pytest.importorskip("pylibCZIrw", reason="writes CZI files, and is not installed")
    return files.write_czi(folder / "a.czi", np.stack([PIXELS // 3, PIXELS])), {"z": "max"}


def mcd(folder):
    pytest.importorskip("readimc")
    images = [("left", PIXELS[:, :90] // 2), ("right", PIXELS)]
    return files.write_mcd(folder / "a.mcd", images), {"scene": "right"}


def txt(folder):
    pytest.importorskip("readimc")
    return files.write_imc_txt(folder / "a.txt", PIXELS), {}


def lif(folder):
    pytest.importorskip("liffile")
    return files.write_lif(folder / "a.lif", [("one", PIXELS[None])]), {}


def nd2(folder):
    pytest.importorskip("nd2")
    return files.write_nd2(folder / "a.nd2", np.stack([PIXELS // 3, PIXELS])), {"z": "1"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Labels of the same pixels in a file that every other test is about."""
    from tests.helpers.run_files import write_tiff

    folder = tmp_path_factory.mktemp("tiff")
    slide = write_tiff(folder / "a.ome.tif", PIXELS, files.NAMES)
    segment(slide, folder / "out", workers=0, **OPTIONS)
    labels = read_result(folder / "out")[0]
    assert labels.max() > 20
    return labels


@pytest.mark.parametrize("write", [czi, mcd, txt, lif, nd2])
def test_labels_are_those_of_a_tiff_whatever_the_tile(tmp_path, write, expected):
    slide, chosen = write(tmp_path)
    segment(slide, tmp_path / "small", workers=0, tile=96, **OPTIONS, **chosen)
    segment(slide, tmp_path / "large", workers=0, tile=2048, **OPTIONS, **chosen)
    np.testing.assert_array_equal(read_result(tmp_path / "small")[0], expected)
    assert output_bytes(tmp_path / "small") == output_bytes(tmp_path / "large")
    told = read_report(tmp_path / "small")["plan"]["slide"]
    for name, value in chosen.items():
        assert told[name] == ("#1" if name == "scene" else value)


@pytest.mark.slow
@pytest.mark.parametrize("write", [czi, mcd])
def test_workers_open_the_file_themselves(tmp_path, write, expected):
    slide, chosen = write(tmp_path)
    segment(slide, tmp_path / "out", workers=2, tile=96, **OPTIONS, **chosen)
    np.testing.assert_array_equal(read_result(tmp_path / "out")[0], expected)


def test_a_panel_names_and_chooses_channels(tmp_path, capsys):
    slide, chosen = mcd(tmp_path)
    panel = tmp_path / "panel.csv"
    panel.write_text(
        "channel,name,keep,ilastik,deepcell\nGd158,CD45,1,,2\nIr191,DNA,1,1,1\n", encoding="utf-8"
    )
    out, scene = tmp_path / "out", ("--scene", chosen["scene"], "--panel", str(panel))
    options = (*scene, "--model", "dense-tiny", "--pixel-size", "0.5", "--workers", "0")
    code, said, err = call_main(capsys, "plan", slide, out, "--json", *options)
    assert code == 0, err
    plan = json.loads(said)["plan"]
    assert plan["slide"]["channels"] == ["CD45", "DNA"]
    assert [bounds["name"] for bounds in plan["membrane"]] == ["CD45"]
    notes = " ".join(plan["notes"])
    assert "the panel's membrane channels are 'CD45'" in notes
    assert "the panel's nuclear channels are 'DNA'" in notes
    assert call_main(capsys, "segment", slide, out, *options)[0] == 0
    assert read_report(out)["plan"]["slide"]["panel"] == str(panel)
    # The same panel in another place is the same run.
    again = panel.rename(tmp_path / "renamed.csv")
    options = [str(again) if text == str(panel) else text for text in options]
    assert call_main(capsys, "segment", slide, out, *options)[0] == 0

    bad = {
        "name,keep\nCD45,1\n": "has the columns 'name', 'keep'; accepted are CSV files",
        "channel,keep\nGd158,maybe\n": "line 2: keep is 'maybe'; accepted are 1, 0 and nothing",
        "channel,deepcell\nGd158,3\n": "line 2: deepcell is '3'; accepted are 1 (nuclei)",
        "channel\nXe131\n": "has no channel 'Xe131'; its channels are 'Ir191', 'Gd158'",
        "channel\nGd158\nGd158\n": "another line for the channel 'Gd158'",
        "channel,keep\nGd158,0\n": "keeps no channel",
    }
    for text, said in bad.items():
        again.write_text(text)
        code, _, err = call_main(capsys, "info", slide, "--scene", "0", "--panel", str(again))
        assert (code, said in err) == (2, True), err
