"""Which image is meant, where a folder holds several.

A plate, a well, a bioformats2raw folder and a SpatialData store hold images as groups of their own;
the metadata of one group may describe several images as well. One is chosen by its path inside, by
its name or by its index, and the only one need not be chosen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import Scene, choose_scene, find_name
from densebatch.ngff.folders import Node, describe_node, is_folder, list_folders, read_node
from densebatch.ngff.metadata import Json, find_multiscale, is_inside, list_axis_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.remote.tree import Place

_IN_STORE = "images/"
_N_DESCRIBED = 40  # images whose arrays are looked at for a list


def list_images(node: Node, look: Callable[[Place], object] | None = None) -> list[str] | None:
    """Paths inside a folder of the images that it holds by what its metadata say.

    Parameters
    ----------
    node
        A group.
    look
        Is called with every document before it is read.

    Returns
    -------
    list or None
        In the metadata's order, whether or not they are there; None if the group is no plate, no
        well, no bioformats2raw folder and no SpatialData store.
    """
    ome = node.ome
    if "plate" in ome:
        return [
            f"{well}/{image}" if image else well
            for well in _list_paths(ome["plate"], "wells")
            for image in _list_fields(node.path / well, look)
        ]
    if "well" in ome:
        return _list_paths(ome["well"], "images")
    if "bioformats2raw.layout" in ome:
        about = read_node(node.path / "OME", look)
        series = about.ome.get("series") if about is not None else None
        if isinstance(series, list) and series and all(map(is_inside, series)):
            return series
        return _list_children(node.path, look)
    if "spatialdata_attrs" in node.document and is_folder(node.path / "images"):
        return [f"{_IN_STORE}{name}" for name in _list_children(node.path / "images", look)]
    return None


def _list_paths(holder: object, key: str) -> list[str]:
    entries = holder.get(key) if isinstance(holder, dict) else None
    paths = [
        entry.get("path") if isinstance(entry, dict) else None
        for entry in (entries if isinstance(entries, list) else ())
    ]
    return [path.strip("/") for path in paths if isinstance(path, str) and is_inside(path)]


def _list_fields(well: Place, look: Callable[[Place], object] | None) -> list[str]:
    """Paths of a well's images; one empty path if the well is not there or lists none."""
    node = read_node(well, look)
    return (_list_paths(node.ome.get("well"), "images") if node is not None else []) or [""]


def _list_children(folder: Place, look: Callable[[Place], object] | None) -> list[str]:
    """Names of the images right inside a folder, numbers by their value."""

    def place(name: str) -> tuple[bool, int, str]:
        return not name.isdecimal(), int(name) if name.isdecimal() else 0, name

    nodes = ((path.name, read_node(path, look)) for path in list_folders(folder))
    return sorted((name for name, node in nodes if node is not None and node.is_image), key=place)


