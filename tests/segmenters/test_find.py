"""Finding segmenters: built-in ones, those of packages, functions by their module."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.segmenters import find
from densebatch.segmenters.find import find_segmenter, list_segmenters
from densebatch.segmenters.run import label_tile
from densebatch.segmenters.segmenter import Tile
from tests.helpers.slide_facts import tell

MODULE = """
import numpy as np

from densebatch.segmenters.segmenter import Segmenter

NUMBER = 7


def label(image, *, um_per_px, options):
    return np.full(image.shape[1:], options.get("number", 1))


def label_positionally(image, um_per_px):
    return label(image, um_per_px=um_per_px, options={})


class Own(Segmenter):
    def __init__(self, spec="?", name="own", identity="1", packages=None, bytes_per_px=9):
        super().__init__(spec, name, identity, packages or {"numpy": "2"}, bytes_per_px)

    def complete_options(self, given, slide):
        return {"levels": list(slide.levels)}

    def label(self, tile):
        return np.ones(tile.image.shape[1:], np.uint8)


class Bare(Own):
    def __init__(self):
        super().__init__()


class Odd(Own):
    def __init__(self, model):
        raise NotImplementedError
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module, and a package's entry point for it, where Python finds them, for this test."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(folder)

    def put(module=MODULE, entries=()):
        facts = folder / "bright_cells-2.1.dist-info"
        facts.mkdir(parents=True, exist_ok=True)
        (folder / "bright_cells.py").write_text(module)
        if entries:
            (facts / "METADATA").write_text(
                "Metadata-Version: 2.1\nName: bright-cells\nVersion: 2.1\n"
            )
            (facts / "top_level.txt").write_text("bright_cells\n")
            lines = "\n".join(f"{name} = {target}" for name, target in entries)
            (facts / "entry_points.txt").write_text(f"[{find.GROUP}]\n{lines}\n")
        find._list_plugins.cache_clear()
        return folder

    yield put
    find._list_plugins.cache_clear()
    sys.modules.pop("bright_cells", None)


def refusal(spec):
    with pytest.raises(InputError) as caught:
        find_segmenter(spec)
    return str(caught.value)


def label(segmenter, **options):
    complete = segmenter.complete_options(options, tell(0.25))
    return label_tile(segmenter, Tile(np.zeros((1, 3, 4), np.float32), ("n",), None, complete))


def test_built_in_segmenters_are_listed_and_found():
    assert list(list_segmenters())[:3] == ["watershed", "stardist", "instanseg"]
    segmenter = find_segmenter("watershed")
    assert segmenter.spec == segmenter.name == "watershed"
    assert set(segmenter.packages) == {"scikit-image", "scipy"}


def test_an_unknown_name_tells_which_there_are(install):
    install(entries=[("bright", "bright_cells:label")])
    assert refusal("watersheds") == (
        "segmenter 'watersheds': is not known here; accepted are watershed, stardist, instanseg, "
        'bright, module:function, and command:"PROGRAM ... {image} ... {labels}"; packages bring '
        "others by an entry point of densebatch.segmenters"
    )


def test_a_function_is_found_by_its_module(install):
    install()
    segmenter = find_segmenter("bright_cells:label")
    assert (segmenter.spec, segmenter.name) == ("bright_cells:label", "label")
    assert segmenter.packages == {}
    assert segmenter.complete_options({"number": 3}, tell(0.25)) == {
        "levels": [0.25],
        "diameter_px": 20.0,
        "number": 3,
    }
    np.testing.assert_array_equal(label(segmenter, number=3), np.full((3, 4), 3))


def test_another_source_is_another_segmenter(install):
    folder = install()
    identity = find_segmenter("bright_cells:label").identity
    assert find_segmenter("bright_cells:label").identity == identity
    (folder / "bright_cells.py").write_text(MODULE + "\n\nMORE = 1\n")
    assert find_segmenter("bright_cells:label").identity != identity


