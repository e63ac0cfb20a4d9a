"""Slides of several formats in one sheet, and one word for what each is taken to be."""

from __future__ import annotations

import json

import numpy as np
import pytest
from skimage.io import imsave

from tests.helpers.run_files import call_main, read_report, simulate, write_tiff
from tests.helpers.slide_files import write_zarr
from tests.readers.test_runs import txt


@pytest.mark.extra
def test_a_sheet_of_several_formats(tmp_path, capsys):
    pytest.importorskip("readimc")
    pixels = simulate(180, 220, seed=3)
    write_tiff(tmp_path / "a.ome.tif", pixels, ["CD3", "DAPI"])
    write_zarr(tmp_path / "b.ome.zarr", pixels, labels=["CD3", "DAPI"])
    imsave(tmp_path / "c.png", (pixels[0] // 16).astype(np.uint8), check_contrast=False)
    slides = {"a": "a.ome.tif", "b": "b.ome.zarr", "c": "c.png", "d": txt(tmp_path)[0].name}
    membranes = dict.fromkeys(slides, "0")
    rows = [f"{sample},{slide},{membranes[sample]}" for sample, slide in slides.items()]
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("\n".join(["sample,slide,membrane", *rows]) + "\n")
    out = tmp_path / "out"
    options = ("--model", "dense-tiny", "--workers", 0)
    code, _, err = call_main(capsys, "segment", "--sheet", sheet, out, *options)
    assert code == 0, err
    told = json.loads((out / "cohort.json").read_text())["samples"]
    assert [(row["sample"], row["state"]) for row in told] == [(name, "done") for name in slides]
    for sample, slide in slides.items():
        _, printed, _ = call_main(capsys, "info", tmp_path / slide, "--json", "-")
        info = json.loads(printed)
        _, printed, _ = call_main(
            capsys, "plan", tmp_path / slide, tmp_path / "none", "--membrane", "0", *options,
            "--json",
        )  # fmt: skip
        planned = json.loads(printed)["plan"]["slide"]
        assert planned == read_report(out / sample)["plan"]["slide"]
        assert planned["kind"] == info["format"]
        assert planned["channels"] == info["channels"]
        assert planned["um_per_px"] == info["um_per_px"]
        assert planned["um_per_px_from"] == info["um_per_px_from"]
        assert [planned["height"], planned["width"]] == info["shape"]
        assert planned["dtype"] == info["dtype"]
