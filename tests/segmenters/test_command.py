"""Programs as segmenters: one of another language, and each way in which one can fail."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import ndimage

from densebatch.base.errors import InputError, SegmenterError
from densebatch.segmenters.find import find_segmenter
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from tests.helpers.slide_facts import tell

PERL = Path(__file__).with_name("bright_pieces.pl")


def write_script(folder, body):
    """A program that knows the paths IMAGE and LABELS; as the words of a command."""
    script = folder / "program.py"
    script.write_text(f"import sys\n_, IMAGE, LABELS, *REST = sys.argv\n{body}\n")
    return f"command:{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{image}} {{labels}}"


def draw_tile(options, planes=1, um_per_px=0.325):
    noise = np.random.default_rng(1).random((planes, 70, 50))
    image = ndimage.gaussian_filter(noise, (0, 3, 3))
    image = ((image - image.min()) / np.ptp(image)).astype(np.float32)
    return Tile(image, ("membrane µ", "DAPI, 2")[:planes], um_per_px, options)


def label(spec, planes=1, um_per_px=0.325, **options):
    segmenter = find_segmenter(spec)
    return label_tile(
        segmenter, draw_tile(segmenter.complete_options(options, tell(0.5)), planes, um_per_px)
    )


def failure(spec, **options):
    with pytest.raises(SegmenterError) as caught:
        label(spec, **options)
    assert "\n" not in str(caught.value)
    name = find_segmenter(spec).name
    assert str(caught.value).startswith(f"segmenter {name}: ")
    return str(caught.value).removeprefix(f"segmenter {name}: ")


def test_a_name_is_short_and_without_folders():
    spec = "command:/opt/python/bin/python 'my tools/cells.py' {image} {labels} --model /m/net.pt"
    assert find_segmenter(spec).name == "command:'python cells.py {image} {labels} --model net.pt'"
    assert len(find_segmenter(f"{spec} {'more ' * 20}").name) == len("command:''") + 60


def refusal(spec, **options):
    with pytest.raises(InputError) as caught:
        find_segmenter(spec).complete_options(options, tell(0.5))
    return str(caught.value)


@pytest.mark.skipif(shutil.which("perl") is None, reason="no perl")
@pytest.mark.parametrize("planes", [1, 2])
def test_a_program_of_another_language(planes):
    labels = label(f'command:"perl {PERL} {{image}} {{labels}} 0.5"', planes)
    expected, n = ndimage.label(draw_tile({}, planes).image[0] > 0.5)
    assert n > 5
    np.testing.assert_array_equal(labels, expected)


def test_the_program_gets_names_sizes_and_values(tmp_path):
    spec = write_script(
        tmp_path,
        """
import json, os, tifffile
with tifffile.TiffFile(IMAGE) as tif:
    image, ome = tif.asarray(), tifffile.xml2dict(tif.ome_metadata)
pixels = ome["OME"]["Image"]["Pixels"]
facts = {
    "axes": tif.series[0].axes, "dtype": str(image.dtype), "sum": float(image.sum()),
    "names": [channel["Name"] for channel in pixels["Channel"]],
    "um": [pixels[f"PhysicalSize{axis}"] for axis in "XY"],
    "unit": pixels["PhysicalSizeXUnit"], "rest": REST, "cwd": os.getcwd(),
    "variable": os.environ["DENSEBATCH_TEST_VARIABLE"], "folder": os.path.dirname(IMAGE),
}
with open(os.path.join(os.path.dirname(__file__), "facts.json"), "w") as file:
    json.dump(facts, file)
tifffile.imwrite(LABELS, image[0].astype("uint16"))
""",
    )
    os.environ["DENSEBATCH_TEST_VARIABLE"] = "inherited"
    try:
        label(f"{spec} --um={{um_per_px}}", planes=2)
    finally:
        del os.environ["DENSEBATCH_TEST_VARIABLE"]
    facts = json.loads((tmp_path / "facts.json").read_text())
    image = draw_tile({}, 2).image
    assert facts.pop("sum") == pytest.approx(image.sum(), rel=1e-5)
    assert not Path(facts.pop("folder")).exists()
    assert facts == {
        "axes": "CYX", "dtype": "float32", "names": ["membrane µ", "DAPI, 2"],
        "um": [0.325, 0.325], "unit": "µm", "rest": ["--um=0.325"], "cwd": str(Path.cwd()),
        "variable": "inherited",
    }  # fmt: skip


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_the_image_may_be_of_integers(tmp_path, dtype, top):
    body = "import tifffile; i = tifffile.imread(IMAGE); tifffile.imwrite(LABELS, i)"
    labels = label(write_script(tmp_path, body), dtype=dtype)
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, np.rint(draw_tile({}).image[0] * top))


@pytest.mark.parametrize("shape", [(1, 70, 50), (70, 50, 1)])
@pytest.mark.parametrize("option", [{}, {"labels": "npy"}])
def test_labels_may_be_of_numpy_and_have_short_axes(tmp_path, option, shape):
    body = f"import numpy as np; np.save(LABELS, np.arange(3500).reshape{shape})"
    np.testing.assert_array_equal(
        label(write_script(tmp_path, body), **option), np.arange(3500).reshape(70, 50)
    )


FAILURES = {
    "print('one\\ntwo'); sys.exit('three')":
        "ended with exit code 1; the end of what it printed: one / two / three",
    "print('x' * 10**6); sys.exit(9)":
        "ended with exit code 9; the end of what it printed: " + "x" * 400,
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)":
        "was killed by SIGSEGV; it printed nothing",
    "print('done')":
        "wrote no {labels}; the end of what it printed: done",
    "open(LABELS, 'w').close()":
        "wrote no {labels}; it printed nothing",
    "open(LABELS, 'w').write('labels')":
        "wrote labels that cannot be read as a TIFF (TiffFileError: not a TIFF file: header=b'labe'"
        "); it printed nothing",
    "import tifffile, numpy as np; tifffile.imwrite(LABELS, np.zeros((50, 70), 'uint8'))":
        "wrote an array of shape (50, 70); accepted is that of the tile, (70, 50); it printed "
        "nothing",
    "import tifffile, numpy as np; tifffile.imwrite(LABELS, np.full((70, 50), -3, 'int16'))":
        "wrote -3; accepted are labels from 0, which is background; it printed nothing",
    "import tifffile; tifffile.imwrite(LABELS, tifffile.imread(IMAGE))":
        "wrote float32 numbers; accepted are integers, such as uint32; it printed nothing",
    "import tifffile, numpy as np; tifffile.imwrite(LABELS, np.ones((70, 50), 'float32'))":
        "wrote float32 numbers, though all are whole; accepted are integers, such as uint32; it "
        "printed nothing",
}  # fmt: skip


@pytest.mark.parametrize("body", FAILURES)
def test_a_failure_is_a_sentence(tmp_path, body):
    assert failure(write_script(tmp_path, body)) == FAILURES[body]


def test_labels_that_are_no_numpy_file(tmp_path):
    body = "import numpy as np; np.save(LABELS, np.array([{}], object), allow_pickle=True)"
    message = failure(write_script(tmp_path, body), labels="npy")
    assert message.startswith("wrote labels that cannot be read as a NumPy array (ValueError: ")


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path):
    pids = tmp_path / "pids"
    spec = write_script(
        tmp_path,
        f"""
