"""Pair the label images of two folders by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import count_of
from densebatch.cells.read import FILE_SUFFIXES
from densebatch.cells.read_zarr import is_zarr

if TYPE_CHECKING:
    from pathlib import Path

# Longest first: `_cp_masks` is Cellpose's and must not leave `_cp` behind.
LABEL_ENDINGS = (
    *("_cp_masks", "_predictions", "_prediction", "_masks", "_labels", "_truth", "_mask"),
    *("_label", "_pred", "_seg", "_gt"),
)
IMAGE_ENDINGS = ("_img", "_image")
COMPOUND_SUFFIXES = (".ome.zarr", ".ome.tiff", ".ome.tif")
_SHOWN = 3


@dataclass(frozen=True)
class Pair:
    """A prediction and the truth of the same image."""

    name: str
    pred: Path
    truth: Path


@dataclass(frozen=True)
class Pairing:
    """The pairs of two folders, and how they were found.

    Attributes
    ----------
    pairs
        Sorted by name.
    rule
        One or more sentences for the user.
    unpaired
        Label images without a partner.
    """

    pairs: tuple[Pair, ...]
    rule: str
    unpaired: tuple[Path, ...] = ()


def split_name(path: Path) -> tuple[str, str]:
    """The name of an image and the ending that makes a file its label image, if there is one.

    Examples
    --------
    >>> from pathlib import Path
    >>> split_name(Path("a/Position8_CD3_img_cp_masks.png"))
    ('Position8_CD3', '_cp_masks')
    >>> split_name(Path("Position8_CD3.ome.tif"))
    ('Position8_CD3', '')
    """
    name = path.name
    suffix = next((s for s in COMPOUND_SUFFIXES if name.lower().endswith(s)), path.suffix)
    stem = name[: len(name) - len(suffix)]
    found = next((e for e in LABEL_ENDINGS if stem.lower().endswith(e) and stem.lower() != e), "")
    stem = stem[: len(stem) - len(found)]
    # Cellpose names the masks of X_img.png X_img_cp_masks.png.
    image = next((e for e in IMAGE_ENDINGS if found and stem.lower().endswith(e)), "")
    return stem[: len(stem) - len(image)] or stem, found


def name_label_image(path: Path) -> str:
    """What to call a label image in a report.

    Examples
    --------
    >>> from pathlib import Path
    >>> name_label_image(Path("runs/slide7.ome.zarr/labels/cells"))
    'slide7'
    """
    for parent in (path, *path.absolute().parents):
        if parent.name == "segmentation.ome.zarr":
            return parent.parent.name
        if parent.name.lower().endswith(".zarr"):
            return split_name(parent)[0]
    return split_name(path)[0]


def pair_labels(pred: Path, truth: Path, *, allow_missing: bool = False) -> Pairing:
    """Pair two label images, or those of two folders by name.

    In a folder, a name is taken without its file type and without an ending such as `_masks` or
    `_cp_masks`. If some names of a folder have such an ending, those without are pictures and
    other files, and are left out.

    Parameters
    ----------
    pred, truth
        Two label images, or two folders of them.
    allow_missing
        Leave out what has no partner instead of raising.

    Raises
    ------
    InputError
        For a file and a folder, a folder without label images, two label images of one name, and
        those without a partner.
    """
    folders = [_is_folder(path) for path in (pred, truth)]
    if not any(folders):
        return Pairing((Pair(name_label_image(truth), pred, truth),), "")
    if not all(folders):
        kinds = ["a folder of files" if folder else "one label image" for folder in folders]
        raise InputError(
            f"{pred} is {kinds[0]} but {truth} is {kinds[1]}; accepted are two label images or two "
            "folders"
        )
    (preds, pred_left), (truths, truth_left) = _list_folder(pred), _list_folder(truth)
    names = sorted(preds.keys() & truths.keys())
    alone = [preds[name] for name in sorted(preds.keys() - truths.keys())]
    alone += [truths[name] for name in sorted(truths.keys() - preds.keys())]
    if alone and not (allow_missing and names):
        raise InputError(
            f"{count_of(len(alone), 'label image')} of {pred} and {truth} without a partner of the "
            f"same name: {_list_some(alone)}; names are compared without file type and endings "
            f"such as _masks{'' if allow_missing else '; --allow-missing leaves them out'}"
        )
    rule = (
        f"Paired {count_of(len(names), 'image')} by name, without file type and endings such as "
        "_masks."
    )
    if left := [*pred_left, *truth_left]:
        rule += f" Left out {count_of(len(left), 'file')} that are no label images by their names"
        rule += f": {_list_some(left)}."
    if alone:
        rule += f" Left out {count_of(len(alone), 'label image')} without a partner"
        rule += f": {_list_some(alone)}."
    return Pairing(
        tuple(Pair(name, preds[name], truths[name]) for name in names), rule, tuple(alone)
    )


def list_label_images(folder: Path) -> dict[str, Path]:
    """Files of a folder that are label images by their endings, by the name without it.

    Raises
    ------
    InputError
        If two have the same name.
    """
    if not any(ending for _, ending in map(split_name, _candidates(folder))):
        return {}
    return _list_folder(folder)[0]


def find_partners(source: Path, names: list[str]) -> dict[str, Path]:
    """Files of a folder with the given names, whatever their endings; or one file for one name.

    Raises
    ------
    InputError
        If `source` is one image and there are several names.
    """
    if not _is_folder(source):
        if len(names) != 1:
            raise InputError(f"{source} is one image, but {len(names)} are scored; give a folder")
        return {names[0]: source}
    found: dict[str, Path] = {}
    for path in _candidates(source):
        name, ending = split_name(path)
        stem = next((name[: -len(e)] for e in IMAGE_ENDINGS if name.lower().endswith(e)), name)
        if stem in names and not (ending and stem in found):
            found[stem] = path
    return found


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not is_zarr(path) and not is_zarr(path / "segmentation.ome.zarr")


def _candidates(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (is_zarr(path) if path.is_dir() else path.suffix.lower() in FILE_SUFFIXES)
    )


def _list_folder(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """Label images by name, and what was left out."""
    named = [(*split_name(path), path) for path in _candidates(folder)]
    marked = any(ending for _, ending, _ in named)
    labels: dict[str, Path] = {}
    left = []
    for name, ending, path in named:
        if marked and not ending:
            left.append(path)
        elif name in labels:
            raise InputError(
                f"{labels[name].name} and {path.name} in {folder} are both label images of {name}; "
                "keep one of them"
            )
        else:
            labels[name] = path
    if not labels:
        raise InputError(f"{folder} has no label images; accepted are {', '.join(FILE_SUFFIXES)}")
    return labels, left


def _list_some(paths: list[Path]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(path.name for path in paths[:_SHOWN]) + more


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
