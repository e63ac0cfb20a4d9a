"""Open a zarr array, or the label image or picture of an OME-Zarr group (zarr 2 and 3)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import zarr

from densebatch.base.errors import InputError
from densebatch.cells.pixels import ACCEPTED, Pixels, guess_axes, tell

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


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
                raise OSError(f"the stored piece {path.relative_to(self.folder)} is empty")
        try:
            return self._read(index)
        except MemoryError:
            raise
        # Whatever a codec raises, it does not say where: read piece by piece to tell the user.
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
            raise OSError(f"the stored piece {key} is damaged: {tell(exc)}") from exc


def is_zarr(path: Path) -> bool:
    """Whether a folder holds a zarr array or group of either version."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Path, *, labels: bool) -> Pixels:
    """Open an array, the label image of a group, or the highest resolution of its picture."""
    if not is_zarr(path) and is_zarr(path / "segmentation.ome.zarr"):
        path = path / "segmentation.ome.zarr"
    if not is_zarr(path):
        raise InputError(f"{path} is a folder and no zarr; accepted are {ACCEPTED}")
    node = zarr.open(path, mode="r")
    axes = None
    if isinstance(node, zarr.Group):
        # Not every writer marks its label images, but they all go below `labels`.
        node, axes = _find_array(node, path, labels=labels and path.parent.name != "labels")
    if axes is None or len(axes) != node.ndim or not {"Y", "X"} <= set(axes):
        axes = guess_axes(node.shape, path)
    array = CheckedArray(node, path / node.path)
    unit = array.piece
    return Pixels(path, array, axes, (unit[axes.index("Y")], unit[axes.index("X")]))


def _find_array(
    group: zarr.Group, path: Path, *, labels: bool
) -> tuple[zarr.Array[Any], str | None]:
    """The highest resolution of a label image, or of an image."""
    attributes: dict[str, Any] = dict(group.attrs)
    attributes = attributes.get("ome", attributes)
    members = set(group.group_keys())
    if labels and "image-label" not in attributes:
        listed = attributes.get("labels")
        if "labels" in members:
            group = group["labels"]  # type: ignore[assignment]
            found: dict[str, Any] = dict(group.attrs)
            listed = found.get("ome", found).get("labels") or sorted(group.group_keys())
        if listed is None:
            raise InputError(
                f"{path} is a zarr group without a label image; accepted are a label image "
                "(X.ome.zarr/labels/NAME), an image with exactly one, or a plain array"
            )
        if len(listed) != 1:
            raise InputError(
                f"{path} has {len(listed)} label images ({', '.join(map(str, listed))}); give the "
                "path of one, such as X.ome.zarr/labels/NAME"
            )
        return _find_array(group[str(listed[0])], path, labels=False)  # type: ignore[arg-type]
    multiscales = attributes.get("multiscales")
    if not multiscales:
        raise InputError(f"{path} is a zarr group without an image; accepted are {ACCEPTED}")
    names = [
        axis["name"] if isinstance(axis, dict) else axis for axis in multiscales[0].get("axes", [])
    ]
    array = group[multiscales[0]["datasets"][0]["path"]]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{path} lists {array.name} as its highest resolution, which is no array")
    return array, "".join(str(name)[0].upper() for name in names) or None