def choose_image(
    node: Node, wanted: str | None, look: Callable[[Place], object] | None = None
) -> Node | None:
    """The image of a folder that holds images, the only one or the one that a user chose.

    Parameters
    ----------
    node
        A group.
    wanted
        Its path inside the folder, its name or its index; None if the user did not choose.
    look
        Is called with every document before it is read.

    Returns
    -------
    Node or None
        None if the group is no plate, no well, no bioformats2raw folder and no SpatialData store.

    Raises
    ------
    InputError
        If there is no image, if none of several was chosen, or the one that was chosen is not
        there. They are listed.
    """
    paths = list_images(node, look)
    if paths is None:
        return None
    if not paths:
        raise InputError(f"{node.path} is {describe_node(node)} that holds no images")
    path = wanted.strip().strip("/") if wanted is not None else None
    names = paths
    if all(each.startswith(_IN_STORE) for each in paths):
        # An element of a SpatialData store is known by its name alone.
        names = [each.removeprefix(_IN_STORE) for each in paths]
        path = None if path is None else path.removeprefix(_IN_STORE)
    if path is None or not find_name(names, path):
        # Without a choice there will be a list, of which the first images are enough.
        read = paths if path is not None else paths[:_N_DESCRIBED]
        nodes = [read_node(node.path / each, look) for each in read]
        nodes += [None] * (len(paths) - len(read))
        titles = [_title(found) for found in nodes]
        described = [_describe_image(found) for found in nodes[:_N_DESCRIBED]]
        described += [""] * (len(paths) - len(described))
        of_images = list(zip(names, titles, described, strict=True))
        if path is not None and find_name(titles, path):  # the name in the image's own metadata
            scenes = [Scene(title, f"in {each}, {what}") for each, title, what in of_images]
        else:
            scenes = [
                Scene(each, what if title in ("", each) else f"named {title!r}, {what}")
                for each, title, what in of_images
            ]
    else:
        scenes = [Scene(each, "") for each in names]
    chosen = node.path / paths[choose_scene(node.path, scenes, path)]
    image = read_node(chosen, look)
    if image is None or not image.is_image:
        raise InputError(
            f"{node.path} lists an image that is not there: {chosen} is no OME-Zarr image"
        )
    return image


def choose_multiscale(node: Node, wanted: str | None) -> int:
    """Index of the image that is meant among those that the metadata of one group describe.

    Parameters
    ----------
    node
        An image group.
    wanted
        Its name or index; None if the user did not choose.

    Raises
    ------
    InputError
        As `names.choose_scene`; if the metadata are no list of images.
    """
    images = node.ome.get("multiscales")
    if not (
        isinstance(images, list)
        and images
        and all(isinstance(image, dict) and image for image in images)
    ):
        raise InputError(f"{node.path} has multiscales metadata that list no image")
    scenes = [Scene(_text(image.get("name")), _describe_levels(node, image)) for image in images]
    return choose_scene(node.path, scenes, wanted)


def require_multiscale(node: Node, wanted: str | None = None) -> Json:
    """The image of a group, or the one that is meant, which has at least one level.

    Parameters
    ----------
    node
        A group.
    wanted
        As for `choose_multiscale`.

    Raises
    ------
    InputError
        If the group is no multiscale image, or describes several and none was chosen.
    """
    if find_multiscale(node.ome) is not None:
        image: Json = node.ome["multiscales"][choose_multiscale(node, wanted)]
        match image.get("datasets"):
            case [{"path": str()}, *_]:
                return image
    raise InputError(f"{node.path} is not an OME-Zarr image: it has no multiscales with datasets.")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _title(node: Node | None) -> str:
    """The name that an image has in its own metadata, "" if there is none."""
    images = node.ome.get("multiscales") if node is not None else None
    image = images[0] if isinstance(images, list) and len(images) == 1 else None
    return _text(image.get("name")) if isinstance(image, dict) else ""


def _describe_image(node: Node | None) -> str:
    if node is None or not node.is_image:
        return "not there"
    images = node.ome["multiscales"]
    if not isinstance(images, list) or not images or not isinstance(images[0], dict):
        return "without levels"
    if len(images) > 1:
        return f"{len(images)} images"
    return _describe_levels(node, images[0])


def _describe_levels(node: Node, image: Json) -> str:
    """Sizes of the largest level of an image, as far as they can be read, for a list."""
    shapes = []
    datasets = image.get("datasets")
    for dataset in datasets if isinstance(datasets, list) else ():
        try:
            level = read_node(node.path / dataset["path"])
            shapes.append([int(n) for n in level.document["shape"]] if level else [])
        except (InputError, TypeError, KeyError, ValueError):
            continue
    largest = max(shapes, key=math.prod, default=[])
    if not largest:
        return "without levels"
    names = [str(name) for name in list_axis_names(image)]
    axes = f" ({', '.join(names)})" if len(names) == len(largest) else ""
    return " x ".join(map(str, largest)) + axes
