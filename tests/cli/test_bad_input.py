"""Bad input on the command line: one sentence, exit code 2, and nothing left behind."""

import json
import os
import socket

import numpy as np
import pytest
import tifffile
import torch
import zarr

from densebatch.workers import scheduler
from tests.helpers.run_files import (
    call_main,
    run_command,
    simulate,
    write_tiff,
)
from tests.helpers.slide_files import edit_json, write_png, write_zarr

PIXELS = simulate(90, 120)


@pytest.fixture
def slide(tmp_path):
    return write_tiff(tmp_path / "a.ome.tif", PIXELS, ["CD3", "DAPI"])


def refused(capsys, tmp_path, *arguments, code=2):
    """The sentence, after the checks that hold for all of them."""
    before = sorted(tmp_path.rglob("*"))
    found, out, err = call_main(capsys, *arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not err.endswith(".\n")
    assert sorted(tmp_path.rglob("*")) == before
    return err.removeprefix("error: ").strip()


# slides: what was found and what is accepted is told by the readers, whose tests know every case


def grey(tmp_path):
    return write_tiff(tmp_path / "a.tif", PIXELS[:1], ["CD3"])


def missing(tmp_path):
    return tmp_path / "a.tif", "does not exist; accepted are OME-Zarr folders, TIFF and PNG files"


def no_zarr(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    return tmp_path / "a.zarr", "is a folder without Zarr metadata"


def text_file(tmp_path):
    (tmp_path / "a.tif").write_text("Hello")
    return tmp_path / "a.tif", "neither TIFF nor PNG; accepted are"


def stack(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS, metadata={"axes": "ZYX"})
    return (
        tmp_path / "a.ome.tif",
        "holds 2 images along Z (focal planes), and one image of all channels is accepted",
    )


def colours(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    return tmp_path / "a.tif", "colour image whose planes differ, and none was named; name one"


def several_channels(tmp_path):
    path = write_tiff(tmp_path / "a.ome.tif", PIXELS, ["CD3", "DAPI"])
    return path, "`membrane` in a file of settings, one or more of 'CD3', 'DAPI'"


def no_pixels(tmp_path):
    return write_png(tmp_path / "a.png", 0, 5, 8, 0, [b""] * 5), "at least one pixel"


def truncated(tmp_path):
    path = grey(tmp_path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path, "is truncated"


def empty_tile(tmp_path):
    path = grey(tmp_path)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        counts = tif.pages[0].tags[325]
        counts.overwrite((0, *counts.value[1:]))
    return path, "no pixels for tile 0 of page 0"


def complex_pixels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.complex64))
    return tmp_path / "a.tif", "has pixels of type complex64; accepted are uint8"


def absurd_plane(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS)
    edit_json(path / "0" / "zarr.json", shape=[2, 10**9, 10**9])
    return path, f"declares 1000000000 x 1000000000 = {10**18} px"


def undecodable(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    next((path / "0" / "c").rglob("1/1")).write_bytes(b"nonsense")
    return path, "cannot be read in rows 0 to 90, columns 0 to 120 of channel '0'"


def not_utf8(tmp_path):
    path = grey(tmp_path)
    renamed = os.fsencode(tmp_path) + b"/a\xff.tif"
    os.rename(path, renamed)  # noqa: PTH104  a Path would be the same
    return os.fsdecode(renamed), "the name is not valid UTF-8"


@pytest.mark.parametrize(
    "make",
    [
        missing, no_zarr, text_file, stack, colours, several_channels, no_pixels, truncated,
        empty_tile, complex_pixels, absurd_plane, not_utf8,
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_slide(capsys, tmp_path, command, make):
    path, words = make(tmp_path)
    message = refused(capsys, tmp_path, command, path, tmp_path / "out" / "of" / "it")
    assert words in message
    assert "a" in message


def test_a_slide_that_cannot_be_decoded_where_all_depends_on_it(capsys, tmp_path):
    """What cannot be read costs itself; here that is everything, and it is told."""
    path, _ = undecodable(tmp_path)
    code, out, _ = call_main(capsys, "plan", path, tmp_path / "out")
    assert code == 0
    assert "1 piece cannot be read" in out
    code, _, err = call_main(capsys, "segment", path, tmp_path / "out", "--workers", 0)
    assert code == 1
    assert "no tile could be segmented" in err


def test_a_slide_too_large_for_this_machine_is_not_read(capsys, tmp_path):
    """10^12 px that a small file declares, which nobody could wait for: refused by their number."""
    path = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    edit_json(path / "0" / "zarr.json", shape=[1, 10**6, 10**6])
    message = refused(capsys, tmp_path, "segment", path, tmp_path / "out", "--workers", 1)
    assert "out: the run needs about 7" in message
    assert "MB of disk and" in message


# settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--membrane", "CD4"), "has no channel 'CD4'; accepted are 'CD3', 'DAPI', or an index"),
        (("--membrane", "CD3,DAPI,2"), "has no channel '2'"),
        (("--membrane", "CD3,cd3"), "name one channel twice"),
        (("--membrane", " , "), "' , ' names no channel"),
        (("--nuclei", "x", "--membrane", "0"), "has no channel 'x'"),
        (("--model", "cyto9"), "model 'cyto9' is neither bundled (dense"),
        (("--model", "SLIDE"), "a.ome.tif: "),
        (("--pixel-size", "nan"), "setting 'pixel_size' = nan: "),
        (("--pixel-size", "-1"), "setting 'pixel_size' = -1.0: "),
        (("--pixel-size", "1e9"), "accepted is 0.0625 to 8"),
        (("--diameter", "-3"), "setting 'diameter' = '-3': input should be greater than 0"),
        (("--diameter", "inf"), "setting 'diameter' = 'inf': "),
        (("--diameter", "big"), "accepted are a diameter in px, and auto"),
        (("--diameter", "15", "--diameter-um", "8"), "both set the scale; accepted is one of them"),
        (("--diameter", "0.5"), "accepted is 0.0625 to 8"),
        (("--flow-threshold", "nan"), "setting 'flow_threshold' = nan: "),
        (("--cellprob-threshold", "nan"), "setting 'cellprob_threshold' = nan: "),
        (("--min-size", "-1"), "setting 'min_size' = -1: "),
        (("--max-size", str(10**30)), "accepted is up to 2147483647 px"),
        (("--tile", "10"), "setting 'tile' = 10: "),
        (("--tile", "large"), "'large' is not a valid integer; see '"),
        (("--workers", "-1"), "setting 'workers' = -1: "),
        (("--patience", "soon"), "setting 'patience' = 'soon': accepted are seconds, or a number"),
        (("--tls-cert", "a.pem"), "are for a running scheduler, and none is given"),
        (("--workers", "100000"), "100000 workers need"),
        (("--ngff", "0.6"), "'0.6' is not one of '0.4', '0.5'"),
        (("--in-place",), "can be written in place only into OME-Zarr, this is tiff"),
        (("--confg", "x"), "No such option"),
        (("--config", "none.yaml"), "none.yaml: not a readable YAML file"),
    ],
)  # fmt: skip
def test_settings(capsys, tmp_path, slide, options, words):
    chosen = [str(slide) if option == "SLIDE" else option for option in options]
    if "--membrane" not in chosen:
        chosen += ["--membrane", "CD3"]
    message = refused(capsys, tmp_path, "segment", slide, tmp_path / "out", *chosen)
    assert words in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(capsys, tmp_path, slide):
    arguments = ("segment", slide, tmp_path / "out", "--membrane", "CD3", "--device", "cuda")
    message = refused(capsys, tmp_path, *arguments)
    assert message == "device cuda: this process sees none; accepted here are auto and cpu"


def test_no_arguments(capsys, tmp_path):
    assert "Missing argument 'OUT'" in refused(capsys, tmp_path, "segment")
    assert "Missing argument 'SLIDE...'" in refused(capsys, tmp_path, "segment", "a.tif")
    assert "No such command 'segmet'" in refused(capsys, tmp_path, "segmet")


# the output folder


def test_a_folder_of_somebody(capsys, tmp_path, slide):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    for options in ([], ["--restart"]):
        message = refused(capsys, tmp_path, "segment", slide, out, "--membrane", "CD3", *options)
        assert message == (
            f"{out}: holds 'thesis.tex' and is no output of densebatch; accepted is a new or empty "
            "folder, or one of the same run"
        )
    assert (out / "thesis.tex").read_text() == "precious"
    # a slide is such a folder too
    zarr = write_zarr(tmp_path / "b.zarr", PIXELS[:1])
    assert "holds '0' and is no output" in refused(capsys, tmp_path, "segment", zarr, zarr)


def test_a_file_as_folder(capsys, tmp_path, slide):
    for out in (slide, slide / "below"):
        message = refused(capsys, tmp_path, "segment", slide, out, "--membrane", "CD3")
        assert "cannot be used as output folder" in message
        assert "accepted is a folder that can be created or written" in message


@pytest.mark.parametrize("out", ["/proc/densebatch/out", "/dev/null/out", "x" * 300])
def test_a_folder_that_cannot_be_made(capsys, tmp_path, slide, out):
    message = refused(capsys, tmp_path, "segment", slide, out, "--membrane", "CD3", "--workers", 0)
    # Linux's own file systems have no room, and root may try
    assert "accepted is a folder that can be created or written" in message or "0 MB are" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(capsys, tmp_path, slide):
    tmp_path.chmod(0o500)
    message = refused(capsys, tmp_path, "segment", slide, tmp_path / "out", "--membrane", "CD3")
    tmp_path.chmod(0o700)
    assert "is not writable" in message


def test_another_run(capsys, tmp_path, slide):
    out = tmp_path / "out"
    arguments = ("segment", slide, out, "--membrane", "CD3", "--workers", 0)
    assert call_main(capsys, *arguments)[0] == 0
    message = refused(capsys, tmp_path, *arguments, "--min-size", 20)
    assert "holds another run: trace.min_size_px was 15 and is now 20; choose another" in message
    message = refused(capsys, tmp_path, *arguments, "--diameter", 20)
    assert "holds another run: trace." in message or "holds another run: rescale" in message
    message = refused(capsys, tmp_path, *arguments[:3], "--membrane", "DAPI", "--workers", 0)
    assert "holds another run: membrane[0]." in message


def test_labels_of_another_run_in_the_slide(capsys, tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    arguments = ("segment", slide, tmp_path / "one", "--in-place", "--workers", 0)
    assert call_main(capsys, *arguments)[0] == 0
    other = ("segment", slide, tmp_path / "two", "--in-place", "--workers", 0, "--min-size", 30)
    message = refused(capsys, tmp_path, *other)
    assert "labels/cells belongs to another run (fingerprint: " in message
    assert "use --restart" in message
    assert call_main(capsys, *other, "--restart")[0] == 0
    # the first run's labels are gone, whatever its folder says
    message = refused(capsys, tmp_path, *arguments)
    assert "labels/cells belongs to another run (fingerprint: " in message


def test_a_refused_restart_leaves_what_was_there(capsys, tmp_path):
    """Labels in the slide that somebody else wrote, and a finished run in the output folder."""
    slide = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    arguments = ("segment", slide, tmp_path / "out", "--workers", 0)
    assert call_main(capsys, *arguments)[0] == 0
    foreign = zarr.open_group(str(slide), mode="r+").create_group("labels/cells")
    foreign.attrs["by"] = "somebody"
    message = refused(capsys, tmp_path, *arguments, "--in-place", "--restart")
    assert "labels/cells was not written by densebatch and is not deleted" in message
    assert call_main(capsys, *arguments)[0] == 0  # complete, as before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--in-place", "--ngff", "0.4"), "is OME-Zarr 0.5, and labels written into it are too"),
        (("--in-place", "--image", "copy"), "labels written into the slide bring no copy"),
        (("--min-size", 100, "--max-size", 50), "max_size 50 is below min_size 100"),
    ],
)
def test_contradictions(capsys, tmp_path, options, words):
    slide = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    assert words in refused(capsys, tmp_path, "segment", slide, tmp_path / "out", *options)


def test_a_label_image_is_no_slide(capsys, tmp_path):
    slide = write_zarr(tmp_path / "a.zarr", PIXELS[:1])
    assert call_main(capsys, "segment", slide, tmp_path / "out", "--workers", 0)[0] == 0
    labels = tmp_path / "out/segmentation.ome.zarr/labels/cells"
    message = refused(capsys, tmp_path, "segment", labels, tmp_path / "again")
    assert "is a label image; accepted are images" in message


# the scheduler


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "nobody answers (Connection refused); start it with `dask scheduler`"),
        ("tcp://no-such-host.invalid:8786", "nobody answers ("),
        ("127.0.0.1:99999", "nobody answers ("),
        ("cluster", "is no address; accepted is tcp://HOST:PORT"),
        ("http://127.0.0.1:8787", "is the address of a web page, such as Dask's dashboard"),
        ("http://127.0.0.1:8787/status", "is the address of a web page"),
        ("ucx://127.0.0.1:8786", "ucx:// is not supported; accepted is tcp://HOST:PORT"),
        ("tls://127.0.0.1:8786", "tls:// needs certificates; give --tls-ca-file, --tls-cert"),
    ],
)
def test_scheduler_address(capsys, tmp_path, slide, address, words):
    address = address or f"tcp://127.0.0.1:{free_port()}"
    message = refused(
        capsys, tmp_path, "segment", slide, tmp_path / "out", "--scheduler-address", address
    )
    assert message.startswith(f"scheduler {address}: ")
    assert words in message


