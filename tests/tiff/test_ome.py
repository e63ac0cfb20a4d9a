"""OME-TIFF in several files: planes are sought where they are, and what is missing is named."""

import os

import numpy as np
import pytest

from densebatch.base.errors import InputError
from densebatch.slides.slide import open_slide
from tests.helpers.slide_formats import read_all
from tests.helpers.tiff_files import PLANES, ome_image, ome_xml, place, write_pages

IDS = [f"urn:uuid:0000000{i}-0000-0000-0000-000000000000" for i in range(4)]


def write(path, *planes, xml):
    return write_pages(path, *planes, description=xml)


def one_image(*places, channels="AB", **attributes):
    return ome_xml(ome_image("slide", channels, planes="".join(places)), **attributes)


def write_pair(folder, xml=one_image, **attributes):
    """Two files of a channel each; both have all metadata."""
    places = [place(k, 0, file=f"{k}.ome.tif", uuid=IDS[k]) for k in range(2)]
    return [
        write(folder / f"{k}.ome.tif", PLANES[k], xml=xml(*places, **attributes)) for k in range(2)
    ]


def refuse(path, match):
    with pytest.raises(InputError, match=match) as error:
        open_slide(path)
    assert "KeyError" not in str(error.value)
    assert "\n" not in str(error.value)


class TestMissing:
    @pytest.mark.parametrize("attributes", [{}, {"UUID": IDS[0]}])
    def test_the_file_is_named(self, tmp_path, attributes):
        paths = write_pair(tmp_path, **attributes)
        np.testing.assert_array_equal(read_all(open_slide(paths[0])), PLANES[:2])
        paths[1].unlink()
        os.utime(paths[0], ns=(1, 1))
        refuse(paths[0], r"lacks 1 of the 2 planes.*; 1\.ome\.tif is missing beside it")

    def test_of_many_the_first(self, tmp_path):
        places = [place(k, 0, file=f"{k}.ome.tif", uuid=f"urn:uuid:{k}") for k in range(10)]
        xml = one_image(*places, channels="ABCDEFGHIJ")
        path = write(tmp_path / "0.ome.tif", PLANES[0], xml=xml)
        refuse(path, r"1\.ome\.tif, 2\.ome\.tif, .* 5\.ome\.tif and 4 more are missing")

    def test_no_plane_is_in_the_file(self, tmp_path):
        xml = one_image(place(0, 0, file="gone.ome.tif", uuid=IDS[1]), channels="A", UUID=IDS[0])
        path = write(tmp_path / "a.ome.tif", PLANES[0], xml=xml)
        refuse(path, r"one of several files of one image; gone\.ome\.tif is missing")

    def test_a_damaged_sibling_is_named(self, tmp_path):
        paths = write_pair(tmp_path)
        paths[1].write_bytes(paths[1].read_bytes()[:3000])
        refuse(paths[0], r"truncated: strip 0 of 1\.ome\.tif should end")

    def test_only_files_of_the_chosen_image_are_needed(self, tmp_path):
        images = [
            ome_image(f"well {k}", "A", planes=place(0, 0, file=f"{k}.ome.tif", uuid=IDS[k]))
            for k in range(2)
        ]
        paths = [
            write(tmp_path / f"{k}.ome.tif", PLANES[k], xml=ome_xml(*images)) for k in range(2)
        ]
        for k, path in enumerate(paths):
            slide = open_slide(path)
            np.testing.assert_array_equal(read_all(slide)[0], PLANES[k])
            assert f"'well {1 - k}', 64 x 96 px (in other files)" in slide.info.notes[0]
        other = open_slide(paths[0], "well 1")
        np.testing.assert_array_equal(read_all(other)[0], PLANES[1])
        assert other.info.notes == ("all planes of the image lie in other files: '1.ome.tif'",)
        paths[1].unlink()
        os.utime(paths[0], ns=(1, 1))
        np.testing.assert_array_equal(read_all(open_slide(paths[0]))[0], PLANES[0])
        with pytest.raises(
            InputError, match=r"no pixels of the image 'well 1'; 1\.ome\.tif is missing"
        ):
            open_slide(paths[0], "well 1")


