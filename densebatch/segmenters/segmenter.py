"""What a segmenter is, and what it gets: one tile, with options that hold for the whole slide."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict

from densebatch.base.errors import InputError
from densebatch.base.settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Tile:
    """Pixels of a tile.

    Attributes
    ----------
    image
        `(channels, y, x)` float32: membrane, if there is one, then nuclei; 0 to 1 from the lower to
        the upper bound of the slide's normalisation, which is the same for every tile.
    channels
        Names of the planes.
    um_per_px
        Size of a pixel; None if the slide does not tell.
    options
        As the segmenter's `complete_options` returned them.
    """

    image: NDArray[np.float32]
    channels: tuple[str, ...]
    um_per_px: float | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class SlideFacts:
    """What a segmenter's options may depend on; the same for every tile.

    Attributes
    ----------
    levels : for each plane of the tiles, Otsu's threshold over the tissue of the slide, 0 to 1
    diameter_px : of a cell, as the user stated it, else of 10 um
    um_per_px : size of a pixel; None if the slide does not tell
    """

    levels: tuple[float, ...]
    diameter_px: float
    um_per_px: float | None


@dataclass(frozen=True)
class Segmenter(ABC):
    """What turns a tile into labels; found again on a worker by its `spec`.

    Implementers owe labels that depend on the tile alone, the same bits each time, and that cells
    which the tile's border cuts are labelled like others. Callers go through `run.label_tile`,
    which checks what comes back.

    Attributes
    ----------
    spec
        As the user gave it: `watershed`, `module:function`, `command:...`.
    name
        Short, for messages.
    identity
        Digest of what decides labels beside options and packages, such as a function's source.
    packages
        Distributions that labels depend on, and their versions.
    bytes_per_px
        Memory that labelling a tile takes for each of its pixels, the tile itself not counted.
    """

    spec: str
    name: str
    identity: str
    packages: dict[str, str]
    bytes_per_px: int

    @abstractmethod
    def complete_options(self, given: Mapping[str, Any], slide: SlideFacts) -> dict[str, Any]:
        """Options as tiles get them; asked once for a slide, when a run is planned.

        Parameters
        ----------
        given
            By the user.
        slide
            What is known of it.

        Returns
        -------
        dict
            With defaults filled in; as JSON holds it, because it is kept with the run's plan.

        Raises
        ------
        InputError
            For an option that there is not, or a value that is not accepted: one sentence.
        """

    @abstractmethod
    def label(self, tile: Tile) -> NDArray[Any]:
        """Labels `(y, x)` of a tile, whole numbers in any order; 0 is background."""


class Options(BaseModel):
    """Options of a segmenter; others are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Options = TypeVar("_Options", bound=Options)


def read_options(kind: type[_Options], name: str, given: Mapping[str, Any]) -> _Options:
    """Options of a segmenter from what the user gave.

    Raises
    ------
    InputError
        One sentence: the segmenter, the option, its value, what is accepted.
    """
    try:
        return read_settings(kind, None, dict(given))
    except InputError as error:
        raise InputError(f"options of the segmenter {name}: {error}") from error


def keep_as_json(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back.

    Raises
    ------
    InputError
        If JSON cannot hold one.
    """
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options of the segmenter {name}: {error}; accepted is what JSON can hold"
        ) from error
    return kept
