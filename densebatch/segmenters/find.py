"""Segmenters by the name that a user gives.

Other packages bring segmenters by an entry point of the group `densebatch.segmenters`, whose object
is a function, as `segmenters.function` says, or a `segmenters.segmenter.Segmenter`:

.. code-block:: toml

    [project.entry-points."densebatch.segmenters"]
    my-segmenter = "my_package.cells:label"
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError, describe_cause
from densebatch.segmenters import instanseg, stardist, watershed
from densebatch.segmenters.command import PREFIX, parse_command
from densebatch.segmenters.function import import_segmenter, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.segmenters.segmenter import Segmenter

GROUP = "densebatch.segmenters"
BUILT_IN: dict[str, Callable[[], Segmenter]] = {
    watershed.NAME: watershed.make,
    stardist.NAME: stardist.make,
    instanseg.NAME: instanseg.make,
}
_SUMMARIES = {each.NAME: each.SUMMARY for each in (watershed, stardist, instanseg)}


@lru_cache(maxsize=1)
def _list_plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def find_segmenter(spec: str) -> Segmenter:
    """The segmenter that a user means.

    Parameters
    ----------
    spec
        Name of one that densebatch or an installed package brings, `module:function`, or
        `command:` and a program with its arguments.

    Raises
    ------
    InputError
        One sentence, if there is none of that name here, or it lacks what it needs.
    """
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    plugins = _list_plugins()
    if spec in plugins:
        return _load(plugins[spec])
    if spec.startswith(PREFIX):
        return parse_command(spec)
    if ":" in spec:
        return import_segmenter(spec)
    known = ", ".join([*BUILT_IN, *sorted(plugins)])
    raise InputError(
        f"segmenter {spec!r}: is not known here; accepted are {known}, module:function, and "
        f'command:"PROGRAM ... {{image}} ... {{labels}}"; packages bring others by an entry '
        f"point of {GROUP}"
    )


def list_segmenters() -> dict[str, str]:
    """Names of segmenters that are here, and what each is in a line."""
    found = dict(_SUMMARIES)
    for name, entry in sorted(_list_plugins().items()):
        found.setdefault(name, f"of the package {_name_package(entry)}")
    return found


def _name_package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.module


def _load(entry: EntryPoint) -> Segmenter:
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        # Whatever a package does at import, it must not be taken for a fault of the slide.
        raise InputError(
            f"segmenter {entry.name!r} of the package {_name_package(entry)}: cannot be loaded "
            f"({describe_cause(error)}); update or remove the package"
        ) from error
    try:
        return wrap(found, entry.name, entry.name, entry.module)
    except InputError as error:
        raise InputError(f"{error}; update or remove {_name_package(entry)}") from error
