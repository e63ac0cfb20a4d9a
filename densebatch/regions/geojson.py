"""Outlines from GeoJSON, as QuPath exports annotations: pixels of the slide at full resolution."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from densebatch.base.errors import InputError
from densebatch.base.names import clean_name
from densebatch.regions.runs import Outline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_MAX_BYTES = 2**28
_FURTHEST = 2.0**40  # of a coordinate, beyond which there is no slide
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_ACCEPTED = (
    "accepted are Polygon and MultiPolygon, alone, in a Feature or in a FeatureCollection, as "
    "QuPath exports annotations"
)


def read_geojson(path: Path) -> tuple[list[Outline], int]:
    """Outlines of a file, and how many of its objects have no area.

    Parameters
    ----------
    path
        GeoJSON; also a list of features, as older versions of QuPath wrote.

    Raises
    ------
    InputError
        If it is none, or an object of it is none.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(
            f"{path}: has {path.stat().st_size / 1e6:.0f} MB; accepted is GeoJSON of up to "
            f"{_MAX_BYTES / 1e6:.0f} MB, so export annotations without cells"
        )
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}); {_ACCEPTED}") from error
    outlines: list[Outline] = []
    n_bare = 0
    for where, name, geometry in _list_geometries(document, path):
        found = list(_read_geometry(geometry, name, f"{path}: {where}"))
        outlines += found
        n_bare += not found
    return outlines, n_bare


def _list_geometries(document: Any, path: Path) -> Iterator[tuple[str, str, Any]]:  # noqa: ANN401
    """Where each geometry stands, its name, and the geometry."""
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
        if not isinstance(document, list):
            raise InputError(f"{path}: its FeatureCollection has no list of features; {_ACCEPTED}")
    if not isinstance(document, list):
        document = [document]
    for index, each in enumerate(document):
        where = f"feature {index}"
        if not isinstance(each, dict):
            raise InputError(f"{path}: {where} is no object; {_ACCEPTED}")
        if each.get("type") == "Feature":
            yield where, _find_name(each.get("properties")), each.get("geometry")
        else:
            yield where, "", each


def _find_name(properties: Any) -> str:  # noqa: ANN401
    """The name of a feature, else that of its class; "" without."""
    if not isinstance(properties, dict):
        return ""
    kind = properties.get("classification")
    for name in (properties.get("name"), kind.get("name") if isinstance(kind, dict) else None):
        if isinstance(name, str) and name.strip():
            return clean_name(name)
    return ""


def _read_geometry(geometry: Any, name: str, where: str) -> Iterator[Outline]:  # noqa: ANN401
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection" and isinstance(geometry.get("geometries"), list):
        for each in geometry["geometries"]:
            if not isinstance(each, dict) or each.get("type") == kind:
                raise InputError(f"{where}: has geometries in geometries; {_ACCEPTED}")
            yield from _read_geometry(each, name, where)
        return
    if kind in _WITHOUT_AREA:
        return
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{where}: has a geometry of the type {kind!r}; {_ACCEPTED}")
    polygons = geometry.get("coordinates")
    for rings in [polygons] if kind == "Polygon" else _require_list(polygons, where):
        yield Outline(name, tuple(_read_ring(r, where) for r in _require_list(rings, where)))


def _require_list(value: Any, where: str) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise InputError(f"{where}: its coordinates are no lists; {_ACCEPTED}")
    return value


def _read_ring(ring: Any, where: str) -> NDArray[np.float64]:  # noqa: ANN401
    try:
        points = np.array([[float(point[0]), float(point[1])] for point in ring], np.float64)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise InputError(
            f"{where}: its coordinates are not pairs of numbers; {_ACCEPTED}"
        ) from error
    return check_points(points.reshape(-1, 2), where)


def check_points(points: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """The points, if they can be a slide's.

    Raises
    ------
    InputError
        If one is not finite, or further away than any slide reaches.
    """
    if not (np.abs(points) <= _FURTHEST).all():
        raise InputError(
            f"{where}: has a coordinate that is not finite or beyond any slide; accepted are "
            "pixels of the slide at full resolution"
        )
    return points
