"""Zarr groups and arrays on disk."""

import json
from concurrent.futures import ThreadPoolExecutor

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


def list_entries(path, zarr_format):
    """Consolidated metadata by path, as they are stored, without what zarr adds to groups."""
    if zarr_format == 2:
        entries = json.loads((path / ".zmetadata").read_text())["metadata"]
    else:
        document = json.loads((path / "zarr.json").read_text())
        entries = document["consolidated_metadata"]["metadata"]
    for entry in entries.values():
        entry.pop("consolidated_metadata", None)
    # zarr writes attributes where there are none, and no file of them.
    return {key: entry for key, entry in entries.items() if entry or not key.endswith(".zattrs")}


def write_store(path, zarr_format):
    """A store with an image in a group, and an array of a kind that zarr cannot open."""
    store = groups.require_group(path, zarr_format)
    image = store.create_group("images").create_group("he")
    image.create_array("0", shape=(4, 4), chunks=(2, 2), dtype="uint16")
    labels = image.create_group("labels")
    labels.create_group("nuclei").create_array("0", shape=(4, 4), chunks=(2, 2), dtype="uint8")
    return labels


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.parametrize("place", ["", "images", "images/he", "images/he/labels"])
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_any_group_above_is_renewed_as_zarr_would(tmp_path, zarr_format, place):
    labels = write_store(tmp_path / "store", zarr_format)
    holder = tmp_path / "store" / place
    zarr.consolidate_metadata(holder, zarr_format=zarr_format)
    del labels["nuclei"]
    cells = labels.create_group("cells", attributes={"a": 1})
    cells.create_array("0", shape=(8, 4), chunks=(2, 2), dtype="uint32")
    groups.refresh_consolidated(tmp_path / "store" / "images" / "he" / "labels")
    inside = "/".join(["images", "he", "labels", "cells"][place.count("/") + bool(place) :])
    found = zarr.open_consolidated(holder)[f"{inside}/0"]
    assert found.shape == (8, 4)
    assert zarr.open_consolidated(holder)[inside].attrs["a"] == 1
    ours = list_entries(holder, zarr_format)
    zarr.consolidate_metadata(holder, zarr_format=zarr_format)
    assert ours == list_entries(holder, zarr_format)


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_what_others_wrote_into_consolidated_metadata_stays(tmp_path, zarr_format):
    labels = write_store(tmp_path / "store", zarr_format)
    zarr.consolidate_metadata(tmp_path / "store", zarr_format=zarr_format)
    # Tables have arrays of texts, which not every version of zarr can open.
    path = tmp_path / "store" / (".zmetadata" if zarr_format == 2 else "zarr.json")
    document = json.loads(path.read_text())
    entries = document if zarr_format == 2 else document["consolidated_metadata"]
    odd = {"data_type": "nonsense", "fill_value": float("nan")}
    entries["metadata"]["tables/0"] = odd
    path.write_text(json.dumps(document))
    labels.create_group("cells")
    groups.refresh_consolidated(tmp_path / "store" / "images" / "he" / "labels")
    found = list_entries(tmp_path / "store", zarr_format)
    assert found["tables/0"]["data_type"] == "nonsense"
    assert any(key.startswith("images/he/labels/cells") for key in found)


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_a_group_above_that_does_not_list_the_image_is_left_alone(tmp_path, zarr_format):
    outer = groups.require_group(tmp_path, zarr_format)
    outer.create_group("other")
    zarr.consolidate_metadata(tmp_path, zarr_format=zarr_format)
    name = ".zmetadata" if zarr_format == 2 else "zarr.json"
    before = (tmp_path / name).read_bytes()
    write_store(tmp_path / "between" / "store", zarr_format).create_group("cells")
    groups.refresh_consolidated(tmp_path / "between" / "store" / "images" / "he" / "labels")
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_a_group_above_is_found_through_a_link(tmp_path, zarr_format):
    labels = write_store(tmp_path / "store", zarr_format)
    zarr.consolidate_metadata(tmp_path / "store", zarr_format=zarr_format)
    labels.create_group("cells")
    (tmp_path / "link").symlink_to(tmp_path / "store" / "images" / "he")
    groups.refresh_consolidated(tmp_path / "link" / "labels")
    assert "images/he/labels/cells" in zarr.open_consolidated(tmp_path / "store")


def test_a_row_without_a_group_of_its_own(tmp_path):
    """Some plates of format 2 have groups for wells and none for rows."""
    write_store(tmp_path / "plate.zarr" / "A" / "1", 2)
    groups.require_group(tmp_path / "plate.zarr", 2)
    known = {".zgroup": {"zarr_format": 2}, "A/1/images/he/.zgroup": {"zarr_format": 2}}
    document = {"zarr_consolidated_format": 1, "metadata": known}
    (tmp_path / "plate.zarr" / ".zmetadata").write_text(json.dumps(document))
    groups.refresh_consolidated(tmp_path / "plate.zarr" / "A" / "1" / "images" / "he" / "labels")
    found = list_entries(tmp_path / "plate.zarr", 2)
    assert {"A/1/images/he/labels/nuclei/.zgroup", "A/1/images/he/labels/nuclei/0/.zarray"} <= {
        *found
    }
    assert known.keys() <= found.keys()


@pytest.mark.parametrize("zarr_format", FORMATS)
@pytest.mark.filterwarnings("ignore:.*[Cc]onsolidated metadata.*:UserWarning")
def test_runs_of_images_of_one_plate_do_not_undo_each_other(tmp_path, zarr_format):
    names = [str(k) for k in range(12)]
    plate = groups.require_group(tmp_path / "plate", zarr_format)
    for name in names:
        plate.create_group(name)
    zarr.consolidate_metadata(tmp_path / "plate", zarr_format=zarr_format)
    for name in names:
        plate.create_group(f"{name}/labels/cells")
    with ThreadPoolExecutor(len(names)) as pool:
        list(
            pool.map(
                groups.refresh_consolidated, [tmp_path / "plate" / n / "labels" for n in names]
            )
        )
    found = zarr.open_consolidated(tmp_path / "plate")
    assert all(f"{name}/labels/cells" in found for name in names)
