"""Refuse several images along time, focus or the like, in words that say what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def refuse_stacks(
    path: Path,
    letters: Sequence[str],
    shape: Sequence[int],
    channel_axes: str,
    *,
    describe: Callable[[str], str],
    name: Callable[[str], str],
    between: tuple[str, str],
) -> None:
    """Refuse an image of which there are several along an axis that counts no channels.

    Letters without Y and X, twice there, or of another number than sizes are not looked at.

    Parameters
    ----------
    path
        Named in the error.
    letters, shape
        One upper-case letter and one size per dimension.
    channel_axes
        Letters that count channels.
    describe
        What an axis is called, with a word for what it counts.
    name
        The word alone, of what an axis of channels counts.
    between
        How letters are joined in the error, and what stands between them and the sizes.

    Raises
    ------
    InputError
        With `--axes` as it would have to be given if these are channels.
    """
    if len(letters) != len(shape) or len(set(letters)) != len(letters):
        return
    if not {"Y", "X"} <= set(letters):
        return
    sizes = {a: n for a, n in zip(letters, shape, strict=True) if a not in "YX" and n > 1}
    stacks = {axis: n for axis, n in sizes.items() if axis not in channel_axes}
    if not stacks:
        return
    listed = " and ".join(f"{n} images along {describe(axis)}" for axis, n in stacks.items())
    held = f"{path} holds {listed}"
    if len(sizes) == 1:
        (axis,) = stacks
        wanted = "".join("C" if a == axis else a for a in letters if a in (axis, "Y", "X"))
        raise InputError(
            f"{held}, and one image of all channels is accepted; if these are channels, say so "
            f"with --axes {wanted}, else save the one that is meant to a file of its own"
        )
    kept = {axis: n for axis, n in sizes.items() if axis not in stacks}
    of = "".join(f" of {n} {name(axis)} each" for axis, n in kept.items())
    joint, gap = between
    raise InputError(
        f"{held}{of} ({joint.join(letters)}{gap}{' x '.join(map(str, shape))}), and one image of "
        "all channels is accepted; save the one that is meant, or its projection, to a file of its "
        "own"
    )
