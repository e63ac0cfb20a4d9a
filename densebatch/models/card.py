"""What a model file's card says of how the model is to be used, and what of it is refused.

The card is a JSON mapping in the safetensors header. Everything else in it is provenance, which
nothing depends on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

MIN_PATCH_PX, MAX_PATCH_PX = 64, 4096


def _check_ascending(percentiles: tuple[float, float]) -> tuple[float, float]:
    if not percentiles[0] < percentiles[1]:
        raise ValueError("percentiles rise")
    return percentiles


_Percentile = Annotated[float, Field(ge=0, le=100)]


class _Use(BaseModel):
    """Conditions of use, see `Model`; a description says what is accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    um_per_px: Annotated[float, Field(ge=0.001, le=1000)] | None = Field(
        description="null or 0.001 to 1000"
    )
    patch_px: int = Field(
        ge=MIN_PATCH_PX,
        le=MAX_PATCH_PX,
        description=f"an integer from {MIN_PATCH_PX} to {MAX_PATCH_PX}",
    )
    margin_px: int = Field(ge=0, le=16, description="an integer from 0 to 16")
    percentiles: Annotated[tuple[_Percentile, _Percentile], AfterValidator(_check_ascending)] = (
        # JSON has lists only
        Field(strict=False, description="two ascending numbers from 0 to 100")
    )
    nuclei: bool = Field(description="true or false")


def read_use(path: Path, use: object) -> dict[str, Any]:
    """Conditions of use from a card.

    A card comes with a file from anywhere: it may say what `save_model` writes and nothing else.

    Parameters
    ----------
    path
        Of the model file, for messages.
    use
        What the card has under `use`.

    Returns
    -------
    dict
        `um_per_px`, `patch_px`, `margin_px`, `percentiles` and `nuclei`, as fields of `Model`.

    Raises
    ------
    InputError
        If it says anything else.
    """
    names = _Use.model_fields
    if not isinstance(use, dict) or set(use) != set(names):
        found = ", ".join(sorted(use)) if isinstance(use, dict) else type(use).__name__
        raise InputError(
            f"model {path}: its card tells of use {found[:200]!r}; accepted are {', '.join(names)}"
        )
    try:
        return _Use.model_validate(use).model_dump()
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise InputError(
            f"model {path}: its card says {name} = {str(use[name])[:80]}; "
            f"accepted: {names[name].description}"
        ) from error
