"""Olympus VSI, by slideio: a small file, and a folder beside it with the pixels.

There is no program at hand that writes one, so this reader is untried. slideio may end the process
that reads a damaged file, so that a process of its own opens it first.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.readers.reader import import_library
from densebatch.readers.slideio_reader import SlideioReader

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE_S = 60
# Says why not on standard error, without a traceback.
_PROBE = """
import sys
import slideio
try:
    slide = slideio.open_slide(sys.argv[1], "VSI")
    for k in range(slide.num_scenes):
        scene = slide.get_scene(k)
        width, height = scene.rect[2:]
        scene.read_block((0, 0, min(width, 64), min(height, 64)))
except Exception as error:
    sys.exit(" ".join(str(error).split())[:200] or type(error).__name__)
"""


def open_reader(path: Path) -> SlideioReader:
    """Open a VSI file.

    Raises
    ------
    InputError
        If slideio is not there, or cannot open the file.
    """
    slideio = import_library(path, "slideio", "Olympus VSI", "vsi")
    folder = path.with_name(f"_{path.stem}_")
    if not folder.is_dir():
        raise InputError(
            f"{path} has no folder {folder.name} beside it, in which its pixels are: both are "
            "needed"
        )
    _probe(path)
    return SlideioReader(
        slideio,
        path,
        "VSI",
        files=[path, *sorted(folder.rglob("*.ets"))],
        um_from="the VSI metadata",
    )


def _probe(path: Path) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(path)],
            capture_output=True, text=True, timeout=_PATIENCE_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{path} cannot be opened: slideio had not read its beginning after {_PATIENCE_S} s"
        ) from error
    if done.returncode < 0:
        raise InputError(f"{path} is damaged: slideio ends the process that opens it")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason told"])[-1]
        raise InputError(f"{path} cannot be opened as an Olympus VSI file ({last})")
