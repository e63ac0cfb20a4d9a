"""Annotated images to train on: found, read, normalised, and with the flows they ought to have."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from skimage.transform import resize

from densebatch.base.errors import InputError
from densebatch.base.geometry import Region
from densebatch.base.resampling import axis_weights, resample
from densebatch.cells.components import settle_masks
from densebatch.cells.pairs import AnnotatedFile, find_annotated
from densebatch.cells.pixels import as_labels
from densebatch.cells.read import open_labels
from densebatch.slides.slide import open_slide
from densebatch.survey.debris import count_shapes, find_debris
from densebatch.survey.normalization import find_masked
from densebatch.survey.passes import look_at_blocks
from densebatch.tracing.diffusion import compute_flows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.training.recipe import Recipe


EDGE_PX = 64
"""Width of the frame around every image, in which nothing is known: NaN, which the network is shown
as zeros, as around a slide. It is wider than a patch's margin so that enough crops hold an edge for
edges to be learnt: a quarter of the crops of fields of 1000 px. Rescaled images that are smaller
than a crop have a wider one."""


MAX_SHIFT = 7
"""Pixels by which a teacher's crop is moved at most: a CPnet of four resolutions pools over 8."""

_CELL_PX = 15.0  # of an image without cells


@dataclass(frozen=True)
class AnnotatedImage:
    """One annotated image in memory.

    Attributes
    ----------
    name : file name without ending and file type
    image : `(2, h, w)` float32: membrane and nuclei, the recipe's percentiles at 0 and 1; with
        `EDGE_PX` of NaN around, which are background in labels and flows
    labels : `(h, w)` int32
    flows : `(2, h, w)` float32, unit vectors towards each cell's centre
    sha256 : of pixels and labels as they were read
    scale : pixels of it for one of the image as it was read, along an axis
    masked_fraction : largest share of a channel's pixels that are taken for debris
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    flows: NDArray[np.float32]
    sha256: str
    scale: float = 1.0
    masked_fraction: float = 0.0

    @cached_property
    def areas(self) -> NDArray[np.intp]:
        """Number of pixels of each label, background first."""
        return np.bincount(self.labels.ravel())


@dataclass(frozen=True)
class HeldOut:
    """A held-out part of an annotated image, as a slide would hold it.

    Attributes
    ----------
    name : of the image
    pixels : `(c, h, w)` in the image's own type: membrane channels, then nuclei if used
    labels : `(h, w)` int32
    """

    name: str
    pixels: NDArray[np.generic]
    labels: NDArray[np.int32]


def _read(file: AnnotatedFile, recipe: Recipe) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
    """Read the channels `(c, h, w)` in the image's own type, and the labels."""
    slide = open_slide(file.image, recipe.scene, recipe.axes, z=recipe.z, t=recipe.t)
    whole = Region(0, 0, slide.info.height, slide.info.width)
    names = [slide.channel_index(name) for name in recipe.membrane] or [slide.default_channel()]
    if recipe.nuclei is not None:
        names.append(slide.channel_index(recipe.nuclei))
    pixels = np.stack([slide.read(channel, whole) for channel in names])
    truth = open_labels(file.labels, recipe.scene, masks=bool(recipe.label_components))
    if truth.shape != pixels.shape[1:]:
        raise InputError(
            f"{file.labels}: labels of {truth.shape[0]} x {truth.shape[1]} px for an image of "
            f"{pixels.shape[1]} x {pixels.shape[2]} px"
        )
    whole_truth = truth[slice(None), slice(None)]
    settled, _ = settle_masks(whole_truth, recipe.label_components, str(file.labels))
    labels = as_labels(settled, str(file.labels))
    # Ids may be any 32-bit numbers, and are made consecutive so that they can be counted.
    _, compact = np.unique(labels, return_inverse=True)
    has_background = bool((labels == 0).any())
    compact = compact.reshape(labels.shape) + (0 if has_background else 1)
    return pixels, compact.astype(np.int32)