class TestNames:
    def test_planes_that_name_no_file(self, tmp_path):
        xml = one_image(place(0, 0, uuid=IDS[0]), place(1, 1, uuid=IDS[0]))
        slide = open_slide(write(tmp_path / "a.ome.tif", *PLANES[:2], xml=xml))
        np.testing.assert_array_equal(read_all(slide), PLANES[:2])
        assert "names no file" in slide.info.notes[0]

    def test_planes_of_the_files_own_uuid(self, tmp_path):
        xml = one_image(place(0, 0, uuid=IDS[0]), place(1, 1, uuid=IDS[0]), UUID=IDS[0])
        slide = open_slide(write(tmp_path / "a.ome.tif", *PLANES[:2], xml=xml))
        np.testing.assert_array_equal(read_all(slide), PLANES[:2])
        assert not slide.info.notes

    @pytest.mark.parametrize(
        ("uuids", "attributes"), [(IDS[1:3], {}), ([IDS[1], IDS[1]], {"UUID": IDS[0]})]
    )
    def test_planes_of_other_files_without_names(self, tmp_path, uuids, attributes):
        xml = one_image(*(place(k, 0, uuid=uuid) for k, uuid in enumerate(uuids)), **attributes)
        path = write(tmp_path / "a.ome.tif", PLANES[0], xml=xml)
        refuse(path, f"another file \\({uuids[0]}\\), but not in which")

    def test_a_renamed_file(self, tmp_path):
        xml = one_image(*(place(k, k, file="original.ome.tif", uuid=IDS[0]) for k in range(2)))
        slide = open_slide(write(tmp_path / "a.ome.tif", *PLANES[:2], xml=xml))
        np.testing.assert_array_equal(read_all(slide), PLANES[:2])
        assert "calls the file original.ome.tif, which is not there" in slide.info.notes[0]

    def test_a_renamed_file_with_its_own_uuid(self, tmp_path):
        xml = one_image(
            *(place(k, k, file="original.ome.tif", uuid=IDS[0]) for k in range(2)), UUID=IDS[0]
        )
        slide = open_slide(write(tmp_path / "a.ome.tif", *PLANES[:2], xml=xml))
        np.testing.assert_array_equal(read_all(slide), PLANES[:2])
        assert not slide.info.notes

    def test_a_file_of_too_few_pages_is_not_the_one_that_is_missing(self, tmp_path):
        xml = one_image(*(place(k, k, file="original.ome.tif", uuid=IDS[0]) for k in range(2)))
        refuse(write(tmp_path / "a.ome.tif", PLANES[0], xml=xml), r"original\.ome\.tif is missing")

    def test_a_path_of_another_system(self, tmp_path):
        names = [rf"D:\scans\{k}.ome.tif" for k in range(2)]
        xml = one_image(*(place(k, 0, file=names[k], uuid=IDS[k]) for k in range(2)))
        paths = [write(tmp_path / f"{k}.ome.tif", PLANES[k], xml=xml) for k in range(2)]
        for path in paths:
            np.testing.assert_array_equal(read_all(open_slide(path)), PLANES[:2])

    def test_a_copy_beside_its_original_says_whose_planes_it_shows(self, tmp_path):
        xml = one_image(place(0, 0, file="original.ome.tif", uuid=IDS[0]), channels="A")
        write(tmp_path / "original.ome.tif", PLANES[0], xml=xml)
        slide = open_slide(write(tmp_path / "copy.ome.tif", PLANES[1], xml=xml))
        np.testing.assert_array_equal(read_all(slide)[0], PLANES[0])
        assert "all planes of the image lie in other files: 'original" in slide.info.notes[0]


class TestCompanion:
    """Files with nothing but the name of the file that has the metadata."""

    NAME = "set.companion.ome"

    def write_set(self, folder):
        paths = []
        for k in range(2):
            binary = f'<BinaryOnly MetadataFile="{self.NAME}" UUID="{IDS[3]}"/>'
            xml = ome_xml(binary, UUID=IDS[k])
            paths.append(write(folder / f"{k}.ome.tif", PLANES[k], xml=xml))
        return paths

    def places(self):
        return [place(k, 0, file=f"{k}.ome.tif", uuid=IDS[k]) for k in range(2)]

    def test_it_is_read(self, tmp_path):
        paths = self.write_set(tmp_path)
        refuse(paths[0], "companion file set.companion.ome, which is missing beside it")
        companion = tmp_path / self.NAME
        companion.write_text(one_image(*self.places(), UUID=IDS[3]))
        for path in paths:
            slide = open_slide(path)
            np.testing.assert_array_equal(read_all(slide), PLANES[:2])
            assert slide.info.channels == ("A", "B")
        identity = open_slide(paths[0]).info.identity
        os.utime(companion, ns=(1, 1))
        assert open_slide(paths[0]).info.identity != identity
        paths[1].unlink()
        os.utime(companion, ns=(2, 2))
        refuse(paths[0], r"lacks 1 of the 2 planes.*1\.ome\.tif is missing")

    def test_it_may_be_one_of_the_tiffs(self, tmp_path):
        write(tmp_path / "0.ome.tif", PLANES[0], xml=one_image(*self.places(), UUID=IDS[0]))
        xml = ome_xml(f'<BinaryOnly MetadataFile="0.ome.tif" UUID="{IDS[0]}"/>')
        path = write(tmp_path / "1.ome.tif", PLANES[1], xml=xml)
        np.testing.assert_array_equal(read_all(open_slide(path)), PLANES[:2])

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("junk <", r"cannot be read \(no XML"),
            ("<!DOCTYPE x><OME/>", r"cannot be read \(a document type"),
            ("<OME/>", "describes no image"),
            (one_image(place(0, 0, file="x.ome.tif", uuid=IDS[2])), "does not list it"),
        ],
    )
    def test_it_cannot_be_followed(self, tmp_path, text, match):
        paths = self.write_set(tmp_path)
        (tmp_path / self.NAME).write_text(text)
        refuse(paths[0], f"companion file set.companion.ome, which {match}")

    @pytest.mark.parametrize("binary", ["<BinaryOnly/>", '<BinaryOnly MetadataFile=""/>'])
    def test_it_has_no_name(self, tmp_path, binary):
        path = write(tmp_path / "a.ome.tif", PLANES[0], xml=ome_xml(binary))
        refuse(path, "keeps its OME-XML in another file and does not say in which")
