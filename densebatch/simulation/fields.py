"""What a simulated slide holds at a position: random numbers, noise, and the fields of its scene.

Every number is a function of the seed and of global coordinates, never of the rendered region, so
that any region equals the same part of the whole slide bit for bit. Two habits of all simulator
modules keep it so:

- randomness is a hash of (seed, stream, row, column), not the next draw of a generator;
- floating point uses only ``+ - * /``, square root and floor, which IEEE 754 rounds in one way.
  Exponentials, logarithms and sines differ in the last bit between the vectorised body of a loop
  and its scalar rest, hence polynomial bumps and the sum of four uniforms where a textbook has
  Gaussians. No ``fastmath`` for the same reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Streams of randomness: what a hash is for.
STREAM_PLACE = 1
STREAM_SHAPE = 2
STREAM_STAIN = 3
STREAM_LOOK = 4
STREAM_CLUSTER = 5
STREAM_OUTLINE = 6
STREAM_FINE = 7
STREAM_WARP_Y = 8
STREAM_WARP_X = 9
STREAM_WARP_Y_FINE = 10
STREAM_WARP_X_FINE = 11
STREAM_TEXTURE = 12
STREAM_BACKGROUND = 13
STREAM_PAIR = 14
STREAM_CAMERA = 15  # and one more for each further channel

OUTLINE_RELIEF = 0.5
"""Share of noise in the landscape that the tissue's outline is a contour of."""
LEAST_SCORE = -1.0
"""Below any `score_outline`: with a lower level the whole slide is tissue."""

# Wavelength of the displacement, in units of its size, and the share of its fine part.
_WARP_WAVE = 7.0
_WARP_FINE = 0.28

# Constants of splitmix64, and its shifts as the unsigned numbers that numba wants.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S16 = (np.uint64(n) for n in (30, 27, 31, 11, 16))
_LOW16 = np.uint64(0xFFFF)


class Scene(NamedTuple):
    """Settings of a slide in the units of the kernels: pixels and camera counts."""

    seed: np.uint64
    height: int
    width: int
    pitch: float  # of the lattice that cell centres are drawn from
    separation: float  # least distance of two centres
    diameter: float
    min_area: int
    stained: float  # mean share of stained cells
    clustering: float  # 0: evenly; 1: from none to twice the mean
    cluster: float  # wavelength of the stained share
    outline: float  # wavelength of the tissue's outline
    outline_level: float  # `score_outline` below this is empty
    outline_ramp: float  # score over which the tissue's background rises
    outline_slope: float  # bound of the score's change per pixel
    warp: float  # largest displacement of cell borders
    texture_wave: float
    background_wave: float
    brightness: float
    nuclei: float
    background: float
    offset: float
    read_noise: float
    shot_gain: float  # variance per count
    ceiling: float