import os, subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({str(pids)!r}, "w") as file:
    file.write(f"{{os.getpid()}} {{child.pid}}")
print("waiting", flush=True)
time.sleep(600)
""",
    )
    assert failure(spec, timeout_s=3.0) == (
        "did not end within 3 s (option timeout_s) and was killed; the end of what it printed: "
        "waiting"
    )
    wait_for_end(int(pid) for pid in pids.read_text().split())


def test_what_a_program_leaves_running_ends_with_it(tmp_path):
    pids = tmp_path / "pids"
    spec = write_script(
        tmp_path,
        f"""
import subprocess, tifffile, numpy as np
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open({str(pids)!r}, "w") as file:
    file.write(str(child.pid))
tifffile.imwrite(LABELS, np.ones((70, 50), "uint8"))
""",
    )
    assert label(spec).all()
    wait_for_end([int(pids.read_text())])


def wait_for_end(pids):
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


def test_a_program_that_cannot_be_started(tmp_path):
    missing = tmp_path / "segment"
    spec = f"command:{missing} {{image}} {{labels}}"
    name = find_segmenter(spec).name
    accepted = "accepted is an executable of PATH, or its path"
    assert refusal(spec) == (
        f"segmenter {name}: the program {str(missing)!r} is not found; {accepted}"
    )
    tile = draw_tile({})
    with pytest.raises(SegmenterError, match=r"cannot be started \(No such file or directory\)"):
        label_tile(find_segmenter(spec), tile)
    missing.write_text("#!/no/such/program\n")
    assert refusal(spec) == (
        f"segmenter {name}: the program {str(missing)!r} is not executable; {accepted}"
    )
    with pytest.raises(SegmenterError, match=r"cannot be started \(Permission denied\)"):
        label_tile(find_segmenter(spec), tile)
    missing.chmod(0o755)
    assert failure(spec).startswith(f"the program {str(missing)!r} cannot be started (")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "names no program; accepted is command:\"PROGRAM ... {image} ... {labels}\""),
        ("cells {image}", "has no {labels}, where the path of the label image goes; accepted is "
         'command:"PROGRAM ... {image} ... {labels}"'),
        ("cells {labels}", "has no {image}, where the path of the tile goes; accepted is "
         'command:"PROGRAM ... {image} ... {labels}"'),
        ("cells {image} {labels} {gpu}", "has {gpu}; accepted are {image}, {labels}, {um_per_px} "
         "(a script may hold what needs other braces)"),
        ("cells '{image} {labels}", "cannot be split into words (No closing quotation)"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_work_is_refused(command, message):
    assert refusal(f"command:{command}") == f"segmenter {f'command:{command}'!r}: {message}"


def test_options_are_strict(tmp_path):
    spec = write_script(tmp_path, "")
    assert find_segmenter(spec).complete_options({}, tell()) == {
        "timeout_s": 1800.0, "dtype": "float32", "labels": "tif"
    }  # fmt: skip
    assert "accepted settings: timeout_s, dtype, labels" in refusal(spec, threads=2)
    assert "'float32', 'uint8' or 'uint16'" in refusal(spec, dtype="float64")


def test_an_unknown_pixel_size_is_told_to_who_asks_for_it(tmp_path):
    body = "import tifffile, numpy as np; tifffile.imwrite(LABELS, np.ones((70, 50), 'uint8'))"
    spec = write_script(tmp_path, body)
    assert label(spec, um_per_px=None).all()
    with pytest.raises(SegmenterError, match=r"takes \{um_per_px\} but the slide does not tell"):
        label(f"{spec} {{um_per_px}}", um_per_px=None)


def test_another_text_or_script_is_another_segmenter(tmp_path):
    spec = write_script(tmp_path, "pass")
    identity = find_segmenter(spec).identity
    assert find_segmenter(spec).identity == identity
    assert find_segmenter(f"{spec} --fast").identity != identity
    write_script(tmp_path, "print()")
    assert find_segmenter(spec).identity != identity
