"""What is understood of a slide: `densebatch info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from densebatch.base.errors import StackError
from densebatch.slides.formats import find_kind, list_scenes
from densebatch.slides.info import SlideInfo
from densebatch.slides.slide import find_slide, open_slide
from densebatch.sources.source import Selection

if TYPE_CHECKING:
    import os

    from densebatch.remote.tree import RemotePath

_EMPTY = SlideInfo("", "", 0, 0, (), "uint8", None, (0, 0), 1, 0, None, None, None, (), "")


def describe_slide(
    path: str | os.PathLike[str] | RemotePath, **chosen: str | None
) -> dict[str, Any]:
    """What is understood of a slide, as plain data.

    Parameters
    ----------
    path, chosen
        As of `open_slide`.

    Returns
    -------
    dict
        As `SlideInfo.describe`; `stacks`, how many focal planes (z) and points in time (t) there
        are, if none was chosen; and `scenes`, the images that the file or folder holds: index,
        name, what it is. If there are several and none was chosen, all but these, `path` and
        `format` is None.

    Raises
    ------
    InputError
        As `open_slide`, but not where a scene, a plane or a time was to be chosen.
    """
    place = find_slide(path)
    selection = Selection(**chosen)
    scenes = [
        {"index": index, "name": name, "what": what}
        for index, (name, what) in enumerate(list_scenes(place, selection))
    ]
    if len(scenes) > 1 and selection.scene is None:
        told = dict.fromkeys(_EMPTY.describe())
        told |= {"path": str(place), "format": find_kind(place)}
        return {"scenes": scenes, "stacks": None, **told}
    stacks: dict[str, int] = {}
    try:
        told = open_slide(path, **chosen).info.describe()
    except StackError as error:
        stacks = error.stacks
        told = open_slide(path, **(chosen | dict.fromkeys(stacks, "0"))).info.describe()
        told |= dict.fromkeys(stacks)
    return {"scenes": scenes, "stacks": stacks, **told}
