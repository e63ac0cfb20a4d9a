"""Markers and phenotypes as a user writes them: `CD3:median=otsu`, `T helper=CD3+ CD4+ CD8-`.

Names of channels may hold any of the signs between them, so every way to read a text is tried, and
a text that can be read in two ways is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from densebatch.base.errors import InputError
from densebatch.base.names import find_name, quote_names
from densebatch.measuring.schema import (
    Marker,
    Measures,
    Phenotype,
    Share,
    is_statistic,
    list_columns,
    name_channels,
    name_column,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

FOUND = ("otsu", "mixture")
"""How a cut may be found."""
HALF = 0.5
"""From which share under the labels of other cells a cell is positive."""
_LABELS = "labels:"
_CUTS = "a number, otsu, mixture, or labels:PATH"


@dataclass(frozen=True)
class Image:
    """What is measured, as far as markers are concerned.

    Attributes
    ----------
    path : for errors
    channels : names of all of its channels
    """

    path: str
    channels: Sequence[str]

    def find(self, name: str) -> int:
        """The channel that a name or index means.

        Raises
        ------
        InputError
            If there is none, or there are several.
        """
        found = find_name(self.channels, name)
        if len(found) == 1:
            return found[0]
        many = f"{len(found)} channels" if found else "no channel"
        index = f"such as '#{found[0]}'" if found else f"from 0 to {len(self.channels) - 1}"
        raise InputError(
            f"{self.path} has {many} {name.strip()!r}; accepted are {quote_names(self.channels)}, "
            f"or an index {index}"
        )


def read_shares(image: Image, texts: Sequence[str]) -> tuple[Share, ...]:
    """Shares of pixels over a value: `CD3=400`.

    Parameters
    ----------
    image
        That is measured.
    texts
        One channel each.

    Raises
    ------
    InputError
        If a text cannot be read, or a channel has two.
    """
    shares: dict[int, Share] = {}
    for text in texts:
        channel, _, right = _split(image, text, "--fraction", "CHANNEL=VALUE", has_statistic=False)
        over = _read_number(right)
        if over is None:
            raise InputError(f"--fraction {text!r}: {right!r} is no value; accepted is a number")
        _refuse_twice(image, "--fraction", text, channel, shares)
        shares[channel] = Share(channel, over=over)
    return tuple(shares[channel] for channel in sorted(shares))


def read_markers(
    image: Image, texts: Sequence[str], shares: Sequence[Share]
) -> tuple[tuple[Marker, ...], tuple[Share, ...]]:
    """What makes cells positive: `CD3=400`, `CD3:median=otsu`, `CD3=labels:OTHER_OUT`.

    Parameters
    ----------
    image
        That is measured.
    texts
        One channel each.
    shares
        Of pixels over a value, that are measured.

    Returns
    -------
    markers : by channel, ascending
    shares : those, and the ones under labels, by channel, ascending

    Raises
    ------
    InputError
        If a text cannot be read, or a channel has two.
    """
    markers: dict[int, Marker] = {}
    every = {share.channel: share for share in shares}
    for text in texts:
        channel, statistic, right = _split(
            image, text, "--positive", "CHANNEL[:STATISTIC]=CUT", has_statistic=True
        )
        _refuse_twice(image, "--positive", text, channel, markers)
        number = _read_number(right)
        if right.startswith(_LABELS) and right != _LABELS:
            if statistic is not None:
                raise InputError(
                    f"--positive {text!r}: labels are compared with pixels, not with the "
                    f"{statistic}; accepted is {image.channels[channel]}={right}"
                )
            if channel in every:
                raise InputError(
                    f"--positive {text!r}: the channel has a --fraction as well; accepted is one"
                )
            path = right.removeprefix(_LABELS).strip()
            every[channel] = Share(channel, under=str(Path(path).absolute()))
            markers[channel] = Marker(channel, "fraction", HALF)
        elif number is not None or right in FOUND:
            markers[channel] = Marker(
                channel, statistic or "mean", right if number is None else number
            )
        else:
            raise InputError(f"--positive {text!r}: {right!r} is no cut; accepted is {_CUTS}")
    return (
        tuple(markers[channel] for channel in sorted(markers)),
        tuple(every[channel] for channel in sorted(every)),
    )


def refuse_unmeasured(image: Image, measures: Measures) -> None:
    """Refuse shares and markers of what is not measured.

    Raises
    ------
    InputError
        Naming what is missing and the option that brings it.
    """
    names = name_channels(image.channels, measures.compartments)
    known = {column.name for column in list_columns(measures, image.channels)}
    for option, some in (("--fraction", measures.shares), ("--positive", measures.markers)):
        for each in some:
            if each.channel not in measures.channels:
                raise InputError(
                    f"{option}: the channel {image.channels[each.channel]!r} is not measured; "
                    "accepted are those of --channels"
                )
    for marker in measures.markers:
        if name_column(marker.statistic, names[marker.channel]) not in known:
            option = "--quantiles" if marker.statistic.startswith("q") else "--fraction"
            by = f", with {option}" if marker.statistic[:1] in "qf" else ""
            raise InputError(
                f"--positive: the {marker.statistic} of {image.channels[marker.channel]!r} is not "
                f"measured; accepted are mean, median, total, std, and what else is measured{by}"
            )


def read_phenotypes(
    image: Image, texts: Sequence[str], markers: Sequence[Marker]
) -> tuple[Phenotype, ...]:
    """Combinations of markers: `CD3+ CD4+ CD8-`, with a name before them or without one.

    Parameters
    ----------
    image
        That is measured.
    texts
        One phenotype each, such as `T helper=CD3+ CD4+ CD8-`.
    markers
        In which cells are positive or not.

    Raises
    ------
    InputError
        If a text cannot be read, or two have one name.
    """
    phenotypes: dict[str, Phenotype] = {}
    accepted = {marker.channel for marker in markers}
    for text in texts:
        named = [(text[:at].strip(), text[at + 1 :]) for at in _find(text, "=")]
        ways = [(" ".join(text.split()), text), *(way for way in named if way[0])]
        found = [
            Phenotype(name, way)
            for name, signs in ways
            for way in _read_signs(image, signs, accepted)
        ]
        if len(found) != 1:
            several = "can be read in several ways" if found else "is no combination of markers"
            names = quote_names([image.channels[channel] for channel in sorted(accepted)])
            raise InputError(
                f"--phenotype {text!r} {several}; accepted is [NAME=]A+ B-, of channels that "
                f"have a --positive ({names or 'none was given'}), each once"
            )
        if found[0].name in phenotypes:
            raise InputError(f"--phenotype {text!r}: there is one of that name already")
        phenotypes[found[0].name] = found[0]
    return tuple(phenotypes.values())


def _read_signs(image: Image, text: str, accepted: set[int]) -> list[tuple[tuple[int, bool], ...]]:
    """Ways to read a text as names with a sign behind each; names may hold spaces."""
    words = text.split()
    ways: list[list[tuple[tuple[int, bool], ...]]] = [[()]]  # of the words from each one on
    for start in range(len(words) - 1, -1, -1):
        found: list[tuple[tuple[int, bool], ...]] = []
        for n in range(1, len(ways) + 1):
            name, sign = (part := " ".join(words[start : start + n]))[:-1], part[-1]
            channels = find_name(image.channels, name) if sign in "+-" and name else []
            if len(channels) == 1 and channels[0] in accepted:
                sure = (channels[0], sign == "+")
                found += [(sure, *rest) for rest in ways[-n]]
        ways.append(found)
    every = ways[-1] if words else []
    return [way for way in every if len({channel for channel, _ in way}) == len(way)]


def _find(text: str, sign: str) -> list[int]:
    return [at for at, each in enumerate(text) if each == sign]


def _split(
    image: Image, text: str, option: str, form: str, *, has_statistic: bool
) -> tuple[int, str | None, str]:
    """Channel, statistic and what stands behind the `=`."""
    ways: list[tuple[int, str | None, str]] = []
    for at in _find(text, "="):
        left, right = text[:at], text[at + 1 :].strip()
        name, _, statistic = left.rpartition(":")
        if len(whole := find_name(image.channels, left)) == 1:
            ways.append((whole[0], None, right))
        elif has_statistic and is_statistic(statistic.strip()):
            ways += [(k, statistic.strip(), right) for k in find_name(image.channels, name)]
    likely = [way for way in ways if _is_cut(way[2])] or ways[:1]
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise InputError(
            f"{option} {text!r} may be of the channels "
            f"{quote_names([image.channels[way[0]] for way in likely])}; name it by its index, "
            f"such as '#{likely[0][0]}'"
        )
    left, equals, _ = text.partition("=")
    if not equals:
        raise InputError(f"{option} {text!r} has no '='; accepted is {form}")
    name, _, statistic = left.rpartition(":")
    is_known = has_statistic and is_statistic(statistic.strip())
    if not is_known and has_statistic and name and find_name(image.channels, name):
        raise InputError(
            f"{option} {text!r}: {statistic.strip()!r} is no statistic; accepted are mean, median, "
            "total, std, fraction, and quantiles such as q90"
        )
    image.find(name if is_known else left)
    raise AssertionError(text)


def _is_cut(text: str) -> bool:
    return text in FOUND or text.startswith(_LABELS) or _read_number(text) is not None


def _read_number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _refuse_twice(
    image: Image, option: str, text: str, channel: int, known: dict[int, Share] | dict[int, Marker]
) -> None:
    if channel in known:
        raise InputError(
            f"{option} {text!r}: the channel {image.channels[channel]!r} has one already; accepted "
            "is one for each channel"
        )
