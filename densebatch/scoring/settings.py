"""What is asked of a score: exact IoU thresholds, how cells are matched, which take part."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from densebatch.base.errors import InputError

MatchingName = Literal["any", "hungarian"]
DEFAULT_THRESHOLDS = tuple(Fraction(k, 100) for k in range(50, 100, 5))


def parse_threshold(value: str | float | Fraction) -> Fraction:
    """An IoU threshold as the exact fraction that its decimal digits say.

    Raises
    ------
    InputError
        For what is no number above 0 and up to 1.

    Examples
    --------
    >>> parse_threshold("0.55"), parse_threshold(0.1)
    (Fraction(11, 20), Fraction(1, 10))
    """
    try:
        threshold = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        threshold = Fraction(0)
    if not 0 < threshold <= 1:
        raise InputError(f"an IoU threshold is a number above 0 and up to 1, not {value!r}")
    return threshold


def format_threshold(threshold: Fraction) -> str:
    """Shortest exact decimal with at least two digits; a fraction where there is none.

    Examples
    --------
    >>> format_threshold(Fraction(1, 2)), format_threshold(Fraction("0.725"))
    ('0.50', '0.725')
    """
    for digits in range(2, 19):
        scaled = threshold * 10**digits
        if scaled.denominator == 1:
            whole, rest = divmod(int(scaled), 10**digits)
            return f"{whole}.{rest:0{digits}d}"
    return str(threshold)


@dataclass(frozen=True)
class ScoreSettings:
    """What is counted as a match, and which cells take part.

    Attributes
    ----------
    thresholds
        IoU thresholds, exact, ascending.
    matching
        `any` as in Han et al. 2024, or `hungarian` (one-to-one).
    min_size
        Cells of fewer pixels become background on both sides, before matching.
    ignore_below
        Cells of fewer pixels are ignored as by COCO: neither missed nor spurious. Acts on the
        counts of matches only, not on ARI, Dice and AJI.
    size_edges
        Lower bounds of the size bins, px.
    label_components
        What becomes of yes/no masks, on both sides: None refuses them, True makes cells of their
        8-connected pieces, False takes each label for one cell; see `cells.components`.

    Raises
    ------
    InputError
        For no threshold, one that `parse_threshold` refuses, and a matching that there is not.
    """

    thresholds: tuple[Fraction, ...] = DEFAULT_THRESHOLDS
    matching: MatchingName = "any"
    min_size: int = 0
    ignore_below: int = 0
    size_edges: tuple[int, ...] = (0, 50, 100, 200, 400, 800)
    label_components: bool | None = None

    def __post_init__(self) -> None:
        thresholds = tuple(sorted({parse_threshold(value) for value in self.thresholds}))
        object.__setattr__(self, "thresholds", thresholds)
        if not thresholds:
            raise InputError("no IoU threshold was given; at least one is needed")
        if self.matching not in ("any", "hungarian"):
            raise InputError(f"matching is 'any' or 'hungarian', not {self.matching!r}")

    @property
    def focus(self) -> Fraction:
        """The threshold of pictures, fields and size bins: 0.50 where it is asked for."""
        half = Fraction(1, 2)
        return half if half in self.thresholds else self.thresholds[0]
