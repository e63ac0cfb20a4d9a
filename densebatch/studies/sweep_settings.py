"""Settings of a sweep: which thresholds to try on one flow field, and how to score them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

from densebatch.base.settings import Amount, Count, Number, Share, read_settings
from densebatch.planning.settings import SegmentSettings

if TYPE_CHECKING:
    from pathlib import Path

# A sweep varies the first two itself; the next only say how labels are written; and it is scored on
# all of a field.
_NOT_IN_SWEEP = (
    *("flow_threshold", "cellprob_threshold"),
    *("ngff", "image", "in_place", "keep_flows"),
    *("roi", "exclude", "tissue"),
)


class SweepSettings(BaseModel):
    """Which settings to try on one flow field, and how to score them.

    Every combination of the first three is scored. The defaults are those that Han et al. 2024
    varied.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    flow_threshold: tuple[Amount, ...] = Field(
        default=(0.3, 0.4, 0.5), min_length=1, description="largest flow errors; 0 keeps all"
    )
    cellprob_threshold: tuple[Number, ...] = Field(
        default=(-1.0, 0.0, 1.0), min_length=1, description="foreground has a larger logit"
    )
    min_size: tuple[Count, ...] = Field(
        default=(0, 50, 100, 200),
        min_length=1,
        description="px; at scoring, smaller cells are removed on both sides before matching",
    )
    iou: tuple[Share, ...] = Field(
        default=(0.5,), min_length=1, description="IoU from which a cell counts as found"
    )
    label_components: bool | None = Field(
        default=None,
        description="yes/no masks as truth: true makes cells of their pieces, false takes each "
        "label for one cell; default: refused",
    )
    segment: SegmentSettings = Field(
        default_factory=SegmentSettings,
        description="all else, as for `densebatch segment`; its min_size acts when tracing",
    )

    @field_validator("flow_threshold", "cellprob_threshold", "min_size", "iou")
    @classmethod
    def _refuse_repeats(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(values)) < len(values):
            raise ValueError("names a value twice")
        return values

    @field_validator("segment")
    @classmethod
    def _refuse_ineffective(cls, segment: SegmentSettings) -> SegmentSettings:
        for name in _NOT_IN_SWEEP:
            if name in segment.model_fields_set:
                where = "; it is accepted beside segment" if name in cls.model_fields else ""
                raise ValueError(f"{name} has no effect here{where}")
        if segment.is_joined:
            raise ValueError(
                "compartments and expand have no effect here; thresholds are tried on the flows of "
                "one run, of cells or of nuclei"
            )
        if segment.segmenter is not None:
            raise ValueError(
                "thresholds are those of a model's flows, and a segmenter has none; try its "
                "options by `densebatch segment --segmenter-options` and `densebatch score`"
            )
        return segment


def load_sweep(
    path: Path | None, *, label_components: bool | None = None, **segment: object
) -> SweepSettings:
    """Settings of a sweep from a YAML file, with what was given on the command line on top.

    Parameters
    ----------
    path
        YAML file; None for none.
    label_components
        None if it was not given.
    **segment
        Settings as for `densebatch segment`; those that are None were not given.

    Raises
    ------
    InputError
        As for `read_settings`.
    """
    settings = read_settings(SweepSettings, path, {"label_components": label_components})
    given = {name: value for name, value in segment.items() if value is not None}
    return settings.model_copy(update={"segment": settings.segment.model_copy(update=given)})