def test_scheduler_file(capsys, tmp_path, slide, monkeypatch):
    monkeypatch.setattr(scheduler, "_FILE_WAIT_S", 0.2)
    monkeypatch.setattr(scheduler, "_WRITE_WAIT_S", 0.2)
    file = tmp_path / "scheduler.json"
    arguments = ("segment", slide, tmp_path / "out", "--scheduler-file", file)
    assert f"scheduler file {file}: does not exist" in refused(capsys, tmp_path, *arguments)
    file.write_text("{")
    assert f"scheduler file {file}: holds no address" in refused(capsys, tmp_path, *arguments)
    file.write_text(json.dumps({"address": f"tcp://127.0.0.1:{free_port()}"}))
    assert f"of {file}: nobody answers" in refused(capsys, tmp_path, *arguments)
    both = (*arguments, "--scheduler-address", "tcp://127.0.0.1:1")
    assert "are both given; accepted is one" in refused(capsys, tmp_path, *both)


def test_somebody_else_at_the_scheduler_s_address(capsys, tmp_path, slide, monkeypatch):
    monkeypatch.setattr(scheduler, "_CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        message = refused(
            capsys, tmp_path, "segment", slide, tmp_path / "out", "--membrane", "CD3",
            "--scheduler-address", address,
        )  # fmt: skip
    assert message.startswith(f"scheduler {address}: nobody answers (timed out)")


# in a process of its own: nothing but the sentence reaches the terminal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--membrane", "CD4"), "has no channel 'CD4'; accepted are 'CD3', 'DAPI'"),
        (("--membrane", "CD3", "--tile", "10"), "setting 'tile' = 10: "),
        (("--membrane", "CD3", "--scheduler-address", "127.0.0.1:1"), "nobody answers"),
    ],
)
def test_as_a_command(tmp_path, slide, options, words):
    code, out, err = run_command("segment", slide, tmp_path / "out", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert words in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [slide.name]
