"""From the light of a simulated slide to counts: optical blur, and the camera."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

from densebatch.simulation.fields import STREAM_CAMERA, hash_column, hash_row, to_normal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densebatch.simulation.fields import Scene

HAZE = (0.22, 0.45)
"""Share of the light of membranes and of nuclei that the wide blur spreads."""

_BLUR_STEPS = (1, 2, 4)
BLUR_RADIUS = 2 * sum(_BLUR_STEPS)
"""Light travels this many pixels: two taps at each step of the blur."""

# Weights of the middle tap, of the two near ones and of the two far ones.
_THREE_TAPS = (0.5, 0.25, 0.0)
_FIVE_TAPS = (6 / 16, 4 / 16, 1 / 16)


class Light(NamedTuple):
    """Light that falls on the camera's pixels of one channel; arrays `(h, w)` float32."""

    sharp: NDArray[np.float32]  # counts
    wide: NDArray[np.float32]  # counts; the same light after the wide blur
    background: NDArray[np.float32]  # unevenness of the background, 0..1
    ramp: NDArray[np.float32]  # share of the background that there is: 0 where the slide is empty


def blur(light: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Light in focus, and the wide haze of it.

    Parameters
    ----------
    light
        `(h + 2 BLUR_RADIUS, w + 2 BLUR_RADIUS)` float32, before any blur.

    Returns
    -------
    sharp, wide : `(h, w)` float32
    """
    sharp: NDArray[np.float32] = _smooth(light, _BLUR_STEPS[0], *_THREE_TAPS)
    wide = sharp
    for step in _BLUR_STEPS[1:]:
        wide = _smooth(wide, step, *_FIVE_TAPS)
    margin = BLUR_RADIUS - 2 * _BLUR_STEPS[0]
    return sharp[margin:-margin, margin:-margin], wide


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _smooth(
    image: NDArray[np.float32], step: int, middle: float, near: float, far: float
) -> NDArray[np.float32]:
    """Separable five-tap filter with taps `step` pixels apart; `2 step` pixels less per side."""
    height, width = image.shape
    w0, w1, w2 = np.float32(middle), np.float32(near), np.float32(far)
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
    scene: Scene, channel: int, y0: int, x0: int, light: Light, out: NDArray[np.uint16]
) -> None:
    """Camera: sum the light, add shot and read noise, quantise.

    Parameters
    ----------
    scene
        The slide.
    channel
        0 for membranes, 1 for nuclei.
    y0, x0
        First row and column of the region, px.
    light
        Of the region.
    out
        `(h, w)` uint16; the counts, at most `scene.ceiling`, are written here.
    """
    haze = HAZE[channel]
    read = scene.read_noise * scene.read_noise
    for y in range(out.shape[0]):
        row = hash_row(scene.seed, STREAM_CAMERA + channel, y0 + y)
        for x in range(out.shape[1]):
            value = (1.0 - haze) * light.sharp[y, x] + haze * light.wide[y, x]
            value += scene.background * light.ramp[y, x] * (0.4 + 1.2 * light.background[y, x])
            noise = to_normal(hash_column(row, x0 + x))
            count = scene.offset + value + np.sqrt(read + scene.shot_gain * value) * noise
            out[y, x] = np.uint16(min(max(np.floor(count + 0.5), 0.0), scene.ceiling))
