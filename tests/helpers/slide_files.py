"""Small slides of every format, for the tests of reading."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import zarr

UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}


def random_pixels(shape, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def write_zarr(
    path,
    pixels,
    axes="cyx",
    version="0.5",
    *,
    chunks=None,
    shards=None,
    labels=None,
    scale=0.5,
    unit="micrometer",
    n_levels=1,
    document=None,
    compressors="auto",
):
    """An OME-Zarr image; `document` changes its attributes before they are written."""
    zarr_format = 2 if version == "0.4" else 3
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    for level in range(n_levels):
        step = 2**level
        data = pixels[(*([slice(None)] * (pixels.ndim - 2)), *np.s_[::step, ::step])]
        group.create_array(
            str(level),
            data=data,
            chunks=chunks
            or tuple(min(32, n) if i > len(axes) - 3 else 1 for i, n in enumerate(data.shape)),
            shards=shards,
            compressors=compressors,
        )
    scales = [[1.0] * (len(axes) - 2) + [scale * 2**i] * 2 for i in range(n_levels)]
    image = {
        "name": "test",
        "axes": [
            {
                "name": a,
                "type": {"t": "time", "c": "channel"}.get(a, "space"),
                **({"unit": unit} if unit and a in "yx" else {}),
            }
            for a in axes
        ],
        "datasets": [
            {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": scales[i]}]}
            for i in range(n_levels)
        ],
    }
    attributes = {"multiscales": [image]}
    if labels:
        attributes["omero"] = {"channels": [{"label": name} for name in labels]}
    if version == "0.4":
        image["version"] = "0.4"
    else:
        attributes["version"] = version
    if document is not None:
        document(attributes)
    group.attrs.update(attributes if version == "0.4" else {"ome": attributes})
    return path


def edit_json(path, **changes):
    """Overwrite entries of a metadata document."""
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **changes}))


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path, width, height, bits, colour_type, rows, extra=b""):
    """A PNG written by hand: `rows` are the unfiltered bytes of each row."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + extra
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )
    return path
