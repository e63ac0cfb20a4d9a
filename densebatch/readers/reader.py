"""What every reader of a microscope's format offers, whatever the library beneath.

A reader opens one file, lists the images in it (scenes, series or acquisitions), describes one
without a look at its pixels, and reads regions. It applies no rules: which image is meant, what
types are accepted and what becomes of focal planes is for the slide that is made of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.base.geometry import Region
    from densebatch.base.names import Scene


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a file tells of one of its images.

    Attributes
    ----------
    height, width
        Pixels of the highest resolution.
    channels
        A name for each, None or "" where the file has none.
    dtypes
        NumPy names of the types of the pixels, one where all channels are of one.
    um_y, um_x
        Size of a pixel, None where it is not told.
    um_from
        Where the size is told, such as "Scaling of the CZI metadata".
    colour
        The channels are the colours of one picture.
    n_z, n_t
        Focal planes and points in time.
    chunk_px
        Rows and columns that are cheapest to read together.
    chunk_planes
        How many planes' worth of values a chunk takes while one channel of it is read.
    levels
        Height and width of each resolution, the highest first.
    compression
        In words, None if it is not known.
    notes
        What a user should know, a sentence each.
    membrane, nuclei
        Channels that the file's panel calls so, by index.
    """

    height: int
    width: int
    channels: tuple[str | None, ...]
    dtypes: tuple[str, ...]
    um_y: float | None = None
    um_x: float | None = None
    um_from: str | None = None
    colour: bool = False
    n_z: int = 1
    n_t: int = 1
    chunk_px: tuple[int, int]
    chunk_planes: int = 1
    levels: tuple[tuple[int, int], ...]
    compression: str | None = None
    notes: tuple[str, ...] = ()
    membrane: tuple[int, ...] = ()
    nuclei: tuple[int, ...] = ()


class Reader(ABC):
    """An open file.

    Whoever holds it calls one method at a time: the libraries beneath are not safe to be used by
    several threads at once. A process opens its own.

    Attributes
    ----------
    scenes : the images in the file, at least one
    files : all files that the pixels or what is known of them come from
    """

    scenes: Sequence[Scene]
    files: Sequence[Path]

    @abstractmethod
    def describe(self, scene: int) -> ImageFacts:
        """What is known of an image, by its index in `scenes`."""

    @abstractmethod
    def read(
        self,
        scene: int,
        channels: Sequence[int],
        region: Region,
        *,
        level: int = 0,
        z: int = 0,
        t: int = 0,
    ) -> NDArray[Any]:
        """Read a region of some channels.

        Parameters
        ----------
        scene, channels
            By index, as `describe` lists them.
        region
            In pixels of the level, inside it.
        level
            Resolution, 0 the highest.
        z, t
            Focal plane and point in time.

        Returns
        -------
        ndarray (channels, height, width)

        Raises
        ------
        Exception
            Of any kind, where the file is damaged.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; it may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def import_library(path: Path, library: str, what: str, extra: str) -> Any:  # noqa: ANN401
    """Import the library of a format, when a file of it is opened and not before.

    Parameters
    ----------
    path
        The file, named in the error.
    library
        Module.
    what
        The format in words.
    extra
        Of densebatch, that installs it.

    Raises
    ------
    InputError
        If it is missing, with the command that installs it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise InputError(
            f"{path} is a {what} file, which is read by {library}, and that cannot be imported "
            f"({error}); install it with: pip install 'densebatch[{extra}]'"
        ) from error


def describe_image(channels: int, height: int, width: int, n_z: int = 1, n_t: int = 1) -> str:
    """An image in words, for a list that a user chooses from.

    Examples
    --------
    >>> describe_image(2, 300, 500), describe_image(1, 64, 64, n_z=3)
    ('2 channels of 300 x 500 px', '1 channel of 64 x 64 px, 3 focal planes')
    """
    text = f"{channels} channel{'' if channels == 1 else 's'} of {height} x {width} px"
    text += f", {n_z} focal planes" if n_z > 1 else ""
    return text + (f", {n_t} points in time" if n_t > 1 else "")
