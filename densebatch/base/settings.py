"""Settings in general: strict kinds of numbers, YAML in, one sentence for what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def refuse_truth(value: object) -> object:
    """YAML's yes, no, on and off are no numbers, though Python would take them for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is accepted, not a truth value")  # noqa: TRY004
    return value


# The JSON Schema loses a limit that stands outside of "| None" or after the validator.
Number = Annotated[float, BeforeValidator(refuse_truth)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(refuse_truth)]
Amount = Annotated[float, Field(ge=0), BeforeValidator(refuse_truth)]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(refuse_truth)]
Integer = Annotated[int, BeforeValidator(refuse_truth)]
Count = Annotated[int, Field(ge=0), BeforeValidator(refuse_truth)]
PositiveCount = Annotated[int, Field(gt=0), BeforeValidator(refuse_truth)]

_Settings = TypeVar("_Settings", bound=BaseModel)


def tell_value(value: object) -> str:
    """A value in at most 80 characters of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file holds an empty one.

    Raises
    ------
    InputError
        If the file cannot be read, is no YAML, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: not a readable YAML file ({reason[:200]})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}; accepted is a mapping")
    return values


def read_settings(
    kind: type[_Settings], path: Path | None, overrides: dict[str, object]
) -> _Settings:
    """Settings from a YAML file, with those given on the command line on top.

    Parameters
    ----------
    kind
        Model of the settings.
    path
        YAML file; None for none.
    overrides
        By name; those that are None were not given.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    values = read_mapping(path) if path is not None else {}
    given = {k: v for k, v in overrides.items() if v is not None}
    try:
        return kind.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] in ("extra_forbidden", "invalid_key")
        hint = (
            f"; accepted settings: {', '.join(_fields_at(kind, first['loc']))}" if unknown else ""
        )
        source = (
            f"{path}: "
            if path is not None and first["loc"][:1] not in [(k,) for k in given]
            else ""
        )
        message = first["msg"].removeprefix("Value error, ").lower().replace("tuple", "list")
        what = f"setting {where!r} = {tell_value(first.get('input'))}: " if where else ""
        raise InputError(f"{source}{what}{message}{hint}") from error


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings beside the one at a place, which may be in settings within settings."""
    for part in loc[:-1]:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
