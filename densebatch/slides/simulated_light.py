"""Kernels of simulated tissue that know no cell: numbers by position, noise, blur, camera."""

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


# Share of noise in the landscape that the tissue's outline is a contour of.
OUTLINE_RELIEF = 0.5


# Wavelength of the displacement, in units of its size, and the share of its fine part.
_WARP_WAVE = 7.0
_WARP_FINE = 0.28


# Light travels this many pixels: two taps at each step of the blur.
BLUR_STEPS = (1, 2, 4)
BLUR_RADIUS = 2 * sum(BLUR_STEPS)
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
    outline_level: float  # `outline_score` below this is empty
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


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mix(z: np.uint64) -> np.uint64:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014, OOPSLA, Figure 16)."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _hash(seed: np.uint64, stream: int, y: int, x: int) -> np.uint64:
    z = _mix(seed + np.uint64(stream) * _GOLDEN)
    z = _mix(z + np.uint64(y) * _GOLDEN)
    bits: np.uint64 = _mix(z + np.uint64(x) * _GOLDEN)
    return bits


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _unit(bits: np.uint64) -> float:
    """Uniform in [0, 1)."""
    return float(np.int64(bits >> _S11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _normal(bits: np.uint64) -> float:
    """Zero mean, unit variance, |value| < 3.47: the sum of four 16-bit uniforms."""
    total = (
        np.int64(bits & _LOW16)
        + np.int64((bits >> _S16) & _LOW16)
        + np.int64((bits >> (_S16 + _S16)) & _LOW16)
        + np.int64(bits >> (_S16 + _S16 + _S16))
    )
    return float(total - 131070) * (1.7320508075688772 / 65536.0)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _ease(t: float) -> float:
    """Smooth step from 0 to 1 over 0..1."""
    return t * t * (3.0 - 2.0 * t)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _noise_at(seed: np.uint64, stream: int, wave: float, y: float, x: float) -> float:
    """Value noise in [0, 1): hashed values on a lattice of `wave` pixels, smoothly joined."""
    gy = y / wave
    gx = x / wave
    iy = int(np.floor(gy))
    ix = int(np.floor(gx))
    wy = _ease(gy - iy)
    wx = _ease(gx - ix)
    a = _unit(_hash(seed, stream, iy, ix))
    b = _unit(_hash(seed, stream, iy, ix + 1))
    c = _unit(_hash(seed, stream, iy + 1, ix))
    d = _unit(_hash(seed, stream, iy + 1, ix + 1))
    left = a + wy * (c - a)
    right = b + wy * (d - b)
    return float(left + wx * (right - left))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def noise_field(
    seed: np.uint64, stream: int, wave: float, y0: int, x0: int, height: int, width: int
) -> NDArray[np.float32]:
    """`_noise_at` of every pixel of a region."""
    iy0 = int(np.floor(y0 / wave))
    ix0 = int(np.floor(x0 / wave))
    rows = int(np.floor((y0 + height - 1) / wave)) + 2 - iy0
    cols = int(np.floor((x0 + width - 1) / wave)) + 2 - ix0
    table = np.empty((rows, cols), np.float64)
    for i in range(rows):
        for j in range(cols):
            table[i, j] = _unit(_hash(seed, stream, iy0 + i, ix0 + j))
    at = np.empty(width, np.int64)
    weight = np.empty(width, np.float64)
    for x in range(width):
        gx = (x0 + x) / wave
        ix = int(np.floor(gx))
        at[x] = ix - ix0
        weight[x] = _ease(gx - ix)
    out = np.empty((height, width), np.float32)
    line = np.empty(cols, np.float64)
    for y in range(height):
        gy = (y0 + y) / wave
        iy = int(np.floor(gy))
        wy = _ease(gy - iy)
        for j in range(cols):
            top = table[iy - iy0, j]
            line[j] = top + wy * (table[iy - iy0 + 1, j] - top)
        for x in range(width):
            left = line[at[x]]
            out[y, x] = left + weight[x] * (line[at[x] + 1] - left)
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def displacement(
    scene: Scene, stream: int, fine_stream: int, y0: int, x0: int, height: int, width: int
) -> NDArray[np.float32]:
    """Smooth displacement of a region's pixels along one axis, at most `scene.warp`.

    The coarse part bends cells, the fine one roughens their borders. Where both are steep the
    plane may fold and tear a corner off a cell; `_keep_connected` leaves it out.
    """
    wave = scene.warp * _WARP_WAVE
    coarse: NDArray[np.float32] = noise_field(scene.seed, stream, wave, y0, x0, height, width)
    fine = noise_field(scene.seed, fine_stream, 0.4 * wave, y0, x0, height, width)
    size = np.float32(2.0 * scene.warp)
    part = np.float32(_WARP_FINE)
    half = np.float32(0.5)
    for y in range(height):
        for x in range(width):
            mixed = coarse[y, x] + part * (fine[y, x] - coarse[y, x])
            coarse[y, x] = size * (mixed - half)
    return coarse


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def outline_score(seed: np.uint64, wave: float, width: int, y: float, x: float) -> float:
    """Height of a landscape that rises from left to right; tissue lies above a level."""
    noise: float = _noise_at(seed, STREAM_OUTLINE, wave, y, x)
    return x / width + OUTLINE_RELIEF * (noise - 0.5)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def sample_outline(
    seed: np.uint64, wave: float, height: int, width: int, n: int
) -> NDArray[np.float64]:
    """`outline_score` on an even `n` by `n` grid over the slide."""
    scores = np.empty(n * n, np.float64)
    for i in range(n):
        for j in range(n):
            y = (i + 0.5) * height / n
            x = (j + 0.5) * width / n
            scores[i * n + j] = outline_score(seed, wave, width, y, x)
    return scores


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def tissue_ramp(scene: Scene, y0: int, x0: int, height: int, width: int) -> NDArray[np.float32]:
    """0 where the slide is empty, rising to 1 inside the tissue."""
    ramp = np.ones((height, width), np.float32)
    if scene.outline_level < -1.0:
        return ramp
    noise = noise_field(scene.seed, STREAM_OUTLINE, scene.outline, y0, x0, height, width)
    scale = 1.0 / scene.outline_ramp
    for y in range(height):
        for x in range(width):
            score = (x0 + x) / scene.width + OUTLINE_RELIEF * (noise[y, x] - 0.5)
            t = (score - scene.outline_level) * scale
            ramp[y, x] = _ease(min(max(t, 0.0), 1.0))
    return ramp


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def smooth(
    image: NDArray[np.float32], step: int, centre: float, near: float, far: float
) -> NDArray[np.float32]:
    """Separable five-tap filter with taps `step` pixels apart; `2 step` pixels less per side."""
    height, width = image.shape
    w0, w1, w2 = np.float32(centre), np.float32(near), np.float32(far)
    rows = np.empty((height, width - 4 * step), np.float32)
    for y in range(height):
        line = image[y]
        for x in range(width - 4 * step):
            rows[y, x] = (
                w0 * line[x + 2 * step]
                + w1 * (line[x + step] + line[x + 3 * step])
                + w2 * (line[x] + line[x + 4 * step])
            )
    out = np.empty((height - 4 * step, width - 4 * step), np.float32)
    for y in range(out.shape[0]):
        r0, r1, r2 = rows[y], rows[y + step], rows[y + 2 * step]
        r3, r4 = rows[y + 3 * step], rows[y + 4 * step]
        for x in range(out.shape[1]):
            out[y, x] = w0 * r2[x] + w1 * (r1[x] + r3[x]) + w2 * (r0[x] + r4[x])
    return out


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def expose(
    scene: Scene,
    channel: int,
    y0: int,
    x0: int,
    sharp: NDArray[np.float32],
    wide: NDArray[np.float32],
    haze: float,
    background: NDArray[np.float32],
    ramp: NDArray[np.float32],
    out: NDArray[np.uint16],
) -> None:
    """Camera: sum the light, add shot and read noise, quantise into `out` `(h, w)`."""
    stream = STREAM_CAMERA + channel
    read = scene.read_noise * scene.read_noise
    for y in range(out.shape[0]):
        key = _mix(_mix(scene.seed + np.uint64(stream) * _GOLDEN) + np.uint64(y0 + y) * _GOLDEN)
        for x in range(out.shape[1]):
            light = (1.0 - haze) * sharp[y, x] + haze * wide[y, x]
            light += scene.background * ramp[y, x] * (0.4 + 1.2 * background[y, x])
            noise = _normal(_mix(key + np.uint64(x0 + x) * _GOLDEN))
            value = scene.offset + light + np.sqrt(read + scene.shot_gain * light) * noise
            out[y, x] = np.uint16(min(max(np.floor(value + 0.5), 0.0), scene.ceiling))
