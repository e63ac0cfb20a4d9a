"""Choosing by name or index: a channel of an image, or an image of a file that holds several.

The two follow one rule. The whole text is tried as a name first, then regardless of case, then as
an index; `#2` is always the index 2, so that a channel named "2" does not hide the third one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_N_SHOWN = 40


@dataclass(frozen=True)
class Scene:
    """One of the images that a file or folder holds.

    Attributes
    ----------
    name : as its metadata call it; "" if they do not
    what : what it is, for a list that a user chooses from, such as "3 channels of 2048 x 2048 px"
    """

    name: str
    what: str


def quote_names(names: Sequence[str]) -> str:
    """Names in quotes, the first forty of them.

    Examples
    --------
    >>> quote_names(["CD8, clone 4B", "DAPI"])
    "'CD8, clone 4B', 'DAPI'"
    """
    more = len(names) - _N_SHOWN
    return ", ".join(map(repr, names[:_N_SHOWN])) + (f" and {more} more" if more > 0 else "")


def find_name(names: Sequence[str], wanted: str) -> list[int]:
    """Indices that a name or an index means: one, none, or all that bear an ambiguous name.

    Parameters
    ----------
    names
        In order; any may stand there twice.
    wanted
        A name, an index, or an index after `#`.

    Examples
    --------
    >>> names = ["DAPI", "2", "CD3", "cd3"]
    >>> find_name(names, "2"), find_name(names, "#2"), find_name(names, "Cd3")
    ([1], [2], [2, 3])
    """
    for text, choices in (
        (wanted, list(names)),
        (wanted.casefold(), [name.casefold() for name in names]),
    ):
        if found := [index for index, name in enumerate(choices) if name == text]:
            return found
    digits = wanted.removeprefix("#")
    if digits.isascii() and digits.isdigit() and int(digits) < len(names):
        return [int(digits)]
    return []


def choose_scene(path: Path, scenes: Sequence[Scene], wanted: str | None) -> int:
    """Which image of a file is meant: the only one, or the one that a user named.

    Parameters
    ----------
    path
        Named in the error.
    scenes
        At least one.
    wanted
        `--scene`: a name, an index, or an index after `#`; None if the user did not choose.

    Returns
    -------
    int
        Index into `scenes`.

    Raises
    ------
    InputError
        If several images are there and none was chosen, or what was chosen is not there or bears
        the name of several. The images are listed.
    """
    listed = "; ".join(
        f"{index}: {repr(scene.name) if scene.name else 'without a name'}, {scene.what}"
        for index, scene in enumerate(scenes[:_N_SHOWN])
    )
    if len(scenes) > _N_SHOWN:
        listed += f"; and {len(scenes) - _N_SHOWN} more"
    if wanted is None:
        if len(scenes) == 1:
            return 0
        raise InputError(
            f"{path} holds {len(scenes)} images and none was chosen; choose one with --scene, by "
            f"its name or index ({listed})"
        )
    found = find_name([scene.name for scene in scenes], wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"{path} holds {len(found)} images named {wanted!r}; choose one with --scene by its "
            f"index, such as '#{found[0]}' ({listed})"
        )
    raise InputError(f"{path} holds no image {wanted!r}; accepted with --scene are {listed}")
