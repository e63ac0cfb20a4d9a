"""Markers and phenotypes as users write them; names of channels may hold any sign."""

import pytest

from densebatch.base.errors import InputError
from densebatch.measuring.markers import (
    Image,
    read_markers,
    read_phenotypes,
    read_shares,
    refuse_unmeasured,
)
from densebatch.measuring.schema import Marker, Measures, Phenotype, Share

NAMES = ("DAPI", "CD3", "PD-1", "HLA-DR", "CD8: clone", "A=B", "A", "CD 4", "CD3")
IMAGE = Image("a.tif", NAMES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#1=400", Marker(1, "mean", 400.0)),
        ("dapi = 4e2", Marker(0, "mean", 400.0)),
        ("PD-1:median=otsu", Marker(2, "median", "otsu")),
        ("HLA-DR:q97.5=mixture", Marker(3, "q97.5", "mixture")),
        ("CD8: clone=-3", Marker(4, "mean", -3.0)),
        ("CD8: clone:total=otsu", Marker(4, "total", "otsu")),
        ("A=B=7", Marker(5, "mean", 7.0)),
        ("A=B:std=7", Marker(5, "std", 7.0)),
        ("A=7", Marker(6, "mean", 7.0)),
        ("A:mean_nucleus=7", Marker(6, "mean_nucleus", 7.0)),
    ],
)
def test_markers(text, expected):
    assert read_markers(IMAGE, [text], ()) == ((expected,), ())


def test_labels_of_other_cells_are_a_share_of_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    over = Share(4, over=1.5)
    found = read_markers(IMAGE, ["CD8: clone:fraction=0.2", "PD-1=labels:a=b:c"], [over])
    under = Share(2, under=str(tmp_path / "a=b:c"))
    assert found == ((Marker(2, "fraction", 0.5), Marker(4, "fraction", 0.2)), (under, over))


def test_shares():
    assert read_shares(IMAGE, ["A=B=3", "dapi=2"]) == (Share(0, over=2.0), Share(5, over=3.0))


@pytest.mark.parametrize(
    ("text", "signs", "name"),
    [
        ("A+", [(6, True)], "A+"),
        ("T=A+  PD-1-", [(6, True), (2, False)], "T"),
        ("a=b=PD-1+ CD 4- A=B+", [(2, True), (7, False), (5, True)], "a=b"),
        ("HLA-DR- CD8: clone+", [(3, False), (4, True)], "HLA-DR- CD8: clone+"),
        ("A=B- A-", [(5, False), (6, False)], "A=B- A-"),
    ],
)
def test_phenotypes(text, signs, name):
    markers = [Marker(channel, "mean", 1.0) for channel in (2, 3, 4, 5, 6, 7)]
    assert read_phenotypes(IMAGE, [text], markers) == (Phenotype(name, tuple(signs)),)


@pytest.mark.parametrize(
    ("option", "texts", "sentence"),
    [
        ("positive", ["CD9=4"], "a.tif has no channel 'CD9'; accepted are 'DAPI', 'CD3', "),
        ("positive", ["CD3=4"], "has 2 channels 'CD3'; accepted are .* or an index such as '#1'"),
        ("positive", ["DAPI"], "--positive 'DAPI' has no '='; accepted is CHANNEL.:STATISTIC.=CUT"),
        ("positive", ["DAPI=high"], "'high' is no cut; accepted is a number, otsu, mixture, or la"),
        ("positive", ["DAPI=nan"], "'nan' is no cut"),
        ("positive", ["DAPI="], "'' is no cut"),
        ("positive", ["DAPI:mode=4"], "'mode' is no statistic; accepted are mean, median, total,"),
        ("positive", ["DAPI=4", "0=5"], "the channel 'DAPI' has one already; accepted is one for"),
        ("positive", ["DAPI:median=labels:x"], "compared with pixels, not with the median"),
        ("positive", ["PD-1=labels:x"], "the channel has a --fraction as well"),
        ("fraction", ["DAPI=otsu"], "--fraction 'DAPI=otsu': 'otsu' is no value; accepted is a nu"),
        ("fraction", ["DAPI=1", "DAPI=2"], "'DAPI' has one already"),
        ("phenotype", ["A"], "--phenotype 'A' is no combination of markers; accepted is .NAME=.A"),
        ("phenotype", ["A+ PD-1+"], r"is no combination of markers; .* \('A=B', 'A'\), each once"),
        ("phenotype", ["A+ A-"], "is no combination"),
        ("phenotype", ["=A+"], "is no combination"),
        ("phenotype", [""], "is no combination"),
        ("phenotype", ["A=B+"], "can be read in several ways"),
        ("phenotype", ["x=A+", "x=A-"], "there is one of that name already"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(option, texts, sentence):
    image = IMAGE if option != "phenotype" else Image("a.tif", (*NAMES[:7], "B"))
    markers = [Marker(channel, "mean", 1.0) for channel in (5, 6)]
    if texts == ["A=B+"]:
        markers.append(Marker(7, "mean", 1.0))
    reading = {
        "positive": lambda: read_markers(image, texts, [Share(2, over=1.0)]),
        "fraction": lambda: read_shares(image, texts),
        "phenotype": lambda: read_phenotypes(image, texts, markers),
    }
    with pytest.raises(InputError, match=sentence) as caught:
        reading[option]()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("measures", "sentence"),
    [
        (Measures((0,), markers=(Marker(1, "mean", 1.0),)), "'CD3' is not measured; accepted are"),
        (Measures((0,), shares=(Share(1, 1.0),)), "--fraction: the channel 'CD3' is not measured"),
        (Measures((1,), markers=(Marker(1, "q90", 1.0),)), "the q90 of 'CD3' is not .* --quantile"),
        (Measures((1,), markers=(Marker(1, "fraction", 1.0),)), "is not measured.* --fraction$"),
        (Measures((1,), markers=(Marker(1, "mean_nucleus", 1.0),)), "the mean_nucleus of 'CD3' is"),
    ],
)
def test_what_is_not_measured_is_refused(measures, sentence):
    with pytest.raises(InputError, match=sentence):
        refuse_unmeasured(IMAGE, measures)
