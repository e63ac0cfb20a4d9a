"""Strict numbers, and the one sentence for settings that cannot be.

What a user meets is in `tests/planning/test_settings.py`; here is what settings share.
"""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from densebatch.base.errors import InputError
from densebatch.base.settings import (
    Amount,
    Count,
    Integer,
    Number,
    Positive,
    PositiveCount,
    Share,
    read_settings,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    depth: Count = 3


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: Positive = 1.0
    names: tuple[str, ...] = ()
    inner: Inner = Field(default_factory=Inner)

    @field_validator("names")
    @classmethod
    def _refuse_x(cls, names):
        if "x" in names:
            raise ValueError("x is no name")
        return names


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (Number, [-1.5, 0, 2], [True, False, "a"]),
        (Positive, [0.1, 3], [0, -1, True]),
        (Amount, [0, 0.5], [-0.1, False]),
        (Share, [0.1, 1], [0, 1.1, True]),
        (Integer, [-3, 0], [0.5, True]),
        (Count, [0, 7], [-1, False]),
        (PositiveCount, [1], [0, True]),
    ],
)
def test_kinds_of_numbers(kind, accepted, refused):
    model = create_model("Model", value=(kind, ...))
    for value in accepted:
        assert model(value=value).value == value
    for value in refused:
        with pytest.raises(ValidationError):
            model(value=value)


def refuse(path, text, **overrides):
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_settings(Outer, path, overrides)
    return str(caught.value)


def test_overrides_stand_above_the_file_unless_they_were_not_given(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("{width: 2, names: [a]}")
    found = read_settings(Outer, path, {"width": 3, "names": None})
    assert (found.width, found.names) == (3, ("a",))
    assert read_settings(Outer, None, {}) == Outer()


def test_the_file_is_blamed_for_its_own_values_only(tmp_path):
    path = tmp_path / "a.yaml"
    told = "setting 'width' = -1: input should be greater than 0"
    assert refuse(path, "width: -1") == f"{path}: {told}"
    assert refuse(path, "names: [a]", width=-1) == told


def test_unknown_keys_are_answered_with_those_of_their_own_level(tmp_path):
    path = tmp_path / "a.yaml"
    assert refuse(path, "{wdth: 1}") == (
        f"{path}: setting 'wdth' = 1: extra inputs are not permitted; accepted settings: width, "
        "names, inner"
    )
    assert refuse(path, "{inner: {dpth: 1}}") == (
        f"{path}: setting 'inner.dpth' = 1: extra inputs are not permitted; accepted settings: "
        "depth"
    )


def test_own_words_and_long_values(tmp_path):
    path = tmp_path / "a.yaml"
    assert refuse(path, "names: [x]") == f"{path}: setting 'names' = ['x']: x is no name"
    told = refuse(path, f"width: {'w' * 200}")
    assert told == f"{path}: setting 'width' = '{'w' * 76}...: input should be a valid number, " + (
        "unable to parse string as a number"
    )


def test_files_that_hold_no_mapping(tmp_path):
    path = tmp_path / "a.yaml"
    assert refuse(path, "[1]") == f"{path}: holds a list; accepted is a mapping"
    assert refuse(path, "{").startswith(f"{path}: not a readable YAML file (")
    path.write_text("")
    assert read_settings(Outer, path, {}) == Outer()
    path.unlink()
    with pytest.raises(InputError) as caught:
        read_settings(Outer, path, {})
    assert str(caught.value) == f"{path}: not a readable YAML file (No such file or directory)"
