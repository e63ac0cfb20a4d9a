"""Metadata documents of an OME-Zarr, versions 0.4 and 0.5: found and read, of either Zarr format.

What their OME attributes say is the business of `ngff`.
"""

from __future__ import annotations

import contextlib
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from densebatch.base.errors import InputError
from densebatch.ngff.choice import choose_image, choose_multiscale
from densebatch.ngff.folders import (
    Node,
    describe_node,
    read_json,
    read_node,
    read_shape,
    suggest_paths,
)
from densebatch.ngff.metadata import (
    Json,
    check_largest,
    list_level_paths,
    ome_attributes,
    order_levels,
)
from densebatch.remote.tree import RemotePath
from densebatch.sources.source import Stamp, check_dtype, stamp_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.remote.tree import Place


class FoundImage(NamedTuple):
    """An image in a Zarr hierarchy.

    Attributes
    ----------
    path : folder of its group
    attributes : OME attributes of the group
    multiscale : the image among them
    scene : with which the path stands for this image; None if it describes no other
    zarr_format : 2 or 3
    """

    path: Place
    attributes: Json
    multiscale: Json
    scene: str | None
    zarr_format: int


def find_image(path: Place, scene: str | None, stamps: dict[Place, Stamp]) -> FoundImage:
    """Find the image at `path`, or the one in it that is meant.

    Parameters
    ----------
    path
        An image group, or one that holds images.
    scene
        Which image; None if the user did not choose.
    stamps
        Documents that are read are added.

    Raises
    ------
    InputError
        If there is no image, or several and none was chosen.
    """
    look = _stamper(stamps)
    node = read_node(path, look)
    if node is None and isinstance(path, RemotePath):
        path.check_refusal()
        raise InputError(
            f"{path} has no Zarr metadata (zarr.json, .zgroup); accepted addresses are of OME-Zarr "
            f"0.4 and 0.5 images{suggest_paths(path)}"
        )
    if node is None:
        raise InputError(
            f"{path} is a folder without Zarr metadata (zarr.json, .zgroup); accepted folders "
            f"are OME-Zarr 0.4 and 0.5 images{suggest_paths(path)}"
        )
    if node.is_array:
        raise InputError(
            f"{path} is a single Zarr array; accepted is the image group above it"
            f"{suggest_paths(path)}"
        )
    if "image-label" in node.ome:
        raise InputError(f"{path} is a label image; accepted are images{suggest_paths(path)}")
    if "multiscales" not in node.ome:
        inside = choose_image(node, scene, look)
        if inside is None:
            raise InputError(
                f"{path} is {describe_node(node)}, so no image; accepted are OME-Zarr 0.4 and 0.5 "
                f"image groups{suggest_paths(path)}"
            )
        node, scene = inside, None
    if "multiscales" not in ome_attributes(node.document, node.zarr_format):
        raise InputError(
            f"{node.path} keeps its multiscales metadata where Zarr format {node.zarr_format} does "
            "not have them; accepted are OME-Zarr 0.4 in Zarr format 2 and 0.5 in Zarr format 3"
        )
    index = choose_multiscale(node, scene)
    images = node.ome["multiscales"]
    return FoundImage(
        node.path,
        node.ome,
        images[index],
        f"#{index}" if len(images) > 1 else None,
        node.zarr_format,
    )


class FoundLevels(NamedTuple):
    """The arrays of an image.

    Attributes
    ----------
    multiscale : the image, its levels listed from the largest on
    largest : folder of the largest
    document : metadata of the largest
    shapes : of all, the largest first
    """

    multiscale: Json
    largest: Place
    document: Json
    shapes: list[tuple[int, ...]]


def find_levels(image: FoundImage, stamps: dict[Place, Stamp]) -> FoundLevels:
    """Find the arrays of all resolutions, and the largest by its size.

    Array metadata are read apart from Zarr, which cannot open every type that it can declare.

    Raises
    ------
    InputError
        If the metadata list none, one that is missing, or sizes that contradict each other.
    """
    path = image.path
    names = list_level_paths(image.multiscale, path)
    document = ".zarray" if image.zarr_format == 2 else "zarr.json"
    levels = []
    for name in names:
        if not (path / name / document).is_file():
            raise InputError(
                f"{path} lists {len(names)} resolutions of which '{name}' is missing: "
                f"there is no {name}/{document}"
            )
        read_node(path / name)  # refuses documents of the two formats that disagree
        about = read_json(path / name / document, _stamper(stamps))
        levels.append(Node(path / name, image.zarr_format, True, about))
    shapes = [read_shape(level) for level in levels]
    check_largest(image.multiscale, shapes, path)
    multiscale = order_levels(image.multiscale, shapes)
    by_path = dict(zip(names, shapes, strict=True))
    ordered = [tuple(by_path[dataset["path"]]) for dataset in multiscale["datasets"]]
    largest = levels[names.index(multiscale["datasets"][0]["path"])]
    _check_type(largest)
    return FoundLevels(multiscale, largest.path, largest.document, ordered)


def stamp_place(path: Place, *, anew: bool = False) -> Stamp:
    """As `stamp_file`; of a document in a store, by its bytes.

    Parameters
    ----------
    path
        Of the document.
    anew
        Whether a store is asked for it also where it is known.
    """
    if not isinstance(path, RemotePath):
        return stamp_file(path)
    content = path.read_bytes(anew=anew)
    return len(content), 0, int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def _stamper(stamps: dict[Place, Stamp]) -> Callable[[Place], None]:
    def look(path: Place) -> None:
        stamps[path] = stamp_place(path)

    return look


def _check_type(level: Node) -> None:
    declared = level.document.get("dtype" if level.zarr_format == 2 else "data_type")
    name = json.dumps(declared) if not isinstance(declared, str) else declared
    if level.zarr_format == 2:
        with contextlib.suppress(TypeError, ValueError, SyntaxError):
            name = np.dtype(name).name
    check_dtype(level.path, name)
