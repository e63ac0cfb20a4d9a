"""The columns of the cell table: names, types, order and meaning. `docs/table.md` is made of this.

Columns that the table has always had stand in their old order; what came later stands after what it
belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    Column("touches_missing", _BOOL, "a pixel lies beside one without a result: it may be cut"),
    Column(
        "neighbours", _INT, "other cells whose centroid is within the radius "
        f"(`--neighbour-radius`, {RADIUS_UM:g} µm)", _NO_SIZE,
    ),
    Column("nearest_px", _FLOAT, "distance to the nearest other centroid, px; NaN if none"),
)  # fmt: skip

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


@dataclass(frozen=True)
class Measures:
    """What is measured of each cell besides its shape.

    Attributes
    ----------
    channels : of the image, by index, ascending
    quantiles : from 0 to 1, in the order of their columns
    radius_um : within which neighbours are counted
    compartments : in which channels are measured as well, by name
    """

    channels: tuple[int, ...]
    quantiles: tuple[float, ...] = ()
    radius_um: float = RADIUS_UM
    compartments: tuple[str, ...] = ()

    @property
    def fractions(self) -> tuple[float, ...]:
        """What is ranked, ascending: the median and the quantiles."""
        return tuple(sorted({MEDIAN, *self.quantiles}))


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


def list_columns(measures: Measures, channels: Sequence[str]) -> list[Column]:
    """The columns of a table, in their order.

    Parameters
    ----------
    measures
        What is in it.
    channels
        Names of all channels of the image.
    """
    names = name_channels(channels)
    wanted = [
        *OF_CHANNELS,
        *(Column(name_quantile(q), _FLOAT, _QUANTILE.text) for q in measures.quantiles),
    ]
    return [
        *OF_LABELS,
        *(OF_NUCLEI if measures.compartments else ()),
        *(
            Column(each.name + names[channel] + ending, each.dtype, each.text)
            for ending in ("", *(name_compartment(each) for each in measures.compartments))
            for channel in measures.channels
            for each in wanted
        ),
    ]


def describe_schema() -> Iterator[str]:
    """The lines of the table of columns in the documentation, as Markdown."""
    yield "| column | type | what | null |"
    yield "|---|---|---|---|"
    shown = [
        *((each.name, each) for each in (*OF_LABELS, *OF_NUCLEI)),
        *((f"{each.name}<channel>", each) for each in (*OF_CHANNELS, _QUANTILE)),
    ]
    for name, each in shown:
        yield f"| `{name}` | {each.dtype} | {each.text} | {each.nullable or 'never'} |"
