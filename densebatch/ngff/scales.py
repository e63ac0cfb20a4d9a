"""Transformations of OME-Zarr images: how large a pixel is, and what labels of an image copy.

A pixel size that is wrong rescales the whole slide, so it is taken only from what can be read in
one way: scales, one after another or in a sequence, beside translations. Whatever else is found is
said, and the size counts as unknown.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from densebatch.base.errors import InputError
from densebatch.ngff.metadata import (
    VERSIONS,
    SlidePyramid,
    find_version,
    list_axis_names,
    ome_attributes,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from densebatch.ngff.metadata import Json, Transform, Version

_MAX_NESTED = 16
_MAX_SHOWN = 80
_Pair = tuple[float, float]


_SHORT = "the scale of the {} has {} entries for {} axes; the last two are taken for y and x"


class UnclearError(ValueError):
    """Transformations that cannot be read; the message is what was found."""


class PixelLengths(NamedTuple):
    """What metadata tell of the height and width of a pixel.

    Attributes
    ----------
    lengths : along y and x, positive; None if they cannot be told
    units : as they are written; None where there is none
    problem : what was found instead of lengths; None if they are known
    notes : what a user should know of how they were read, a sentence each
    """

    lengths: _Pair | None
    units: tuple[object, object]
    problem: str | None = None
    notes: tuple[str, ...] = ()


def find_pixel_lengths(multiscale: Json, y: int, x: int, ndim: int) -> PixelLengths:
    """Height and width of a pixel of the first level, in the units of the axes.

    The scale of the level times that of the whole image. Of a scale with fewer entries than there
    are axes the last ones count, where y and x are the last axes.

    Parameters
    ----------
    multiscale
        An image whose levels `list_level_paths` accepts, the finest first.
    y, x
        Indices of the axes.
    ndim
        Number of axes.
    """
    units = (_find_unit(multiscale, y, ndim), _find_unit(multiscale, x, ndim))
    notes: list[str] = []
    try:
        of_level, of_image = map(_list_steps, (multiscale["datasets"][0], multiscale))
        own = _multiply_scales(of_level, y, x, ndim)
        whole = _multiply_scales(of_image, y, x, ndim)
    except UnclearError as found:
        return PixelLengths(None, units, str(found))
    if own is None and whole in (None, (1.0, 1.0)):
        problem = "a translation and no scale" if of_level else "no scale"
        return PixelLengths(None, units, f"{problem} of the highest resolution")
    if own is None:
        notes.append(
            "the highest resolution has no scale of its own; that of the whole image is taken"
        )
    for name, steps in (("highest resolution", of_level), ("whole image", of_image)):
        short = [len(s["scale"]) for s in steps if s["type"] == "scale" and len(s["scale"]) < ndim]
        notes += [_SHORT.format(name, n, ndim) for n in short[:1]]
    (own_y, own_x), (whole_y, whole_x) = own or (1.0, 1.0), whole or (1.0, 1.0)
    lengths = (own_y * whole_y, own_x * whole_x)
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        return PixelLengths(
            None, units, f"a scale of {lengths[0]:g} along y, {lengths[1]:g} along x"
        )
    return PixelLengths(lengths, units, None, tuple(notes))


def find_translation(multiscale: Json, y: int, x: int, ndim: int) -> _Pair | None:
    """Where the first pixel of the first level lies along y and x, in the units of the axes.

    Parameters
    ----------
    multiscale, y, x, ndim
        As of `find_pixel_lengths`.

    Returns
    -------
    tuple or None
        None where the transformations cannot be read.
    """
    at = (0.0, 0.0)
    try:
        for holder in (multiscale["datasets"][0], multiscale):
            for step in _list_steps(holder):
                first, second = _read_pair(step, step["type"], y, x, ndim, finite=True)
                is_scale = step["type"] == "scale"
                at = (
                    (at[0] * first, at[1] * second) if is_scale else (at[0] + first, at[1] + second)
                )
    except UnclearError:
        return None
    return at


def _find_unit(multiscale: Json, axis: int, ndim: int) -> object:
    axes = multiscale.get("axes")
    if isinstance(axes, list) and len(axes) == ndim and isinstance(axes[axis], dict):
        return axes[axis].get("unit")
    return None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _list_steps(holder: Json) -> list[Json]:
    """Transformations of a level or of the whole image, without sequences and identities.

    Raises
    ------
    UnclearError
        If there is something else than scales and translations.
    """
    found = holder.get("coordinateTransformations")
    if found is None:
        return []
    if not isinstance(found, list):
        raise UnclearError(f"the transformations {_shorten(found)}")
    targets = {
        _shorten(step["output"]) for step in found if isinstance(step, dict) and "output" in step
    }
    if len(targets) > 1:
        raise UnclearError("transformations into several coordinate systems")
    return list(_flatten(found, 0))


def _flatten(steps: list[Any], depth: int) -> Iterator[Json]:
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind in ("scale", "translation"):
            yield step
        elif kind == "sequence" and depth < _MAX_NESTED:
            inner = step.get("transformations")
            if not isinstance(inner, list):
                raise UnclearError(f"the transformation {_shorten(step)}")
            yield from _flatten(inner, depth + 1)
        elif kind != "identity":
            what = f"a transformation of type {kind!r}" if isinstance(kind, str) else None
            raise UnclearError(what or f"the transformation {_shorten(step)}")


def _multiply_scales(steps: list[Json], y: int, x: int, ndim: int) -> _Pair | None:
    """The product of all scales along y and x; None if there is none."""
    pairs = [_read_pair(step, "scale", y, x, ndim) for step in steps if step["type"] == "scale"]
    if not pairs:
        return None
    return math.prod(pair[0] for pair in pairs), math.prod(pair[1] for pair in pairs)


def _read_pair(
    step: Json,
    kind: Literal["scale", "translation"],
    y: int,
    x: int,
    ndim: int,
    *,
    finite: bool = False,
) -> _Pair:
    """The numbers of a transformation along y and x; `finite` if they are to be copied."""
    numbers = step.get(kind)
    if not isinstance(numbers, list):
        elsewhere = step.get("path")
        if isinstance(elsewhere, str):
            raise UnclearError(f"a {kind} that is kept elsewhere, in {elsewhere!r}")
        raise UnclearError(f"the {kind} {_shorten(numbers)}")
    n = len(numbers)
    if n > ndim or n < 2 or (n < ndim and {y, x} != {ndim - 2, ndim - 1}):
        raise UnclearError(f"a {kind} of {n} entries for {ndim} axes")
    try:
        # The text of a yes or no is no number, though Python takes it for one.
        first, second = (float(str(numbers[axis - ndim])) for axis in (y, x))
    except ValueError:
        raise UnclearError(f"the {kind} {_shorten(numbers)}") from None
    usable = math.isfinite(first * second) and (kind != "scale" or first * second != 0)
    if finite and not usable:
        raise UnclearError(f"the {kind} {_shorten(numbers)}")
    return first, second


def _shorten(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def parse_pyramid(
    attributes: Mapping[str, Any],
    multiscale: Json,
    shapes: Sequence[tuple[int, ...]],
    where: str,
    *,
    axes: str | None = None,
    bare: bool = False,
) -> tuple[Version, SlidePyramid]:
    """Version and layout of an existing image, for labels that copy it.

    Parameters
    ----------
    attributes
        Of the image group.
    multiscale
        The image among them, the largest level first.
    shapes
        Of its arrays, one per level.
    where
        Named in the error.
    axes
        A letter for each axis, if a user said what they are.
    bare
        Accept an image none of whose levels has a scale. Labels must have one; it then tells the
        levels' sizes relative to the first, without a unit.

    Returns
    -------
    version
        "0.4" or "0.5".
    pyramid
        Shapes and transformations of its levels, along y and x.

    Raises
    ------
    InputError
        If the version is neither 0.4 nor 0.5, there are no y and x axes, a level has no scale, or
        a transformation is of a kind that labels cannot copy.
    """
    zarr_format = 3 if "ome" in attributes else 2
    version = find_version(ome_attributes(attributes), multiscale, zarr_format)
    if version is None:
        version = version_of(zarr_format)
    if version not in VERSIONS:
        accepted = " and ".join(VERSIONS)
        raise InputError(f"{where} is OME-Zarr {version}; labels go into {accepted} only.")
    names = list(axes.lower()) if axes is not None else list_axis_names(multiscale)
    if not {"y", "x"} <= set(names) or any(len(shape) != len(names) for shape in shapes):
        raise InputError(f"{where} has axes {names} for shapes {list(shapes)}; y and x are needed.")
    y, x = names.index("y"), names.index("x")

    def plane(holder: Json) -> tuple[Transform, ...]:
        result: list[Transform] = []
        try:
            for step in _list_steps(holder):
                kind = step["type"]
                result.append((kind, *_read_pair(step, kind, y, x, len(names), finite=True)))
        except UnclearError as found:
            raise InputError(
                f"{where} has {found}, which labels cannot copy; accepted are scales and "
                "translations, or labels that are not written in place."
            ) from found
        return tuple(result)

    transforms = tuple(plane(dataset) for dataset in multiscale["datasets"])
    outer = plane(multiscale)
    unit_y, unit_x = (_find_unit(multiscale, axis, len(names)) for axis in (y, x))
    units = (_text_or_none(unit_y), _text_or_none(unit_x))
    planes = tuple((shape[y], shape[x]) for shape in shapes)
    if bare and not any(transforms):
        height, width = planes[0]
        transforms = tuple((("scale", height / h, width / w),) for h, w in planes)
        if not any(step[0] == "scale" and step[1:] != (1, 1) for step in outer):
            units = (None, None)
    for steps in transforms:
        if not any(step[0] == "scale" for step in steps):
            raise InputError(
                f"{where} has a level without a scale, which labels cannot copy; accepted are "
                "scales of all levels, or labels that are not written in place."
            )
    return version, SlidePyramid(planes, transforms, outer, units)
