"""Metadata of OME-Zarr (NGFF) 0.4 and 0.5: what the attributes of groups say, and writing them.

`slides` reads images and `cells` reads and writes label images. The two know nothing of each other
and both need this package, which is why it stands below them. Nothing in this module touches a
disk: attributes come and go as parsed JSON.

Reading is tolerant and does without ome-zarr-models, because its models refuse what real files
have and what is read here: channels (`omero`) with a label but no colour, axes without a type, a
level without a scale, a version left out, an unknown transformation of an image of which only the
pixels are wanted. It would also take each worker a tenth of a second to import.

Writing gives plain dictionaries, because the models write keys in an order of their own, and files
of two runs are compared byte by byte. `find_fault` has the models check a document before it is
written.

Choices that the specification leaves open, and why they were made:

- *Scales are plain*, 2^level times the pixel size, the same for image and labels, and so is the
  translation of a slide with an origin: one for all levels. Strictly, a mean of 2x2 pixels sits
  half a pixel away from the pixel that labels keep, but viewers place levels by their scale (napari
  reads nothing else), and an overlay must not jump when one of the two layers changes level. Labels
  of an existing image copy its transformations to the letter for the same reason.
- *No `colors` in `image-label`*: the specification recommends one entry for every label, and
  viewers take the list for complete. With a single entry napari draws that one cell and hides all
  others; with a million the document is tens of megabytes that a reader parses before it draws.
  Without the list every cell gets a colour of its own, and the document is valid (`colors` is a
  SHOULD). `properties` are for few cells alone, for the same reason; the table has them all.
- *An unknown pixel size* is a scale of 1 at full resolution without a unit, rather than a wrong
  number of micrometres.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from densebatch.remote.tree import Place

Json = dict[str, Any]
# What is read and written; what follows from a version is asked of this module.
Version = Literal["0.4", "0.5"]
ZarrFormat = Literal[2, 3]
# One step: its kind and its numbers along y and x.
Transform = tuple[Literal["scale", "translation"], float, float]

_OLDER = ("0.1", "0.2", "0.3")
VERSIONS: tuple[Version, ...] = get_args(Version)
ZARR_FORMATS: dict[Version, ZarrFormat] = {"0.4": 2, "0.5": 3}


@dataclass(frozen=True)
class SlidePyramid:
    """How an OME-Zarr image is laid out, for labels of it.

    Attributes
    ----------
    shapes
        Height and width of every level, finest first.
    transforms
        Scale and translation of every level, along y and x.
    outer
        Transformations of the whole multiscale image, applied after those of a level.
    units
        Units of the y and x axes; None where the image gives none.
    """

    shapes: tuple[tuple[int, int], ...]
    transforms: tuple[tuple[Transform, ...], ...]
    outer: tuple[Transform, ...] = ()
    units: tuple[str | None, str | None] = (None, None)


def ome_attributes(attributes: Mapping[str, Any], zarr_format: int | None = None) -> Json:
    """The OME part of a group's attributes: under `ome` from 0.5 on, at the top before.

    Parameters
    ----------
    attributes
        All attributes of the group.
    zarr_format
        Of the group, which decides the place; without it they are taken from where they are.

    Examples
    --------
    >>> ome_attributes({"ome": {"labels": ["a"]}}) == ome_attributes({"labels": ["a"]})
    True
    """
    if zarr_format is None:
        zarr_format = 3 if "ome" in attributes else 2
    found = attributes.get("ome") if zarr_format == 3 else attributes
    return dict(found) if isinstance(found, dict) else {}


def find_multiscale(ome: Json) -> Json | None:
    """The first image that OME attributes describe, None if they describe none."""
    images = ome.get("multiscales")
    found = images[0] if isinstance(images, list) and images else None
    return found if isinstance(found, dict) and found else None


def list_axis_names(multiscale: Json) -> list[Any]:
    """Names of the axes, which are objects from 0.4 on and were bare strings before."""
    axes = multiscale.get("axes")
    return [
        axis.get("name") if isinstance(axis, dict) else axis
        for axis in (axes if isinstance(axes, list | str) else ())
    ]


def list_labels(ome: Json) -> list[Any]:
    """Names of the label images that the attributes of a group `labels` list."""
    return list(ome.get("labels") or ())


def version_of(zarr_format: int) -> Version:
    """The version that images of a Zarr format are of where they state none.

    Format 3 is that of 0.6 too, which always states itself and is refused by `check_version`.

    Examples
    --------
    >>> version_of(2), version_of(3)
    ('0.4', '0.5')
    """
    return next(version for version in VERSIONS if ZARR_FORMATS[version] == zarr_format)


def find_version(ome: Json, multiscale: Json, zarr_format: int) -> Any:  # noqa: ANN401
    """The version that an image states: with each image in 0.4, once per group from 0.5 on."""
    return (multiscale if zarr_format == 2 else ome).get("version")


def check_version(
    ome: Json, multiscale: Json, zarr_format: int, where: Place, *, older: bool = False
) -> Version:
    """Check that a version, where it is stated, belongs to the Zarr format; the version it is.

    Parameters
    ----------
    ome, multiscale
        OME attributes of the group and the image in them.
    zarr_format
        Of the group.
    where
        Named in the error.
    older
        Whether 0.1 to 0.3 are accepted, which store arrays as 0.4 does and describe axes otherwise.

    Returns
    -------
    Version
        The version that it is read as; that of the format where none is stated.

    Raises
    ------
    InputError
        If another version is stated.
    """
    expected = version_of(zarr_format)
    found = find_version(ome, multiscale, zarr_format)
    accepted = {expected, *(_OLDER if older and zarr_format == 2 else ())}
    if found is not None and str(found) not in accepted:
        with_axes = ", and 0.1 to 0.3 if --axes says what the dimensions are, such as CYX"
        raise InputError(
            f"{where} is OME-Zarr {found} in Zarr format {zarr_format}; accepted are 0.4 in "
            f"Zarr format 2 and 0.5 in Zarr format 3{with_axes if str(found) in _OLDER else ''}"
        )
    return expected


def list_level_paths(multiscale: Json, where: Place) -> list[str]:
    """Paths of the arrays of all levels inside the group, as they are listed.

    Raises
    ------
    InputError
        If there is none, or one that is no path inside the group.
    """
    datasets = multiscale.get("datasets")
    if not (isinstance(datasets, list) and datasets):
        raise InputError(f"{where} has multiscales metadata without datasets")
    names: list[str] = []
    for entry in datasets:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_inside(name):
            raise InputError(f"{where} names a dataset {name!r}, which is no path inside it")
        names.append(name)
    return names


def is_inside(path: object) -> bool:
    """Whether something is the path of a member of a group, and leads nowhere else."""
    parts = PurePosixPath(path).parts if isinstance(path, str) else ()
    return bool(parts) and not {"..", "/"} & set(parts)


def rank_levels(multiscale: Json, shapes: Sequence[Sequence[int]]) -> list[int]:
    """Which levels have the most rows and columns, in order; parameters as of `order_levels`."""
    sizes = [math.prod(size) for size in _list_planes(multiscale, shapes)]
    return sorted(range(len(sizes)), key=lambda level: -sizes[level])


def order_levels(multiscale: Json, shapes: Sequence[Sequence[int]]) -> Json:
    """An image whose levels are listed from the largest on, as the specification wants it.

    Parameters
    ----------
    multiscale
        With at least one level.
    shapes
        Of the arrays of its levels, as they are listed. Levels of one size keep their order.
    """
    order = rank_levels(multiscale, shapes)
    return multiscale | {"datasets": [multiscale["datasets"][level] for level in order]}


def check_largest(multiscale: Json, shapes: Sequence[Sequence[int]], where: Place) -> None:
    """Refuse levels of which none is the largest both in rows and in columns, or one has no pixel.

    Parameters
    ----------
    multiscale, shapes
        As of `order_levels`.
    where
        Named in the error.

    Raises
    ------
    InputError
        With the sizes.
    """
    planes = _list_planes(multiscale, shapes)
    sizes = ", ".join(" x ".join(map(str, plane)) for plane in planes)
    if len({0 in plane for plane in planes}) > 1:
        raise InputError(
            f"{where} has resolutions of {sizes} px, of which one has no pixel; accepted are "
            "images that have some in each"
        )
    if tuple(map(max, zip(*planes, strict=False))) not in planes:
        raise InputError(
            f"{where} has resolutions of {sizes} px, of which none is the largest; accepted are "
            "images that get smaller both in rows and in columns"
        )


def _list_planes(multiscale: Json, shapes: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Rows and columns of each level."""
    names = [str(name).lower() for name in list_axis_names(multiscale)]
    axes = [names.index("y"), names.index("x")] if {"y", "x"} <= set(names) else [-2, -1]
    return [
        tuple(shape[axis] for axis in axes if -len(shape) <= axis < len(shape)) for shape in shapes
    ]


