"""Open a zarr array, or the label image or picture of an OME-Zarr group (zarr 2 and 3)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import zarr

from densebatch.base.errors import InputError, describe_cause
from densebatch.base.ngff import (
    find_multiscale,
    list_axis_names,
    list_labels,
    ome_attributes,
)
from densebatch.cells.pixels import ACCEPTED, Pixels, guess_axes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.ngff import Json


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
            path = self.folder / self.array.metadata.encode_chunk_key(place)
            if path.exists() and (not path.is_file() or path.stat().st_size == 0):
                raise InputError(f"the stored piece {path.relative_to(self.folder)} is empty")
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


def open_zarr(path: Path, *, labels: bool) -> Pixels:
    """Open an array, the label image of a group, or the highest resolution of its picture.

    Parameters
    ----------
    path
        A folder: an array, a group, or the output of a run.
    labels
        Whether the label image of an image group is meant, or its picture.

    Raises
    ------
    InputError
        If it is no zarr, or a group without one such image.
    """
    if not is_zarr(path) and is_zarr(path / "segmentation.ome.zarr"):
        path = path / "segmentation.ome.zarr"
    if not is_zarr(path):
        raise InputError(f"{path} is a folder and no zarr; accepted are {ACCEPTED}")
    node = zarr.open(path, mode="r")
    axes = None
    if isinstance(node, zarr.Group):
        # A group below `labels` is taken for a label image, because not every writer marks them.
        node, axes = _find_array(node, path, labels=labels and path.parent.name != "labels")
    if axes is None or len(axes) != node.ndim or not {"Y", "X"} <= set(axes):
        axes = guess_axes(node.shape, path)
    array = CheckedArray(node, path / node.path)
    unit = array.piece
    return Pixels(path, array, axes, (unit[axes.index("Y")], unit[axes.index("X")]))


def _find_array(
    group: zarr.Group, path: Path, *, labels: bool
) -> tuple[zarr.Array[Any], str | None]:
    """The highest resolution of a label image, or of an image, and a letter for each axis."""
    ome = ome_attributes(dict(group.attrs))
    if labels and "image-label" not in ome:
        return _find_array(_find_label_group(group, ome, path), path, labels=False)
    multiscale = find_multiscale(ome)
    if multiscale is None:
        raise InputError(f"{path} is a zarr group without an image; accepted are {ACCEPTED}")
    array = group[multiscale["datasets"][0]["path"]]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{path} lists {array.name} as its highest resolution, which is no array")
    letters = "".join(str(name)[0].upper() for name in list_axis_names(multiscale))
    return array, letters or None


def _find_label_group(group: zarr.Group, ome: Json, path: Path) -> zarr.Group:
    """The only label image of an image group, or of a group of label images."""
    holder = group
    listed = list_labels(ome)
    if "labels" in set(group.group_keys()):
        holder = cast("zarr.Group", group["labels"])
        listed = list_labels(ome_attributes(dict(holder.attrs))) or sorted(holder.group_keys())
    elif ome.get("labels") is None:
        raise InputError(
            f"{path} is a zarr group without a label image; accepted are a label image "
            "(X.ome.zarr/labels/NAME), an image with exactly one, or a plain array"
        )
    if len(listed) != 1:
        raise InputError(
            f"{path} has {len(listed)} label images ({', '.join(map(str, listed))}); give the "
            "path of one, such as X.ome.zarr/labels/NAME"
        )
    return cast("zarr.Group", holder[str(listed[0])])
