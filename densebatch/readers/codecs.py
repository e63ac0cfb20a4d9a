"""Blocks of pixels in the compressions of CZI, decoded to a size that is known before.

What they decode to is never larger than that, whatever the bytes say of themselves.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# By the number of the compression, in words.
COMPRESSIONS = {0: "none", 1: "JPEG", 2: "LZW", 4: "JPEG XR", 5: "zstd", 6: "zstd"}
JPEG_XR = 4
_JPEG, _LZW, _ZSTD, _ZSTD_WITH_HEAD = 1, 2, 5, 6
# Decoders of these give red, green and blue whatever the order in the file.
IMAGE_CODECS = (_JPEG, JPEG_XR)

# Of the directory of a JPEG XR image: bytes of a value by its type, and numbers of entries.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
_PIXEL_FORMAT, _WIDTH, _HEIGHT, _OFFSET, _COUNT = 0xBC01, 0xBC80, 0xBC81, 0xBCC0, 0xBCC1
_ALPHA_OFFSET, _ALPHA_COUNT = 0xBCC2, 0xBCC3
_NUMBERS = (_WIDTH, _HEIGHT, _OFFSET, _COUNT, _ALPHA_OFFSET, _ALPHA_COUNT)
_MAX_ENTRIES = 100


def decompress(
    data: bytes, compression: int, dtype: np.dtype[Any], shape: tuple[int, int, int]
) -> NDArray[Any]:
    """Pixels of a block.

    Parameters
    ----------
    data
        Its bytes.
    compression
        Number, of `COMPRESSIONS`; but for JPEG XR, which `jpeg_xr` decodes.
    dtype, shape
        What it must decode to: rows, columns, samples.

    Raises
    ------
    Exception
        Of any kind, if it does not.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if compression == _JPEG:
        out = np.empty(shape if shape[2] > 1 else shape[:2], dtype)
        return np.asarray(imagecodecs.jpeg8_decode(data, out=out)).reshape(shape)
    is_split = False
    if compression == _ZSTD_WITH_HEAD:
        # A head of a few bytes says whether low and high bytes stand apart.
        head = data[: data[0]]
        if len(head) not in (1, 3):
            raise ValueError(f"a block of zstd has a head of {len(head)} bytes")
        is_split = len(head) == 3 and head[1] == 1 and bool(head[2] & 1)
        data = data[len(head) :]
    if compression in (_ZSTD, _ZSTD_WITH_HEAD):
        raw = bytes(imagecodecs.zstd_decode(data, out=n_bytes))
    elif compression == _LZW:
        raw = bytes(imagecodecs.lzw_decode(data, out=n_bytes))
    else:
        raw = data
    if len(raw) < n_bytes:
        raise EOFError(f"a block has {len(raw)} bytes and should have {n_bytes}")
    values = np.frombuffer(raw, np.uint8, n_bytes)
    if is_split:
        values = np.ascontiguousarray(values.reshape(2, -1).T).reshape(-1)
    return values.view(dtype.newbyteorder("<")).reshape(shape).astype(dtype, copy=False)


def decode_jpeg_xr(data: bytes, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> NDArray[Any]:
    """Pixels of a JPEG XR block, in a process that may end at it: see `jpeg_xr`.

    Parameters
    ----------
    data, dtype, shape
        As of `decompress`.

    Raises
    ------
    Exception
        Of any kind, if it does not decode to that.
    """
    _check_jpeg_xr(data, shape)
    out = np.empty(shape if shape[2] > 1 else shape[:2], dtype)
    return np.asarray(imagecodecs.jpegxr_decode(data, out=out)).reshape(shape)


def _check_jpeg_xr(data: bytes, shape: tuple[int, int, int]) -> None:
    """Refuse an image whose directory lies, for which the decoder may end the process.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    try:
        magic, start = struct.unpack_from("<4sI", data)
        (n,) = struct.unpack_from("<H", data, start)
        entries = [struct.unpack_from("<HHI4s", data, start + 2 + 12 * k) for k in range(n)]
    except struct.error as error:
        raise ValueError(f"a JPEG XR block is cut ({error})") from error
    if magic[:3] != b"II\xbc" or n > _MAX_ENTRIES:
        raise ValueError("a block is no JPEG XR image")
    found: dict[int, int] = {}
    for tag, kind, count, value in entries:
        n_bytes = _TYPE_BYTES.get(kind, 0) * count
        place = int.from_bytes(value, "little")
        if not n_bytes or tag in found or (n_bytes > 4 and place + n_bytes > len(data)):
            raise ValueError(f"entry {tag:#x} of a JPEG XR block makes no sense")
        is_number = kind in (3, 4) and count == 1
        if tag in _NUMBERS and not is_number:
            raise ValueError(f"entry {tag:#x} of a JPEG XR block is no number")
        found[tag] = place if kind != 3 or count != 1 else place & 0xFFFF
    if (found.get(_HEIGHT), found.get(_WIDTH)) != shape[:2] or _PIXEL_FORMAT not in found:
        raise ValueError("a JPEG XR block is of another size than its place")
    for offset, count in ((_OFFSET, _COUNT), (_ALPHA_OFFSET, _ALPHA_COUNT)):
        if offset in found and found[offset] + found.get(count, 0) > len(data):
            raise ValueError("the pixels of a JPEG XR block should be behind its end")
    if _OFFSET not in found or not found.get(_COUNT):
        raise ValueError("a JPEG XR block has no pixels")