def list_axis_letters(multiscale: Json, where: Place) -> list[str]:
    """Names of the axes in upper case.

    Raises
    ------
    InputError
        If axes are no objects, as versions before 0.4 had it.
    """
    axes = multiscale.get("axes")
    if not isinstance(axes, list) or not all(isinstance(axis, dict) for axis in axes):
        raise InputError(
            f"{where} has multiscales metadata without a list of axes; accepted are names of axes, "
            "or a letter for each with --axes, such as CYX"
        )
    return [str(name).upper() for name in list_axis_names(multiscale)]


def list_channel_labels(ome: Json) -> list[object]:
    """Labels in the rendering metadata (`omero`) as they are written, None where there is none.

    A number is a label as well as a text is, and some programs write one; it is given as text.
    """
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list):
        return []
    labels = [channel.get("label") if isinstance(channel, dict) else None for channel in channels]
    return [str(label) if type(label) in (int, float) else label for label in labels]


def plain_pyramid(
    um_per_px: float | None, n_levels: int, origin_um: tuple[float, float] | None = None
) -> SlidePyramid:
    """Transformations of levels that are halved each time; without shapes.

    Parameters
    ----------
    um_per_px
        Pixel size of the first level; None if it is unknown.
    n_levels
        Number of levels.
    origin_um
        Where they lie along y and x; left out where the pixel size is unknown.
    """
    pixel, unit = (1.0, None) if um_per_px is None else (um_per_px, "micrometer")
    scales = [pixel * 2**level for level in range(n_levels)]
    place: tuple[Transform, ...] = ()
    if origin_um is not None and um_per_px is not None:
        place = (("translation", *origin_um),)
    return SlidePyramid((), tuple((("scale", s, s), *place) for s in scales), (), (unit, unit))