def test_any_module_of_a_package_that_is_not_installed_counts(install):
    package = install() / "loose_cells"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("")
    (package / "main.py").write_text(MODULE)
    identity = find_segmenter("loose_cells.main:label").identity
    (package / "helper.py").write_text("THRESHOLD = 3\n")
    assert find_segmenter("loose_cells.main:label").identity != identity
    for name in ("loose_cells.main", "loose_cells"):
        sys.modules.pop(name)


def test_a_package_brings_functions_and_segmenters(install):
    install(entries=[("bright", "bright_cells:label"), ("own", "bright_cells:Own")])
    assert list_segmenters()["bright"] == "of the package bright-cells"
    for name in ("bright", "own"):
        segmenter = find_segmenter(name)
        assert (segmenter.spec, segmenter.name) == (name, name)
        assert segmenter.packages["bright-cells"] == "2.1"
        assert (label(segmenter) == 1).all()
    assert segmenter.packages["numpy"] == "2"
    assert segmenter.bytes_per_px == 9
    assert segmenter.identity != "1"


def test_a_package_does_not_replace_a_built_in(install):
    install(entries=[("watershed", "bright_cells:label")])
    assert find_segmenter("watershed").packages.keys() == {"scikit-image", "scipy"}
    assert list_segmenters()["watershed"].startswith("threshold")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:label",
         "there is no module 'no_such_module'; accepted is one that Python finds here and on "
         "workers, such as a file in a folder of PYTHONPATH (PYTHONPATH=$PWD for this one)"),
        ("no.such:label",
         "there is no module 'no.such'; accepted is one that Python finds here and on "
         "workers, such as a file in a folder of PYTHONPATH (PYTHONPATH=$PWD for this one)"),
        ("bright_cells:shade", "the module bright_cells has no 'shade'"),
        ("bright_cells:NUMBER",
         "is a int; accepted is a function, called as f(image, um_per_px=..., options=...), or a "
         "densebatch.segmenters.segmenter.Segmenter"),
        ("bright_cells:label_positionally",
         "takes (image, um_per_px); accepted is a function that is called as f(image, "
         "um_per_px=..., options=...)"),
        ("bright_cells:Odd",
         "the class cannot be called without arguments (TypeError: Odd.__init__() missing 1 "
         "required positional argument: 'model'); accepted are those that can, an object or a "
         "function"),
        ("bright_cells:Bare",
         "a Bare takes other arguments than it has attributes (Bare.__init__() got an unexpected "
         "keyword argument 'spec'); accepted is a frozen dataclass"),
        ("./cells.py:label", "accepted is module:function"),
    ],
)  # fmt: skip
def test_what_is_no_segmenter_is_refused(install, spec, message):
    install()
    assert refusal(spec) == f"segmenter {spec!r}: {message}"


def test_a_module_that_fails_at_import_is_told(install):
    install("import no_such_library")
    assert refusal("bright_cells:label") == (
        "segmenter 'bright_cells:label': cannot be imported (ModuleNotFoundError: No module named "
        "'no_such_library')"
    )
    install("raise RuntimeError('first line\\nsecond')", [("bright", "bright_cells:label")])
    assert refusal("bright") == (
        "segmenter 'bright' of the package bright-cells: cannot be loaded (RuntimeError: first "
        "line second); update or remove the package"
    )
    install("label = 3", [("bright", "bright_cells:label")])
    assert refusal("bright").endswith("; update or remove bright-cells")


def test_options_of_functions_are_what_json_holds(install):
    install()
    segmenter = find_segmenter("bright_cells:label")
    with pytest.raises(InputError, match="accepted is what JSON can hold"):
        segmenter.complete_options({"model": object()}, tell(0.1))
    with pytest.raises(InputError, match="accepted is what JSON can hold"):
        segmenter.complete_options({"level": float("nan")}, tell(0.1))


def test_finding_and_listing_import_no_heavy_library():
    code = (
        "import sys\nfrom densebatch.segmenters.find import *\nlist_segmenters()\n"
        "find_segmenter('watershed')\nfind_segmenter('instanseg')\n"
        "print([n for n in ('torch', 'skimage', 'tensorflow', 'dask', 'zarr') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