def measure_diameters(labels: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """Diameter of every cell in pixels, `2 sqrt(area / pi)`.

    Raises
    ------
    InputError
        If there is no cell.
    """
    areas = np.concatenate([np.unique(plane[plane > 0], return_counts=True)[1] for plane in labels])
    if not areas.size:
        raise InputError("the annotated images hold no cell")
    result: NDArray[np.float64] = 2.0 * np.sqrt(areas / np.pi)
    return result


def _find_debris(plane: NDArray[np.generic], labels: NDArray[np.int32]) -> NDArray[np.bool_] | None:
    """Pixels that are taken for debris, and what is beside them; None if there are none."""
    cell_px = float(np.median(measure_diameters([labels]))) if labels.any() else _CELL_PX
    debris = find_debris(look_at_blocks(plane), lambda gap, _: count_shapes(plane, gap, cell_px))
    return find_masked(plane, debris.above, debris.dead) if debris.is_any else None


def make_annotated(
    name: str,
    pixels: NDArray[np.generic],
    labels: NDArray[np.int32],
    recipe: Recipe,
    stretch: float = 1.0,
) -> AnnotatedImage:
    """Normalise, rescale if the recipe says so, and compute target flows.

    Parameters
    ----------
    name
        Of the image.
    pixels
        `(c, h, w)`: membrane channels, then nuclei if the recipe uses them.
    labels
        `(h, w)`; 0 is background.
    recipe
        For percentiles, scale and collation.
    stretch
        Beside the recipe's `diameter_px`, for one of several copies of an image.

    Returns
    -------
    AnnotatedImage
        Framed by `EDGE_PX` of nothing or, if that makes less than a crop, by what makes one.

    Raises
    ------
    InputError
        If a pixel is NaN or infinite, or the recipe rescales the image and it holds no cell.
    """
    digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes())
    digest.update(np.ascontiguousarray(labels).tobytes())
    planes = np.zeros((2, *labels.shape), np.float32)
    scaled = []
    masked_fractions = []
    for raw in pixels:
        plane = raw.astype(np.float32)
        if not np.isfinite(plane).all():
            n = int((~np.isfinite(plane)).sum())
            raise InputError(
                f"image {name}: {n} pixels are NaN, infinite or beyond float32; accepted for "
                "training are finite values"
            )
        # A slide's debris is left out of its bounds and shown as 0, and so is that of images.
        masked = _find_debris(raw, labels) if recipe.mask_debris else None
        counted = plane if masked is None else plane[~masked]
        low, high = np.percentile(counted, recipe.percentiles)
        scaled.append((plane - low) / max(high - low, 1e-6))
        if masked is not None:
            scaled[-1][masked] = 0
            masked_fractions.append(float(masked.mean()))
    n_membrane = len(scaled) - (recipe.nuclei is not None)
    planes[0] = np.maximum.reduce(scaled[:n_membrane])
    if recipe.nuclei is not None:
        planes[1] = scaled[-1]
    factor = 1.0
    if recipe.diameter_px is not None:
        # Cellpose's `utils.diameters` takes the median too.
        factor = recipe.diameter_px * stretch / float(np.median(measure_diameters([labels])))
        shape = tuple(max(1, round(n * factor)) for n in labels.shape)
        # The planes are brought to the network's scale as those of a slide are.
        rows, cols = (
            axis_weights(np.arange(n_out), n_in, n_out)
            for n_in, n_out in zip(labels.shape, shape, strict=True)
        )
        planes = resample(planes, rows, cols)
        labels = resize(labels, shape, order=0, preserve_range=True, anti_aliasing=False)
        labels = labels.astype(np.int32)
    flows = compute_flows(labels)
    if recipe.collation:
        planes, labels, flows = _collate(planes, labels, flows)
    least = recipe.patch_px + MAX_SHIFT
    edge = tuple((max(EDGE_PX, math.ceil((least - n) / 2)),) * 2 for n in labels.shape)
    planes = np.pad(planes, ((0, 0), *edge), constant_values=np.nan)
    flows = np.pad(flows, ((0, 0), *edge))
    labels = np.pad(labels, edge)
    return AnnotatedImage(
        name, planes, labels, flows, digest.hexdigest(), factor, max(masked_fractions, default=0.0)
    )


