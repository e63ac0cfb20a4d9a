"""Open a zarr array, or the label image or picture of an OME-Zarr group (zarr 2 and 3)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.names import Scene, choose_scene
from densebatch.cells.groups import open_array
from densebatch.cells.pixels import ACCEPTED, Pixels, guess_axes
from densebatch.cells.pyramid_spec import COMPARTMENT_LABELS, LABEL_NAME, MISSING_NAME, OWNER
from densebatch.ngff.choice import choose_image, choose_multiscale, list_images
from densebatch.ngff.chunks import refuse_odd_chunk, refuse_other_chunks
from densebatch.ngff.folders import list_folders, read_node, read_shape, suggest_paths
from densebatch.ngff.metadata import (
    check_largest,
    find_multiscale,
    is_inside,
    list_axis_names,
    list_labels,
    list_level_paths,
    order_levels,
)

if TYPE_CHECKING:
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from densebatch.ngff.folders import Node
    from densebatch.remote.tree import Place


class CheckedArray:
    """A zarr array in a folder that refuses stored pieces which zarr would take for absent ones.

    A piece that is not stored is background by the format. A shard of zero bytes, as a crash
    leaves behind, or something that is no file reads as background too, without an error.

    Parameters
    ----------
    array
        The array.
    folder
        Where its chunks or shards are.
    """

    def __init__(self, array: zarr.Array[Any], folder: Path) -> None:
        self.array = array
        self.folder = folder
        self.shape = array.shape
        self.dtype = array.dtype
        self.piece = array.shards or array.chunks

    def __getitem__(self, index: tuple[slice, ...]) -> NDArray[Any]:
        spans = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        stored = [
            range(start // step, -(-stop // step))
            for (start, stop), step in zip(spans, self.piece, strict=True)
        ]
        for place in itertools.product(*stored):
            try:
                refuse_odd_chunk(self.folder / self.array.metadata.encode_chunk_key(place))
            except ValueError as error:
                raise InputError(f"the stored piece {error}") from None
        try:
            return self._read(index)
        except MemoryError:
            raise
        # What a codec raises does not say where, so pieces are read one by one to tell the user.
        except Exception:
            for place in itertools.product(*stored):
                self._try_piece(place)
            raise

    def _read(self, index: tuple[slice, ...]) -> NDArray[Any]:
        part: NDArray[Any] = self.array[index]  # type: ignore[assignment]
        return part

    def _try_piece(self, place: tuple[int, ...]) -> None:
        try:
            self._read(
                tuple(slice(k * n, (k + 1) * n) for k, n in zip(place, self.piece, strict=True))
            )
        except Exception as exc:
            key = self.array.metadata.encode_chunk_key(place)
            raise InputError(f"the stored piece {key} is damaged: {describe_cause(exc)}") from exc


def is_zarr(path: Path) -> bool:
    """Whether a folder holds a zarr array or group of either version."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Path, *, labels: bool, scene: str | None = None) -> Pixels:
    """Open an array, the label image of a group, or the highest resolution of its picture.

    Parameters
    ----------
    path
        A folder: an array, a group, or the output of a run.
    labels
        Whether the label image of an image group is meant, or its picture.
    scene
        Which label image or picture, by name or index; of no account where there is only one.

    Raises
    ------
    InputError
        If it is no zarr, or a group without one such image.
    """
    if not is_zarr(path) and is_zarr(path / "segmentation.ome.zarr"):
        path = path / "segmentation.ome.zarr"
    if not is_zarr(path):
        raise InputError(
            f"{path} is a folder and no zarr; accepted are {ACCEPTED}"
            f"{suggest_paths(path, labels=labels)}"
        )
    node = read_node(path)
    axes, folder = None, path
    if node is not None and not node.is_array:
        # A group below `labels` is taken for a label image, because not every writer marks them.
        wanted = labels and path.parent.name != "labels" and "image-label" not in node.ome
        found = _find_label_group(node, scene) if wanted else node
        folder, axes = _find_array(found, None if wanted else scene, labels=labels)
    array = open_array(folder)
    refuse_other_chunks(folder, array)
    if axes is None or len(axes) != array.ndim or not {"Y", "X"} <= set(axes):
        axes = guess_axes(array.shape, path)
    checked = CheckedArray(array, folder)
    unit = checked.piece
    return Pixels(path, checked, axes, (unit[axes.index("Y")], unit[axes.index("X")]), scene)


def _find_array(node: Node, scene: str | None, *, labels: bool) -> tuple[Path, str | None]:
    """Folder of the highest resolution of an image, and a letter for each axis."""
    image = node
    if "multiscales" not in node.ome and not labels:
        several = len(list_images(node) or ()) > 1
        image, scene = choose_image(node, scene if several else None) or node, None
    if find_multiscale(image.ome) is None:
        raise InputError(
            f"{image.path} is a zarr group without an image; accepted are {ACCEPTED}"
            f"{suggest_paths(image.path, labels=labels)}"
        )
    images = image.ome["multiscales"]
    multiscale = images[choose_multiscale(image, scene if len(images) > 1 else None)]
    folders = [image.path / name for name in list_level_paths(multiscale, image.path)]
    levels = [read_node(folder) for folder in folders]
    for folder, level in zip(folders, levels, strict=True):
        if level is None or not level.is_array:
            raise InputError(f"{image.path} lists {folder} as a resolution, which is no array")
    shapes = [read_shape(level) for level in levels if level]
    check_largest(multiscale, shapes, image.path)
    multiscale = order_levels(multiscale, shapes)
    letters = "".join(str(name)[:1].upper() for name in list_axis_names(multiscale))
    return image.path / multiscale["datasets"][0]["path"], letters or None


def _find_label_group(node: Node, scene: str | None) -> Node:
    """The label image that is meant of an image group, or of a group of label images."""
    path = node.path
    listed = list_labels(node.ome)
    holder = read_node(path / "labels")
    if holder is not None and not holder.is_array:
        path = path / "labels"
        listed = list_labels(holder.ome) or _list_groups(path)
    elif path.name == "labels" and not listed:
        listed = _list_groups(path)
    elif node.ome.get("labels") is None:
        raise InputError(
            f"{path} is a zarr group without a label image; accepted are a label image "
            "(X.ome.zarr/labels/NAME), an image with exactly one, or a plain array"
            f"{suggest_paths(path, labels=True)}"
        )
    names = list(map(str, listed))
    if scene is not None and len(names) > 1:
        names = [names[choose_scene(path, [Scene(name, "a label image") for name in names], scene)]]
    if len(names) > 1 and LABEL_NAME in names:
        # What marks the gaps of our own cells, or lies within them, is never meant where it is not
        # named.
        beside = {MISSING_NAME, *COMPARTMENT_LABELS.values()}.intersection(names)
        nodes = {name: read_node(path / name) for name in beside}
        ours = {name for name, each in nodes.items() if each and OWNER in each.document}
        names = [name for name in names if name not in ours]
    if len(names) != 1:
        example = path / (names[0] if names else "NAME")
        raise InputError(
            f"{node.path} has {len(names)} label images ({', '.join(names)}); give the path of "
            f"one, such as {example}"
        )
    found = read_node(path / names[0]) if is_inside(names[0]) else None
    if found is None or found.is_array:
        raise InputError(f"{path} lists the label image {names[0]!r}, and there is none")
    return found


def _list_groups(path: Place) -> list[str]:
    nodes = {child.name: read_node(child) for child in list_folders(path)}
    return sorted(name for name, node in nodes.items() if node is not None and not node.is_array)