class Extent(NamedTuple):
    """A region in the form that kernels take; it may leave the slide."""

    y0: int
    x0: int
    height: int
    width: int


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def mix_bits(z: np.uint64) -> np.uint64:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014, OOPSLA, Figure 16)."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def hash_row(seed: np.uint64, stream: int, y: int) -> np.uint64:
    """What `hash_column` makes the random bits of a row's places from."""
    z = mix_bits(seed + np.uint64(stream) * _GOLDEN)
    bits: np.uint64 = mix_bits(z + np.uint64(y) * _GOLDEN)
    return bits


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def hash_column(row: np.uint64, x: int) -> np.uint64:
    """64 random bits of a place in a row."""
    bits: np.uint64 = mix_bits(row + np.uint64(x) * _GOLDEN)
    return bits


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def hash_place(seed: np.uint64, stream: int, y: int, x: int) -> np.uint64:
    """64 random bits of a place.

    Parameters
    ----------
    seed
        Of the slide.
    stream
        One of the `STREAM_` numbers; streams are independent of each other.
    y, x
        Any integers: a pixel, or a site of a lattice.
    """
    bits: np.uint64 = hash_column(hash_row(seed, stream, y), x)
    return bits


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def to_unit(bits: np.uint64) -> float:
    """Uniform in [0, 1)."""
    return float(np.int64(bits >> _S11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def to_normal(bits: np.uint64) -> float:
    """Zero mean, unit variance, |value| < 3.47: the sum of four 16-bit uniforms."""
    total = (
        np.int64(bits & _LOW16)
        + np.int64((bits >> _S16) & _LOW16)
        + np.int64((bits >> (_S16 + _S16)) & _LOW16)
        + np.int64(bits >> (_S16 + _S16 + _S16))
    )
    return float(total - 131070) * (1.7320508075688772 / 65536.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def ease(t: float) -> float:
    """Smooth step from 0 to 1 over 0..1."""
    return t * t * (3.0 - 2.0 * t)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sample_noise(seed: np.uint64, stream: int, wave: float, y: float, x: float) -> float:
    """Value noise at one position: hashed values on a lattice, smoothly joined.

    Parameters
    ----------
    seed, stream
        See `hash_place`.
    wave
        Pixels between the lattice's values.
    y, x
        Position, px.

    Returns
    -------
    float
        In [0, 1).
    """
    gy = y / wave
    gx = x / wave
    iy = int(np.floor(gy))
    ix = int(np.floor(gx))
    wy = ease(gy - iy)
    wx = ease(gx - ix)
    a = to_unit(hash_place(seed, stream, iy, ix))
    b = to_unit(hash_place(seed, stream, iy, ix + 1))
    c = to_unit(hash_place(seed, stream, iy + 1, ix))
    d = to_unit(hash_place(seed, stream, iy + 1, ix + 1))
    left = a + wy * (c - a)
    right = b + wy * (d - b)
    return float(left + wx * (right - left))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def draw_noise(seed: np.uint64, stream: int, wave: float, extent: Extent) -> NDArray[np.float32]:
    """`sample_noise` of every pixel of a region.

    Parameters
    ----------
    seed, stream, wave
        See `sample_noise`.
    extent
        The region.

    Returns
    -------
    ndarray
        `(h, w)` float32.
    """
    y0, x0, height, width = extent
    iy0 = int(np.floor(y0 / wave))
    ix0 = int(np.floor(x0 / wave))
    rows = int(np.floor((y0 + height - 1) / wave)) + 2 - iy0
    cols = int(np.floor((x0 + width - 1) / wave)) + 2 - ix0
    values = np.empty((rows, cols), np.float64)
    for i in range(rows):
        for j in range(cols):
            values[i, j] = to_unit(hash_place(seed, stream, iy0 + i, ix0 + j))
    left_of = np.empty(width, np.int64)  # column of `values` to the left of each pixel
    weight = np.empty(width, np.float64)
    for x in range(width):
        gx = (x0 + x) / wave
        ix = int(np.floor(gx))
        left_of[x] = ix - ix0
        weight[x] = ease(gx - ix)
    out = np.empty((height, width), np.float32)
    line = np.empty(cols, np.float64)
    for y in range(height):
        gy = (y0 + y) / wave
        iy = int(np.floor(gy))
        wy = ease(gy - iy)
        for j in range(cols):
            top = values[iy - iy0, j]
            line[j] = top + wy * (values[iy - iy0 + 1, j] - top)
        for x in range(width):
            left = line[left_of[x]]
            out[y, x] = left + weight[x] * (line[left_of[x] + 1] - left)
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def displace_pixels(
    scene: Scene, stream: int, fine_stream: int, extent: Extent
) -> NDArray[np.float32]:
    """Smooth displacement of a region's pixels along one axis.

    The coarse part bends cells, the fine one roughens their borders. Where both are steep the
    plane may fold and tear a corner off a cell, which painting leaves out.

    Parameters
    ----------
    scene
        The slide.
    stream, fine_stream
        Of randomness, for the two parts.
    extent
        The region.

    Returns
    -------
    ndarray
        `(h, w)` float32, px; at most `scene.warp`.
    """
    wave = scene.warp * _WARP_WAVE
    coarse: NDArray[np.float32] = draw_noise(scene.seed, stream, wave, extent)
    fine = draw_noise(scene.seed, fine_stream, 0.4 * wave, extent)
    size = np.float32(2.0 * scene.warp)
    part = np.float32(_WARP_FINE)
    half = np.float32(0.5)
    for y in range(extent.height):
        for x in range(extent.width):
            mixed = coarse[y, x] + part * (fine[y, x] - coarse[y, x])
            coarse[y, x] = size * (mixed - half)
    return coarse


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def score_outline(seed: np.uint64, wave: float, width: int, y: float, x: float) -> float:
    """Height of a landscape that rises from left to right; tissue lies above a level.

    Parameters
    ----------
    seed
        Of the slide.
    wave
        `Scene.outline`, px.
    width
        Of the slide, px.
    y, x
        Position, px.
    """
    noise: float = sample_noise(seed, STREAM_OUTLINE, wave, y, x)
    return x / width + OUTLINE_RELIEF * (noise - 0.5)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sample_outline(
    seed: np.uint64, wave: float, height: int, width: int, n: int
) -> NDArray[np.float64]:
    """`score_outline` on an even grid over the slide.

    Parameters
    ----------
    seed, wave
        See `score_outline`.
    height, width
        Of the slide, px.
    n
        Rows, and columns, of the grid.

    Returns
    -------
    ndarray
        `(n * n,)` float64, in raster order.
    """
    scores = np.empty(n * n, np.float64)
    for i in range(n):
        for j in range(n):
            y = (i + 0.5) * height / n
            x = (j + 0.5) * width / n
            scores[i * n + j] = score_outline(seed, wave, width, y, x)
    return scores


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def ramp_tissue(scene: Scene, extent: Extent) -> NDArray[np.float32]:
    """0 where the slide is empty, rising to 1 inside the tissue; `(h, w)` float32."""
    ramp = np.ones((extent.height, extent.width), np.float32)
    if scene.outline_level < LEAST_SCORE:
        return ramp
    noise = draw_noise(scene.seed, STREAM_OUTLINE, scene.outline, extent)
    scale = 1.0 / scene.outline_ramp
    for y in range(extent.height):
        for x in range(extent.width):
            score = (extent.x0 + x) / scene.width + OUTLINE_RELIEF * (noise[y, x] - 0.5)
            t = (score - scene.outline_level) * scale
            ramp[y, x] = ease(min(max(t, 0.0), 1.0))
    return ramp