def _collate(
    planes: NDArray[np.float32], labels: NDArray[np.int32], flows: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Put an image beside itself, 2 x 2, without the cells at its edges (Han et al. 2024)."""
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    cut = np.isin(labels, edge[edge > 0])
    kept = np.where(cut, 0, labels)
    shift = int(labels.max()) + 1
    copies = [np.where(kept > 0, kept + k * shift, 0) for k in range(4)]
    tiled = np.block([copies[:2], copies[2:]]).astype(np.int32)
    return (
        np.tile(np.where(cut, 0, planes).astype(np.float32), (1, 2, 2)),
        tiled,
        np.tile(np.where(cut, 0, flows).astype(np.float32), (1, 2, 2)),
    )


def _choose_files(files: list[AnnotatedFile], folder: Path, recipe: Recipe) -> list[AnnotatedFile]:
    wanted = recipe.train_images
    names = [file.name for file in files]
    if isinstance(wanted, tuple):
        if missing := [name for name in wanted if name not in names]:
            raise InputError(
                f"{folder}: no image {missing[0]!r} to train on; there are {', '.join(names)}"
            )
        return [file for file in files if file.name in wanted]
    if wanted > len(files):
        raise InputError(f"{folder}: train_images is {wanted}, and there are {len(files)}")
    if wanted == 0:
        return files
    chosen = np.random.default_rng([recipe.seed, 1]).permutation(len(files))[:wanted]
    return [files[k] for k in sorted(chosen)]


def is_held_out(name: str, share: float) -> bool:
    """Whether an image of this name belongs to the share that is held out.

    The first 32 bits of the name's SHA-256, as a fraction, are below the share: it depends neither
    on the other images nor on the seed.

    Examples
    --------
    >>> [is_held_out("Position8_CD3", share) for share in (0.0, 0.2, 0.99)]
    [False, True, True]
    """
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < share


def load_annotated(
    folder: Path, recipe: Recipe, exclude: Sequence[str] = ()
) -> tuple[list[AnnotatedImage], list[HeldOut]]:
    """Read a folder of annotated images and set the validation part aside.

    Parameters
    ----------
    folder
        See `find_annotated`.
    recipe
        For channels, percentiles, scale, the number of images and the held-out columns.
    exclude
        Names of images to hold out.

    Returns
    -------
    images : list of AnnotatedImage
        To train on, sorted by name; of each as many copies as the recipe has scales.
    held_out : list of HeldOut
        To validate with: whole images, or the columns at the right of those in `images`, which
        lack them.

    Raises
    ------
    InputError
        For what cannot be paired or read, a name that is not there, an image smaller than a
        crop, or a mask that the recipe does not say what to do with.
    """
    files = find_annotated(folder)
    if unknown := sorted(set(exclude) - {file.name for file in files}):
        raise InputError(
            f"{folder}: no image {unknown[0]!r} to hold out; there are "
            + ", ".join(file.name for file in files)
        )
    out = {*exclude, *(f.name for f in files if is_held_out(f.name, recipe.validation_share))}
    used = _choose_files([file for file in files if file.name not in out], folder, recipe)
    if not used:
        raise InputError(f"{folder}: every image is held out")
    images, held_out = [], []
    for file in files:
        if file.name in out:
            held_out.append(HeldOut(file.name, *_read(file, recipe)))
        elif file in used:
            pixels, labels = _read(file, recipe)
            kept = labels.shape[1] - round(labels.shape[1] * recipe.validation_columns)
            if kept < labels.shape[1]:
                held_out.append(HeldOut(file.name, pixels[..., kept:], labels[:, kept:]))
            height, width = labels.shape[0], kept
            # Those that are rescaled may well be smaller, and are shown with more around them.
            if recipe.diameter_px is None and min(height, width) < recipe.patch_px:
                raise InputError(
                    f"{file.image}: {height} x {width} px to train on are smaller than a crop of "
                    f"{recipe.patch_px} px"
                )
            images += [
                make_annotated(file.name, pixels[..., :kept], labels[:, :kept], recipe, stretch)
                for stretch in recipe.stretches
            ]
    measure_diameters([image.labels for image in images])  # refuses images without a cell
    return images, held_out
