"""Writes of tasks: tried again for a moment, then told as what they are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from densebatch.base.errors import WriteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PAUSES_S = (0.2, 1.0)  # a file server that hiccups is back by then; a full disk is not

_T = TypeVar("_T")


def write_patiently(path: Path, write: Callable[[], _T]) -> _T:
    """Call a function that writes; if the system refuses, again after a moment, and once more.

    Parameters
    ----------
    path
        What is written, for the error.
    write
        May be repeated.

    Returns
    -------
    object
        What the function returned.

    Raises
    ------
    WriteError
        With the system's reason.
    """
    for pause in (*_PAUSES_S, None):
        try:
            return write()
        except OSError as error:
            if pause is None:
                raise WriteError(
                    f"{path}: cannot be written ({error.strerror or error}); nothing that was done "
                    "is lost, and the same command continues once it can be"
                ) from error
            time.sleep(pause)
    raise AssertionError  # the last pause is None
