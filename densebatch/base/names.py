"""Choosing by name or index: a channel of an image, or an image of a file that holds several.

The two follow one rule. The whole text is tried as a name first, then regardless of case, then as
an index; `#2` is always the index 2, so that a channel named "2" does not hide the third one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import SceneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_N_SHOWN = 40
_MAX_DIGITS = 9
# Names that number channels: "2", "Channel 2", "ch2", "2: CD3". A marker such as CD2 is none.
_NUMBERED = re.compile(r"(?a:(?:(?:channel|ch|c)[\s:_-]*)?(\d{1,9})(?:\s*[:.)].*)?)")


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


def clean_name(text: str) -> str:
    r"""A name from a file, without space around it, that can be written as UTF-8.

    JSON may hold half of a surrogate pair, which is no character; it becomes "?".

    Examples
    --------
    >>> clean_name(" CD3\ud800 ")
    'CD3?'
    """
    return text.strip().encode(errors="replace").decode()


def count_of(n: int, what: str) -> str:
    """A number of things in words.

    Examples
    --------
    >>> count_of(1, "piece"), count_of(2, "piece")
    ('1 piece', '2 pieces')
    """
    return f"{n} {what}{'' if n == 1 else 's'}"


def round_to(value: float, digits: int) -> str:
    """A number rounded to some digits, as a person writes it.

    Examples
    --------
    >>> round_to(16777.216, 3), round_to(0.065536, 2), round_to(7.0, 3)
    ('16800', '0.066', '7')
    """
    return f"{float(f'{value:.{digits}g}'):.15g}"


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
        A name, an index, or an index after `#`. Spaces around it do not count, unless a name has
        them.

    Examples
    --------
    >>> names = ["DAPI", "2", "CD3", "cd3"]
    >>> find_name(names, "2"), find_name(names, "#2"), find_name(names, "Cd3")
    ([1], [2], [2, 3])
    """
    for text in dict.fromkeys((wanted, wanted.strip())):
        for key in (str, str.casefold):
            if found := [i for i, name in enumerate(names) if key(name) == key(text)]:
                return found
    index = _read_index(wanted.strip().removeprefix("#"))
    return [index] if index is not None and index < len(names) else []


def _read_index(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def split_names(names: Sequence[str], text: str) -> list[tuple[str, ...]]:
    """Ways to read a text as names with commas between them; two of them if there are more.

    A text that is a name is read as that name alone. Names may hold commas themselves, so parts
    between commas are joined to names in every way that leaves none over.

    Parameters
    ----------
    names
        What the parts may be.
    text
        Names or indices, see `find_name`.

    Examples
    --------
    >>> names = ["CD8, clone 4B", "CD3", "A,B", "A", "B"]
    >>> split_names(names, "CD8, clone 4B, CD3"), split_names(names, "A,B")
    ([('CD8, clone 4B', 'CD3')], [('A,B',)])
    >>> split_names(names, "A,B,CD3"), split_names(names, "CD4,CD3")
    ([('A', 'B', 'CD3'), ('A,B', 'CD3')], [])
    """
    if find_name(names, text):
        return [(text,)]
    parts = text.split(",")
    most = 1 + max((name.count(",") for name in names), default=0)
    ways: list[list[tuple[str, ...]]] = [[()]]  # of the parts from each one on, the last one first
    for start in range(len(parts) - 1, -1, -1):
        found = [] if parts[start].strip() else ways[-1][:]
        for n in range(1, min(most, len(ways)) + 1):
            name = ",".join(parts[start : start + n]).strip()
            if name and find_name(names, name):
                found += [(name, *rest) for rest in ways[-n]]
        ways.append(found[:2])
    return ways[-1]


def explain_choice(names: Sequence[str], wanted: str) -> str | None:
    """What a user ought to know of how a choice was read, where another reading was possible.

    Parameters
    ----------
    names
        As for `find_name`.
    wanted
        A name or index that means one of them.

    Returns
    -------
    str or None
        The rest of a sentence that begins with `wanted`.

    Examples
    --------
    >>> explain_choice(["DAPI", "CD3", "CD8", "2"], "2")
    "is the channel labelled '2', at index 3; the one at index 2 is '#2'"
    >>> explain_choice(["405", "488"], "1")
    "is taken as an index and is '488': no channel is labelled so, though others are numbered"
    >>> explain_choice(["DAPI", "CD3"], "1")
    """
    [index] = find_name(names, wanted)
    name, value = names[index], _read_index(wanted.strip())
    if value is not None and index != value < len(names):
        return (
            f"is the channel labelled {name!r}, at index {index}; the one at index {value} is "
            f"'#{value}'"
        )
    if value is not None and name != wanted.strip():
        numbers = [_NUMBERED.fullmatch(other.casefold()) for other in names]
        if any(match and int(match[1]) != place for place, match in enumerate(numbers)):
            return (
                f"is taken as an index and is {name!r}: no channel is labelled so, though others "
                "are numbered"
            )
    parts = [part.strip() for part in name.split(",")]
    if len(parts) > 1 and set(parts) <= set(names):
        return f"is the channel of that name, not {' and '.join(map(repr, parts))}"
    return None


def join_notes(notes: Iterable[tuple[str, str]], n: int) -> list[str]:
    """Notes on several things, each note once; a note that is not on all of them names which.

    Parameters
    ----------
    notes
        Name of a thing, and a note on it.
    n
        Number of things.

    Examples
    --------
    >>> join_notes([("a", "dark"), ("a", "small"), ("b", "dark")], 2)
    ['dark', "'a': small"]
    """
    things: dict[str, list[str]] = {}
    for name, note in notes:
        things.setdefault(note, []).append(name)
    return [
        note if len(names) == n else f"{quote_names(names)}: {note}"
        for note, names in things.items()
    ]


def choose_scene(path: object, scenes: Sequence[Scene], wanted: str | None) -> int:
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
    SceneError
        If several images are there and none was chosen, or what was chosen is not there or bears
        the name of several. The images are listed.
    """
    all_scenes = [(scene.name, scene.what) for scene in scenes]
    listed = "; ".join(
        f"{index}: {repr(scene.name) if scene.name else 'without a name'}, {scene.what}"
        for index, scene in enumerate(scenes[:_N_SHOWN])
    )
    if len(scenes) > _N_SHOWN:
        listed += f"; and {len(scenes) - _N_SHOWN} more"
    if wanted is None:
        if len(scenes) == 1:
            return 0
        raise SceneError(
            f"{path} holds {len(scenes)} images and none was chosen; choose one with --scene, by "
            f"its name or index ({listed})",
            all_scenes,
        )
    found = find_name([scene.name for scene in scenes], wanted)
    if len(found) == 1:
        return found[0]
    if found:
        raise SceneError(
            f"{path} holds {len(found)} images named {wanted!r}; choose one with --scene by its "
            f"index, such as '#{found[0]}' ({listed})",
            all_scenes,
        )
    raise SceneError(
        f"{path} holds no image {wanted!r}; accepted with --scene are {listed}", all_scenes
    )