def describe_multiscale(
    version: str, name: str, pyramid: SlidePyramid, *, method: str, channel: bool = False
) -> Json:
    """An entry of `multiscales`, of arrays named 0, 1, 2, ... from the finest level on.

    Parameters
    ----------
    version
        Of OME-Zarr.
    name
        Shown by viewers.
    pyramid
        Transformations and units along y and x.
    method
        How levels are made of each other.
    channel
        Whether an axis of channels leads.
    """

    def steps(transforms: tuple[Transform, ...]) -> list[Json]:
        return [
            {"type": kind, kind: [1.0 if kind == "scale" else 0.0] * channel + [y, x]}
            for kind, y, x in transforms
        ]

    axes: list[Json] = [{"name": "c", "type": "channel"}] if channel else []
    for axis, unit in zip("yx", pyramid.units, strict=True):
        axes.append({"name": axis, "type": "space"} | ({} if unit is None else {"unit": unit}))
    document: Json = {"version": version} if version == "0.4" else {}
    document |= {"name": name, "type": method, "axes": axes}
    document["datasets"] = [
        {"path": str(level), "coordinateTransformations": steps(transforms)}
        for level, transforms in enumerate(pyramid.transforms)
    ]
    if pyramid.outer:
        document["coordinateTransformations"] = steps(pyramid.outer)
    return document


def describe_channel(
    label: str, color: str, *, active: bool, limits: tuple[float, float], shown: tuple[float, float]
) -> Json:
    """An entry of `omero`.

    Parameters
    ----------
    label
        The channel's name.
    color
        Six hexadecimal digits.
    active
        Whether viewers show it at first.
    limits, shown
        Least and largest value that a pixel may have, and those shown as black and as the colour.
    """
    window = dict(zip(("min", "max", "start", "end"), (*limits, *shown), strict=True))
    return {"label": label, "color": color, "active": active, "window": window}


def image_attributes(version: str, multiscale: Json, channels: Sequence[Json]) -> Json:
    """Attributes of an image group, from `describe_multiscale` and `describe_channel`."""
    omero = {"channels": list(channels)}
    return place_attributes(version, {"multiscales": [multiscale], "omero": omero})


def label_attributes(
    version: str, multiscale: Json, *, of_image: bool, properties: Sequence[Json] = ()
) -> Json:
    """Attributes of a label image, from `describe_multiscale`.

    Parameters
    ----------
    version
        Of OME-Zarr.
    multiscale
        Its levels.
    of_image
        Whether its image is the group above `labels`.
    properties
        Of each label, with its number as `label-value`; none is no list, which would be invalid.
    """
    label: Json = {"version": version} | ({"source": {"image": "../../"}} if of_image else {})
    if properties:
        label["properties"] = list(properties)
    return place_attributes(version, {"multiscales": [multiscale], "image-label": label})


def labels_attributes(version: str, names: Sequence[str]) -> Json:
    """Attributes of the group `labels`: the names of its label images."""
    return place_attributes(version, {"labels": list(names)})


def place_attributes(version: str, ome: Json) -> Json:
    """OME attributes where their version keeps them."""
    return ome if version == "0.4" else {"ome": {"version": version, **ome}}


def find_fault(attributes: Mapping[str, Any]) -> str | None:
    """What ome-zarr-models has against attributes of an image, a label image or `labels`.

    Returns
    -------
    str or None
        One line; None if they are valid.
    """
    from ome_zarr_models import v04, v05
    from pydantic import ValidationError

    models = v05 if "ome" in attributes else v04
    ome = ome_attributes(attributes)
    if "image-label" in ome:
        model = models.image_label.ImageLabelAttrs
    elif "multiscales" in ome:
        model = models.image.ImageAttrs
    else:
        model = models.labels.LabelsAttrs
    try:
        with warnings.catch_warnings():
            # The models only warn of what they can mend, such as a translation before a scale.
            warnings.simplefilter("error", UserWarning)
            model.model_validate(ome)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        return " ".join("; ".join(found).split())
    except UserWarning as warning:
        return " ".join(str(warning).split())
    return None
