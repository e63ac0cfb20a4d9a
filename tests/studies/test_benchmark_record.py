"""Records survive their files, and compare."""

import json
import sys

import pytest
from click.testing import CliRunner

from densebatch.base.errors import InputError
from densebatch.cli.main import cli
from densebatch.studies.benchmark_record import (
    Row,
    compare_records,
    describe_versions,
    read_record,
    take_medians,
    tell_differences,
    write_record,
)
from tests.helpers.benchmark_records import make_record


def test_a_record_survives_its_file(tmp_path):
    record = make_record()
    write_record(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json") == record


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": [{"name": "a"}]}', '{"kind": "score", "rows": 3}', "\x00"]
)
def test_a_file_that_is_no_record(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is no record of a benchmark; accepted is JSON"):
        read_record(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_record(tmp_path / "absent.json")


@pytest.mark.parametrize("part", ["settings", "machine", "versions"])
def test_a_record_whose_parts_are_no_mappings(tmp_path, part):
    write_record(tmp_path / "a.json", make_record())
    document = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**document, part: None}))
    with pytest.raises(InputError, match="is no record of a benchmark"):
        read_record(tmp_path / "a.json")


def test_a_record_of_another_benchmark_is_refused_before_anything_is_measured(tmp_path):
    write_record(tmp_path / "old.json", make_record(kind="score"))
    command = ["benchmark", "backends", "--compare", str(tmp_path / "old.json")]
    result = CliRunner().invoke(cli, [*command, "-o", str(tmp_path / "new.json")])
    assert "is a record of benchmark score; accepted here is one of backends" in str(
        result.exception
    )
    assert not (tmp_path / "new.json").exists()


def test_ratios_are_new_over_old():
    old = make_record(rows=[Row("segment", {"wall_s": 4.0, "cells": 0, "gpu_share": None})])
    new = make_record(rows=[Row("segment", {"wall_s": 1.0, "cells": 5, "gpu_share": 0.5})])
    assert compare_records(old, new) == {"segment": {"wall_s": 0.25}}
    with pytest.raises(InputError, match="is of benchmark score; accepted is throughput"):
        compare_records(make_record(kind="score"), new)
    with pytest.raises(InputError, match="has rows other; none of them"):
        compare_records(make_record(rows=[Row("other", {"wall_s": 1.0})]), new)


def test_what_differs_is_told_but_for_the_load():
    old = make_record(machine={"cores": 2, "load_before": 9.0})
    assert tell_differences(old, make_record()) == []
    new = make_record(settings={"size": 512}, machine={"cores": 4})
    assert tell_differences(old, new) == [
        "settings: size was 256 and is now 512",
        "machine: cores was 2 and is now 4",
    ]


def test_a_median_needs_all_repeats():
    row = take_medians("a", [{"s": 1.0, "mb": 5.0}, {"s": 9.0, "mb": None}, {"s": 2.0, "mb": 7.0}])
    assert row.values == {"s": 2.0, "mb": None}
    assert len(row.repeats) == 3


def rewrite(path, **changes):
    document = json.loads(path.read_text())
    document["rows"][0] |= changes
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "changes",
    [
        {"values": {"wall_s": "2.0"}},
        {"values": {"wall_s": True}},
        {"values": {"wall_s": [2.0]}},
        {"values": None},
        {"name": 3},
        {"repeats": {}},
        {"unit": "s"},
    ],
)
def test_a_row_holds_numbers_by_name(tmp_path, changes):
    path = tmp_path / "a.json"
    write_record(path, make_record())
    rewrite(path, values={"wall_s": 2, "cells": None}, repeats=[{"wall_s": 2.5}])
    assert read_record(path).rows == [
        Row("segment", {"wall_s": 2, "cells": None}, [{"wall_s": 2.5}])
    ]
    rewrite(path, **changes)
    with pytest.raises(InputError, match="is no record of a benchmark"):
        read_record(path)


def test_a_record_of_the_right_benchmark_is_read(tmp_path):
    record = make_record(kind="score")
    write_record(tmp_path / "a.json", record)
    assert read_record(tmp_path / "a.json", "score") == record
    with pytest.raises(InputError, match="is a record of benchmark score; accepted here is one of"):
        read_record(tmp_path / "a.json", "scaling")


def test_a_record_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.json: cannot be written"):
        write_record(tmp_path / "file" / "a.json", make_record())


def test_versions_are_of_what_numbers_depend_on():
    versions = describe_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"densebatch", "torch", "numpy", "zarr"} < versions.keys()
