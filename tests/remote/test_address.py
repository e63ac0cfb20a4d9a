"""Addresses: what is one, what of it is refused, and that no secret is repeated."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest

from densebatch.base.errors import InputError
from densebatch.cohorts.rows import name_sample
from densebatch.remote.address import is_address, parse_address
from densebatch.remote.tree import RemotePath, find_place
from tests.helpers.run_files import call_main


@pytest.mark.parametrize("address", [
    "s3://key:hidden@bucket/a.zarr", "https://hidden@host/a.zarr", "http://u:hidden@host:80/a",
    "https://host/a.zarr?X-Amz-Signature=hidden", "gs://bucket/a.zarr#hidden",
    "s3://bucket/a.zarr?hidden@x", "https://u:hid/den@host?hidden",
    "s3://key:hid/den@bucket/a.zarr",
])  # fmt: skip
def test_secrets_are_refused_and_not_repeated(capsys, tmp_path, address):
    with pytest.raises(InputError, match="accepted are s3://BUCKET/PATH") as told:
        RemotePath(address)
    assert "hid" not in str(told.value)
    # As an output they are no path, and are not repeated either.
    log = tmp_path / "log.json"
    for command in (
        ("info", address), ("plan", tmp_path / "a", address), ("status", address),
        ("plan", tmp_path / "a", tmp_path / "b", "--model", address),
    ):  # fmt: skip
        code, said, err = call_main(capsys, *command, "--log-json", log, "--verbose")
        assert code == 2
        assert "hid" not in said + err
    assert "hid" not in log.read_text()


@pytest.mark.parametrize("address", [
    "s3://", "s3:///a.zarr", "https://a b/c", "gs://bucket/../a", "s3://bucket/a\nb", "https://h/%2e%2e/a",
])  # fmt: skip
def test_what_names_nothing(address):
    with pytest.raises(InputError, match="accepted are s3://BUCKET/PATH"):
        parse_address(address)


def test_an_address_is_used_as_a_path():
    place = find_place("HTTPS://Host:8080//a%20b//slide.ome.zarr/")
    assert str(place) == "https://host:8080/a%20b/slide.ome.zarr"
    assert place.address.key == "a b/slide.ome.zarr"
    assert (place.name, place.suffix, name_sample(place)) == ("slide.ome.zarr", ".zarr", "slide")
    assert place == pickle.loads(pickle.dumps(place)) == find_place(place)
    assert str(place / "0" / "zarr.json") == f"{place}/0/zarr.json"
    assert [str(p) for p in place.parents] == ["https://host:8080/a%20b", "https://host:8080"]
    assert place.parent == place.parents[0]
    assert name_sample(RemotePath("s3://Bucket")) == "Bucket"
    assert not is_address(Path("s3://bucket"))
    assert not is_address("s3:/bucket")
    assert find_place("s3:/bucket") == Path("s3:/bucket")


def test_the_library_is_named_where_it_is_missing(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, err = call_main(capsys, "info", "s3://bucket/a.zarr")
    assert code == 2
    assert "is read by obstore, which cannot be imported" in err
    assert "pip install 'densebatch[remote]'" in err
