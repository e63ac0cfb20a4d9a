"""Annotated images: an image and the label image that tells its cells, found by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.errors import InputError
from densebatch.label_pairs import find_partners, list_label_images
from densebatch.label_zarr import is_zarr

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class AnnotatedFile:
    """An image and its label image on disk."""

    name: str
    image: Path
    labels: Path


def find_annotated(folder: Path) -> list[AnnotatedFile]:
    """Pairs of a folder: `X_img.png` or `X.ome.tif` with `X_masks.png`, and OME-Zarr with labels.

    Raises
    ------
    InputError
        If there is no pair, or labels have no image.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder; accepted is one of images and their masks")
    found = [
        AnnotatedFile(path.name.split(".")[0], path, path)
        for path in sorted(folder.iterdir())
        if path.is_dir() and is_zarr(path) and (path / "labels").is_dir()
    ]
    inside = {file.name for file in found}
    labels = list_label_images(folder)
    images = find_partners(folder, list(labels)) if labels else {}
    for name, path in labels.items():
        if name in inside:
            raise InputError(f"{path}: {name} has labels of its own in its OME-Zarr; keep one")
        image = images.get(name)
        if image is None or image == path:
            raise InputError(f"{path}: no image of the name {name} beside these labels")
        found.append(AnnotatedFile(name, image, path))
    if not found:
        raise InputError(
            f"{folder}: no annotated image; accepted are X_img with X_masks (PNG, TIFF, OME-TIFF, "
            "zarr) and OME-Zarr images with a label image inside"
        )
    return sorted(found, key=lambda file: file.name)
