"""Published image sets: which files, with which digests, and where each goes.

The files stay their authors'; what is kept here is the list of them.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING

from densebatch.base.download import DownloadError, download
from densebatch.base.errors import InputError
from densebatch.base.files import digest, no_empty_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

_N_AT_ONCE = 4  # more would be a burden for a public server


@dataclass(frozen=True)
class SetFile:
    """A file of a set.

    Attributes
    ----------
    path : in the user's folder
    upstream : below the set's address
    sha256 : of its bytes
    """

    path: str
    upstream: str
    sha256: str


@dataclass(frozen=True)
class ImageSet:
    """A published image set.

    Attributes
    ----------
    name : how the user names it
    url : address that the upstream paths are relative to
    files : all of them
    notice : licence and citation, in a sentence
    """

    name: str
    url: str
    files: tuple[SetFile, ...]
    notice: str


# By the authors' folders, those that the commands `train` and `score` take.
_HSV_DENSE_FOLDERS = {
    "images/training": "train",
    "images/test_images": "test",
    "images/test_gtmasks": "test",
    "images/test_cytotrain7masks": "predictions/cyto-train7",
    "whole_images": "fields",
}


def _read_hsv_dense() -> ImageSet:
    text = (resources.files("densebatch.training") / "hsv-dense.sha256").read_text()
    files = []
    for line in text.splitlines():
        sha256, upstream = line.split()
        folder, _, name = upstream.rpartition("/")
        files.append(SetFile(f"{_HSV_DENSE_FOLDERS[folder]}/{name}", upstream, sha256))
    return ImageSet(
        name="hsv-dense",
        url="https://raw.githubusercontent.com/youyifong/dense_cell_segmentation/"
        "1b0f7d54922163aec91bff5efd35a2d8a6830282",
        files=tuple(files),
        notice="images and masks of Han et al. 2024, doi:10.1186/s12911-024-02502-6, CC BY 4.0",
    )


SETS: dict[str, Callable[[], ImageSet]] = {"hsv-dense": _read_hsv_dense}


def find_set(name: str) -> ImageSet:
    """A set by its name.

    Raises
    ------
    InputError
        If there is none of this name.
    """
    if name not in SETS:
        raise InputError(f"image set {name!r} is not known; accepted are {', '.join(SETS)}")
    return SETS[name]()


def fetch_set(
    images: ImageSet,
    folder: Path,
    url: str | None = None,
    on_file: Callable[[SetFile, int], None] = lambda file, n_done: None,
) -> int:
    """Fetch what a folder does not have yet of a set, and verify what it has.

    A file gets its name when its digest is right, so an interrupted fetch is continued by the next
    one. No file that is there is replaced.

    Parameters
    ----------
    images
        The set.
    folder
        Where its files go; made if it does not exist.
    url
        Address of a mirror with the same upstream paths.
    on_file
        Called after each download with the file and the number of files that are there.

    Returns
    -------
    int
        Number of files that were downloaded now.

    Raises
    ------
    InputError
        If a file in the folder is not the set's, before anything is fetched.
    DownloadError
        If not all could be fetched; what came is kept.
    """
    missing = [file for file in images.files if not _is_there(folder, file)]
    places = {(folder / file.path).parent for file in images.files}
    for stale in (stale for place in places for stale in place.glob(".*.partial")):
        # A fetch that was killed left it.
        with suppress(OSError):
            stale.unlink()
    n_old = len(images.files) - len(missing)
    base = (url or images.url).rstrip("/")
    with no_empty_folders(places):
        failures = _fetch_files(missing, folder, base, lambda file, n: on_file(file, n_old + n))
        if failures:
            n_there = sum((folder / file.path).exists() for file in images.files)
            n_left = len(images.files) - n_there
            raise DownloadError(
                f"{images.name}: {n_there} of {len(images.files)} files are in {folder}, {n_left} "
                f"are left, which the same command fetches; what failed first: {failures[0]}"
            )
    return len(missing)


def _fetch_files(
    files: Sequence[SetFile], folder: Path, base: str, on_file: Callable[[SetFile, int], None]
) -> list[InputError]:
    """Fetch several files at once, and return the failures in the order in which they came.

    After a failure that would befall all other files too, no more are begun.
    """
    failures: list[InputError] = []
    queue, n_done = iter(files), 0
    running: dict[Future[None], SetFile] = {}
    with ThreadPoolExecutor(_N_AT_ONCE) as pool:

        def submit() -> None:
            hopeless = any(isinstance(f, DownloadError) and f.hopeless for f in failures)
            if not hopeless and (file := next(queue, None)) is not None:
                address = f"{base}/{file.upstream}"
                accept = partial(_check, expected=file.sha256, address=address)
                running[pool.submit(download, address, folder / file.path, accept)] = file

        for _ in range(_N_AT_ONCE):
            submit()
        while running:
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                file = running.pop(job)
                try:
                    job.result()
                except InputError as error:
                    failures.append(error)
                else:
                    n_done += 1
                    on_file(file, n_done)
                submit()
    return failures


def _is_there(folder: Path, file: SetFile) -> bool:
    path = folder / file.path
    if not path.exists():
        return False
    found = digest(path)
    if found != file.sha256:
        raise InputError(
            f"{path}: has sha256 {found}, the set's file {file.sha256}; move it away to fetch that"
        )
    return True


def _check(path: Path, *, expected: str, address: str) -> None:
    found = digest(path)
    if found != expected:
        raise DownloadError(f"{address}: came with sha256 {found}, expected {expected}")
