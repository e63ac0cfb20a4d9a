"""Which image of a TIFF is meant: the only one, the one that a user names, or all as channels.

Several images are never reduced to one without the user's word; what is left out is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tifffile import TiffPageSeries

from densebatch.base.errors import InputError, SceneError
from densebatch.base.names import Scene, choose_scene, quote_names
from densebatch.tiff.beside import LEVEL
from densebatch.tiff.image import UNNAMED_KINDS, TiffImage
from densebatch.tiff.makers import say_partial

if TYPE_CHECKING:
    from densebatch.tiff.images import OpenTiff

_N_LISTED = 8


@dataclass(frozen=True, eq=False)
class ChosenImage:
    """The image that is meant.

    Attributes
    ----------
    image : with a series
    number : of the image among all of the file; None for all of one size taken together
    notes : a sentence for each thing that a user should know of the choice
    """

    image: TiffImage
    number: int | None
    notes: tuple[str, ...] = ()

    @property
    def series(self) -> TiffPageSeries:
        """Its pages at the highest resolution."""
        return self.image.series


def choose_image(
    opened: OpenTiff, scene: str | None, *, is_stack: bool = False, only_if_several: bool = False
) -> ChosenImage:
    """The image of a file that is meant.

    Parameters
    ----------
    opened
        The file.
    scene
        A name, an index among the images that are no pictures beside one, or None. The exact name
        of such a picture chooses it.
    is_stack
        Whether images of one size are the channels of one image, if none is chosen.
    only_if_several
        Whether `scene` is of no account for a file of one image.

    Raises
    ------
    InputError
        If several images are there and none was chosen, or what was chosen is not there, or lacks
        planes.
    """
    path, real = opened.path, opened.real
    is_named = scene in [image.name for image in real]
    beside = [image for image in opened.images if image.beside and image.name == scene]
    if scene is not None and not is_named and len(beside) == 1:
        image = beside[0]
        told = (*opened.notes, *_tell_elsewhere(opened, image))
        return ChosenImage(_check(opened, image), opened.images.index(image), told)
    if scene is None and is_stack and len(real) > 1:
        return ChosenImage(_stack(opened), None, (*opened.notes, *_tell_left_out(opened)))
    if only_if_several and len(real) == 1:
        scene = None
    try:
        image = real[choose_scene(path, [Scene(i.name, i.what) for i in real], scene)]
    except SceneError as exc:
        same = len(real) > 1 and len({_stacking(image) for image in real}) == 1
        if scene is None and same and real[0].series is not None and real[0].series.axes == "YX":
            raise SceneError(
                f"{exc}; if they are the channels of one image, say so with --axes CYX", exc.scenes
            ) from exc
        raise
    notes = [*opened.notes, *_tell_left_out(opened), *_tell_levels(image)]
    notes += _tell_elsewhere(opened, image)
    return ChosenImage(_check(opened, image), opened.images.index(image), tuple(notes))


def _check(opened: OpenTiff, image: TiffImage) -> TiffImage:
    """Refuse an image that tifffile made nothing of, or that lacks planes."""
    missing = "" if opened.ome is None else opened.ome.say_missing(image.ome)
    missing = f"; {missing}" if missing else ""
    if image.series is None and missing:
        raise InputError(f"{opened.path} has no pixels of the image {image.name!r}{missing}")
    if image.series is None:
        raise InputError(
            f"{opened.path} describes the image {image.name!r} in a way that contradicts the pages "
            "that it has"
        )
    if partial := say_partial(opened.tif, image.series):
        raise InputError(f"{opened.path} {partial}")
    pages = list(image.series)
    lacking = sum(page is None for page in pages)
    if lacking:
        raise InputError(
            f"{opened.path} lacks {lacking} of the {len(pages)} planes that its metadata list; "
            f"all must be there, in files of their own beside it or inside{missing}"
        )
    return image


def _tell_left_out(opened: OpenTiff) -> list[str]:
    images = [image for image in opened.images if image.beside != LEVEL]
    beside = [image for image in images if image.beside]
    if not beside:
        return []
    listed = []
    for image in beside[:_N_LISTED]:
        name = f"{image.name!r}, " if image.name else ""
        size = f"{image.size[0]} x {image.size[1]} px " if image.area else ""
        listed.append(f"{name}{size}({image.beside})")
    more = len(beside) - _N_LISTED
    return [
        f"the file holds {len(images)} images, of which {len(beside)} "
        f"{'is' if len(beside) == 1 else 'are'} left out: {'; '.join(listed)}"
        + (f"; and {more} more" if more > 0 else "")
    ]


def _tell_elsewhere(opened: OpenTiff, image: TiffImage) -> list[str]:
    """Say that no plane of an image lies in the file itself."""
    if image.series is None:
        return []
    files = {page.parent.filename for page in image.series if page is not None}
    if opened.path.name in files or opened.tif.filename in files:
        return []
    return [f"all planes of the image lie in other files: {quote_names(sorted(files))}"]


def _tell_levels(image: TiffImage) -> list[str]:
    """Say what tifffile made of tiles and resolutions that the file does not say itself."""
    series = image.series
    if series is not None and series.kind == "bif":
        return ["tiles of this format overlap, and are read side by side without being stitched"]
    if series is None or series.kind not in UNNAMED_KINDS:
        return []
    others = [level for level in series.levels if level is not series]
    plain = [o for o in others if not (o.keyframe.is_reduced or o.keyframe.is_subifd)]
    if not plain:
        return []
    sizes = ["x".join(map(str, level.keyframe.shape[:2])) for level in plain]
    return [
        f"smaller images of the file ({', '.join(sizes)} px) are taken for lower resolutions of "
        "the largest, although they are not marked so"
    ]


def _stacking(image: TiffImage) -> object:
    """What images must have in common to be channels of one."""
    series = image.series
    if series is None:
        return None
    return series.shape, series.axes, series.dtype, series.keyframe.hash


def _stack(opened: OpenTiff) -> TiffImage:
    """All real images as one, along a dimension of their own that comes first."""
    real = opened.real
    if len({_stacking(image) for image in real}) > 1 or real[0].series is None:
        listed = "; ".join(f"{i}: {quote_names([r.name])}, {r.what}" for i, r in enumerate(real))
        raise InputError(
            f"{opened.path} holds {len(real)} images that differ in size, type or compression and "
            f"cannot be the channels of one; choose one with --scene ({listed})"
        )
    first = real[0].series
    pages = [page for image in real for page in _check(opened, image).series]  # type: ignore[union-attr]
    return TiffImage(
        TiffPageSeries(
            pages,
            shape=(len(real), *first.shape),
            dtype=first.dtype,
            axes="I" + first.axes,
            parent=opened.tif,
            kind="stack",
        )
    )
