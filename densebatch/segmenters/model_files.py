"""Files of models that a user gives: what is in them belongs to the fingerprint of a run."""

from __future__ import annotations

import hashlib
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError, SegmenterError
from densebatch.base.files import digest

if TYPE_CHECKING:
    from collections.abc import Sequence


def digest_model(files: Sequence[Path]) -> str:
    """SHA-256 over the names and bytes of a model's files.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\n{digest(file)}\n".encode())
    return found.hexdigest()


def check_model(name: str, path: str, files: Sequence[Path], expected: str) -> None:
    """Refuse model files that are not those with which a run was planned.

    Raises
    ------
    SegmenterError
        One sentence, also if they cannot be read here.
    """
    try:
        found = digest_model(files)
    except InputError as error:
        raise SegmenterError(f"segmenter {name}: {error}") from error
    if found != expected:
        raise SegmenterError(
            f"segmenter {name}: the model {path} is not the one with which the run was planned; "
            "accepted is that one, on every worker"
        )


def resolve(path: str) -> str:
    """The path of a model that workers find wherever they run."""
    return str(Path(path).expanduser().absolute())


def list_versions(name: str, libraries: Sequence[str], install: str) -> dict[str, str]:
    """Versions of the distributions that bring these libraries.

    Parameters
    ----------
    name
        Of the segmenter, for the message.
    libraries
        As they are imported.
    install
        What pip is to install.

    Raises
    ------
    InputError
        If one is not installed: what to install.
    """
    known = packages_distributions()
    missing = [library for library in libraries if library not in known]
    if missing:
        raise InputError(
            f"segmenter {name!r}: needs {' and '.join(missing)}, not installed here; "
            f"pip install '{install}'"
        )
    names = sorted({each for library in libraries for each in known[library]})
    return {each: version(each) for each in names}
