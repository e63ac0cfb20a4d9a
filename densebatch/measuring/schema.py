"""The columns of the cell table: names, types, order and meaning. `docs/table.md` is made of this.

Columns that the table has always had stand in their old order; what came later stands after what it
belongs to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from densebatch.compartments.names import COMPARTMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RADIUS_UM = 30.0
MEDIAN = 0.5

_UINT, _INT, _FLOAT, _BOOL = "uint32", "int64", "float64", "bool"


@dataclass(frozen=True)
class Column:
    """A column of the cell table.

    Attributes
    ----------
    name : as it stands in the table; of intensities the part before the channel's name
    dtype : name of the Arrow and NumPy type
    text : what it holds, with the unit
    nullable : when it holds nulls, "" if never
    """

    name: str
    dtype: str
    text: str
    nullable: str = ""


_NO_SIZE = "pixel size unknown"

# What labels alone decide.
OF_LABELS = (
    Column("id", _UINT, "the cell's label; 1 to N, in raster order of the cells' seeds"),
    Column("y_px", _FLOAT, "centroid, rows from the centre of the slide's first pixel"),
    Column("x_px", _FLOAT, "centroid, columns from the centre of the slide's first pixel"),
    Column("y_um", _FLOAT, "centroid, µm from the slide's upper edge", _NO_SIZE),
    Column("x_um", _FLOAT, "centroid, µm from the slide's left edge", _NO_SIZE),
    Column("area_px", _INT, "number of pixels"),
    Column("area_um2", _FLOAT, "area in µm²", _NO_SIZE),
    Column("perimeter_px", _FLOAT, "length of the outline (`perimeter` with neighborhood 4), px"),
    Column("eccentricity", _FLOAT, "of the ellipse with the cell's second moments; 0 is a circle"),
    Column("solidity", _FLOAT, "area over that of the convex hull (`area_convex`)"),
    Column(
        "orientation", _FLOAT,
        "angle from the rows' axis (down) to the major axis, radians, -π/2 to π/2; -π/4 for a cell "
        "as wide in all directions",
    ),
    Column("major_axis_px", _FLOAT, "length of that ellipse (`axis_major_length`), px"),
    Column("minor_axis_px", _FLOAT, "width of that ellipse (`axis_minor_length`), px"),
    Column("extent", _FLOAT, "area over that of the bounding box"),
    Column("y0", _INT, "bounding box: first row"),
    Column("x0", _INT, "bounding box: first column"),
    Column("y1", _INT, "bounding box: row after the last"),
    Column("x1", _INT, "bounding box: column after the last"),
    Column("touches_border", _BOOL, "a pixel lies at the slide's border"),
    Column(
        "touches_missing", _BOOL,
        "a pixel lies beside one without a result, or at the edge of `--roi`: it may be cut",
    ),
    Column(
        "neighbours", _INT, "other cells whose centroid is within the radius "
        f"(`--neighbour-radius`, {RADIUS_UM:g} µm)", _NO_SIZE,
    ),
    Column("nearest_px", _FLOAT, "distance to the nearest other centroid, px; NaN if none"),
)  # fmt: skip

# Of cells of a part of the slide, where areas have names.
OF_REGIONS = (
    Column(
        "region", "string", "with `--roi`: name of the area that the centroid lies in", "in none"
    ),
)

# Of cells whose nuclei are known.
OF_NUCLEI = (
    Column("n_nuclei", _INT, "with `--compartments`: nuclei that belong to the cell"),
    Column("nucleus_area", _INT, "likewise: px that they have of the cell (label image `nuclei`)"),
    Column(
        "from_nucleus",
        _BOOL,
        "likewise: the cell has no outline of its own, it was grown from its nucleus",
    ),
)

# Of each channel, whose name follows.
OF_CHANNELS = (
    Column("mean_", _FLOAT, "mean of the cell's pixels"),
    Column("total_", _FLOAT, "their sum"),
    Column("std_", _FLOAT, "their standard deviation, over n"),
    Column("median_", _FLOAT, "their median"),
)
_QUANTILE = Column("q90_", _FLOAT, "a quantile, here of 0.9; a column for each of `--quantiles`")
_FRACTION = Column(
    "fraction_",
    _FLOAT,
    "share of the pixels over the value of `--fraction`, or under the labels of `--positive`",
)
_POSITIVE = Column(
    "positive_", _BOOL, "at or over the cut of `--positive`", "what is compared is unknown"
)  # fmt: skip
# Behind those of the channels; the phenotype's name follows.
_PHENOTYPE = Column(
    "phenotype_", _BOOL, "all markers are as `--phenotype` has them", "that is undecided"
)

_STATISTIC = re.compile(r"mean|total|std|median|fraction|q[0-9.]+")


@dataclass(frozen=True)
class Share:
    """A share of each cell's pixels, of which a channel has at most one.

    Attributes
    ----------
    channel : by index
    over : counted are pixels with a larger value
    under : else counted are pixels that have a label in this label image
    """

    channel: int
    over: float | None = None
    under: str | None = None


@dataclass(frozen=True)
class Marker:
    """What makes a cell positive in a channel: a statistic that is at or over a cut.

    Attributes
    ----------
    channel : by index
    statistic : such as `mean`, `q90`, or `mean_nucleus` of a compartment
    cut : a value, or how it is found: `otsu`, `mixture`
    """

    channel: int
    statistic: str
    cut: float | str


@dataclass(frozen=True)
class Phenotype:
    """Cells that are positive in some markers and negative in others.

    Attributes
    ----------
    name : of its column
    signs : channels, and whether a cell is positive there
    """

    name: str
    signs: tuple[tuple[int, bool], ...]


@dataclass(frozen=True)
class Measures:
    """What is measured of each cell besides its shape.

    Attributes
    ----------
    channels : of the image, by index, ascending
    quantiles : from 0 to 1, in the order of their columns
    radius_um : within which neighbours are counted
    shares : of pixels over a value or under labels, by channel, ascending
    markers : in which cells are positive or not, by channel, ascending
    phenotypes : in the order of their columns
    compartments : in which channels are measured as well, by name
    has_regions : whether areas with names count, one of which each cell may lie in
    """

    channels: tuple[int, ...]
    quantiles: tuple[float, ...] = ()
    radius_um: float = RADIUS_UM
    shares: tuple[Share, ...] = ()
    markers: tuple[Marker, ...] = ()
    phenotypes: tuple[Phenotype, ...] = ()
    compartments: tuple[str, ...] = ()
    has_regions: bool = False

    @property
    def fractions(self) -> tuple[float, ...]:
        """What is ranked, ascending: the median and the quantiles."""
        return tuple(sorted({MEDIAN, *self.quantiles}))

    @property
    def shares_of(self) -> dict[int, Share]:
        """Shares of pixels by channel, of the channels that are measured."""
        return {share.channel: share for share in self.shares if share.channel in self.channels}


def name_quantile(fraction: float) -> str:
    """The part of a column's name before the channel's.

    Examples
    --------
    >>> [name_quantile(q) for q in (0.9, 0.025, 0.07, 1)]
    ['q90_', 'q2.5_', 'q7_', 'q100_']
    """
    return f"q{100 * fraction:.10g}_"


def name_compartment(compartment: str) -> str:
    """The part of a column's name after the channel's."""
    return f"_{compartment}"


def name_channels(channels: Sequence[str]) -> list[str]:
    """Names of channels in the names of columns; those of a slide need not be unique.

    Parameters
    ----------
    channels
        All of the image's, so that a name does not depend on which are measured.

    Examples
    --------
    >>> name_channels(["CD3", "CD3", "CD3_1"])
    ['CD3', 'CD3_1', 'CD3_1_2']
    """
    names: list[str] = []
    for index, channel in enumerate(channels):
        name = channel
        while name in names:
            name += f"_{index}"
        names.append(name)
    return names


def name_column(statistic: str, channel: str) -> str:
    """The column of a statistic, with its compartment, of a channel.

    Examples
    --------
    >>> name_column("q90", "CD3"), name_column("mean_nucleus", "CD3")
    ('q90_CD3', 'mean_CD3_nucleus')
    """
    what, _, compartment = statistic.partition("_")
    return f"{what}_{channel}" + (f"_{compartment}" if compartment else "")


def is_statistic(text: str) -> bool:
    """Whether a text is a statistic of a channel, or one of a compartment.

    Examples
    --------
    >>> [is_statistic(text) for text in ("mean", "q2.5", "mean_nucleus", "area", "CD3")]
    [True, True, True, False, False]
    """
    what, _, compartment = text.partition("_")
    return bool(_STATISTIC.fullmatch(what)) and compartment in ("", *COMPARTMENTS)


def may_be_unknown(column: str) -> bool:
    """Whether a column holds truth values of which some may be null."""
    return column.startswith((_POSITIVE.name, _PHENOTYPE.name))


def list_columns(measures: Measures, channels: Sequence[str]) -> list[Column]:
    """The columns of a table, in their order; nothing else says what that is.

    Parameters
    ----------
    measures
        What is in it.
    channels
        Names of all channels of the image.
    """
    names = name_channels(channels)
    positive = {marker.channel for marker in measures.markers}
    columns = [
        *OF_LABELS,
        *(OF_REGIONS if measures.has_regions else ()),
        *(OF_NUCLEI if measures.compartments else ()),
    ]
    for compartment in ("", *measures.compartments):
        ending = name_compartment(compartment) if compartment else ""
        for channel in measures.channels:
            wanted = [
                *OF_CHANNELS,
                *(Column(name_quantile(q), _FLOAT, _QUANTILE.text) for q in measures.quantiles),
                *([_FRACTION] if channel in measures.shares_of else []),
                *([_POSITIVE] if channel in positive and not compartment else []),
            ]
            name = names[channel] + ending
            columns += [replace(each, name=each.name + name) for each in wanted]
    for phenotype in measures.phenotypes:
        columns.append(replace(_PHENOTYPE, name=_PHENOTYPE.name + phenotype.name))
    return columns


def describe_schema() -> Iterator[str]:
    """The lines of the table of columns in the documentation, as Markdown."""
    yield "| column | type | what | null |"
    yield "|---|---|---|---|"
    shown = [
        *((each.name, each) for each in (*OF_LABELS, *OF_REGIONS, *OF_NUCLEI)),
        *(
            (f"{each.name}<channel>", each)
            for each in (*OF_CHANNELS, _QUANTILE, _FRACTION, _POSITIVE)
        ),
        (f"{_PHENOTYPE.name}<name>", _PHENOTYPE),
    ]
    for name, each in shown:
        yield f"| `{name}` | {each.dtype} | {each.text} | {each.nullable or 'never'} |"
