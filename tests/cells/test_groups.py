"""Zarr groups and arrays on disk."""

import json

import pytest
import zarr

from densebatch.base.errors import InputError
from densebatch.cells import groups

FORMATS = [2, 3]


def settings(zarr_format, shape=(4, 6)):
    return {"shape": shape, "chunks": (2, 2), "dtype": "uint32", "zarr_format": zarr_format}


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_a_group_is_created_once(tmp_path, zarr_format):
    folder = tmp_path / "a"
    assert groups.find_format(folder) is None
    with pytest.raises(InputError, match="a is not a zarr group"):
        groups.open_group(folder)
    assert groups.is_blank(groups.require_group(folder, zarr_format))
    assert groups.find_format(folder) == zarr_format
    groups.open_group(folder).update_attributes({"title": "kept"})
    assert not groups.is_blank(groups.require_group(folder, zarr_format))
    assert groups.read_attributes(folder) == {"title": "kept"}
    other, version = (3, "0.5") if zarr_format == 2 else (2, "0.4")
    message = rf"is stored in zarr format {zarr_format}; OME-Zarr {version} needs format {other}\."
    with pytest.raises(InputError, match=message):
        groups.require_group(folder, other)


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_a_group_with_a_member_is_not_blank(tmp_path, zarr_format):
    group = groups.require_group(tmp_path / "a", zarr_format)
    group.create_group("b")
    assert not groups.is_blank(groups.open_group(tmp_path / "a"))


@pytest.mark.parametrize("zarr_format", FORMATS)
def test_an_array_is_created_once_and_another_is_refused(tmp_path, zarr_format):
    folder = tmp_path / "0"
    with pytest.raises(InputError, match="0 is not a readable zarr array"):
        groups.open_array(folder)
    groups.require_array(folder, settings(zarr_format))
    zarr.open_array(folder, mode="r+")[0, 0] = 7
    groups.require_array(folder, settings(zarr_format))
    assert groups.open_array(folder)[0, 0] == 7
    with pytest.raises(InputError, match=r"exists and differs \(shape: \(4, 6\) there, \(4, 8\)"):
        groups.require_array(folder, settings(zarr_format, (4, 8)))


def test_an_array_without_its_second_file_is_completed(tmp_path):
    groups.require_array(tmp_path / "0", settings(2))
    whole = {path.name for path in (tmp_path / "0").iterdir()}
    (tmp_path / "0" / ".zattrs").unlink()
    groups.require_array(tmp_path / "0", settings(2))
    assert {path.name for path in (tmp_path / "0").iterdir()} == whole


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize("consolidated", [True, False])
# zarr warns on writing and on reading consolidated metadata of format 3
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_consolidated_metadata_are_renewed_where_there_are_any(tmp_path, zarr_format, consolidated):
    folder = tmp_path / "a"
    group = groups.require_group(folder, zarr_format)
    if consolidated:
        zarr.consolidate_metadata(folder, zarr_format=zarr_format)
    group.create_group("b")
    groups.refresh_consolidated(folder)
    if zarr_format == 2:
        assert (folder / ".zmetadata").is_file() == consolidated
    else:
        document = json.loads((folder / "zarr.json").read_text())
        assert (document.get("consolidated_metadata") is not None) == consolidated
    assert list(zarr.open_group(folder, mode="r").keys()) == ["b"]
