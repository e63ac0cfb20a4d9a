"""Settings in general: strict kinds of numbers, YAML in, one sentence for what is wrong."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from densebatch.base.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails


def refuse_bool(value: object) -> object:
    """Let everything pass but YAML's yes, no, on and off, which Python would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is accepted, not a truth value")  # noqa: TRY004
    return value


def list_one(value: object) -> object:
    """One name may be given without a list around it."""
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def split_numbers(value: object) -> object:
    """Numbers with commas between them, such as `0.5,0.9`; one may be given without a list."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return (value,) if isinstance(value, int | float) else value


_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read_duration(value: object) -> object:
    """Seconds of a duration such as `90`, `90s`, `10m`, `1.5h` or `1d`; a number as it is.

    Raises
    ------
    ValueError
        For any other text.
    """
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
    if found is None:
        raise ValueError("accepted are seconds, or a number with s, m, h or d, such as 10m")
    return float(found[1]) * _UNITS_S[found[2]]


# A limit stands inside of "| None" and before the validator: elsewhere the JSON Schema loses it.
Number = Annotated[float, BeforeValidator(refuse_bool)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(refuse_bool)]
Amount = Annotated[float, Field(ge=0), BeforeValidator(refuse_bool)]
Duration = Annotated[
    float, Field(ge=0), BeforeValidator(read_duration), BeforeValidator(refuse_bool)
]
Share = Annotated[float, Field(gt=0, le=1), BeforeValidator(refuse_bool)]
Integer = Annotated[int, BeforeValidator(refuse_bool)]
Count = Annotated[int, Field(ge=0), BeforeValidator(refuse_bool)]
PositiveCount = Annotated[int, Field(gt=0), BeforeValidator(refuse_bool)]
Fractions = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1), BeforeValidator(refuse_bool)], ...],
    BeforeValidator(split_numbers),
]
Names = Annotated[tuple[str, ...], BeforeValidator(list_one)]

_Settings = TypeVar("_Settings", bound=BaseModel)


def _read_mapping(path: Path) -> dict[str, Any]:
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

    Returns
    -------
    BaseModel
        Of this kind.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    values = _read_mapping(path) if path is not None else {}
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return kind.model_validate({**values, **given})
    except ValidationError as error:
        where = error.errors()[0]["loc"]
        is_of_file = path is not None and not (where and where[0] in given)
        source = f"{path}: " if is_of_file else ""
        raise InputError(source + _explain(kind, error.errors()[0])) from error


def _explain(kind: type[BaseModel], found: ErrorDetails) -> str:
    """What pydantic found, in our words: the setting, its value, what is wrong, what there is."""
    message = found["msg"].removeprefix("Value error, ").lower().replace("tuple", "list")
    if found["type"] in ("extra_forbidden", "invalid_key"):
        message += f"; accepted settings: {', '.join(_list_fields(kind, found['loc']))}"
    name = ".".join(str(part) for part in found["loc"])
    return f"setting {name!r} = {_shorten(found.get('input'))}: {message}" if name else message


def _shorten(value: object) -> str:
    """A value in at most 80 characters of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def _list_fields(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings beside the one at a place, which may be in settings within settings."""
    for part in loc[:-1]:
        field = kind.model_fields.get(str(part))
        inner = field.annotation if field is not None else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        kind = inner
    return list(kind.model_fields)
