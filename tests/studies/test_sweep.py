"""A sweep's scores are those of whole runs, and the network runs once."""

import csv
import json
import logging
import shutil
from fractions import Fraction
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.segmentation import find_boundaries

from densebatch.base.errors import DensebatchError
from densebatch.base.geometry import Grid, Region
from densebatch.planning import planner
from densebatch.planning.settings import SegmentSettings
from densebatch.run.segment import segment
from densebatch.scoring.files import ScoreOptions, score_files
from densebatch.scoring.settings import ScoreSettings
from densebatch.simulation.tissue import Tissue, render
from densebatch.stages import predict
from densebatch.studies.sweep import Setting, find_images, run_sweep
from densebatch.studies.sweep_report import draw_sweep, find_best, format_csv, format_markdown
from densebatch.studies.sweep_settings import SweepSettings
from tests.helpers.run_files import call_main, write_tiff

SHAPE = 110, 200
FLOW, CELLPROB, SIZES = (0.0, 0.2, 0.4), (-2.0, 0.5), (0, 100)
SEGMENT = {"membrane": ("0",), "pixel_size": 0.5, "workers": 0}


def simulate(seed):
    """Membrane as 8-bit grey, and the true labels."""
    tissue = Tissue(*SHAPE, seed=seed)
    pixels, labels = render(tissue, Region(0, 0, *SHAPE))
    membrane = pixels[0].astype(float)
    return (255 * membrane / membrane.max()).astype(np.uint8), labels.astype(np.uint16)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, seed in (("a", 1), ("b", 2)):
        pixels, labels = simulate(seed)
        Image.fromarray(pixels).save(folder / f"{name}_img.png")
        Image.fromarray(labels).save(folder / f"{name}_masks.png")
    return folder


@pytest.fixture
def patches(monkeypatch):
    """Patches that the network is evaluated on from now, in this process."""
    counted = []
    evaluate = predict.evaluate_patches

    def count(backend, patches):
        counted.append(len(patches))
        return evaluate(backend, patches)

    monkeypatch.setattr(predict, "evaluate_patches", count)
    return counted


def settings(tile=2048, **changes):
    values = {
        "flow_threshold": FLOW,
        "cellprob_threshold": CELLPROB,
        "min_size": SIZES,
        "iou": (0.5, 0.75),
        "segment": {**SEGMENT, "tile": tile},
    }
    return SweepSettings.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    """Swept in one tile per image, the folder of its flow fields, and patches evaluated."""
    work = tmp_path_factory.mktemp("swept")
    return run_sweep(find_images(images, None), work, settings()), work


def same(a, b):
    return [s.at(t) for s in a for t in s.settings.thresholds] == [
        s.at(t) for s in b for t in s.settings.thresholds
    ] and [(s.ari, s.n_truth, s.n_pred, s.dice) for s in a] == [
        (s.ari, s.n_truth, s.n_pred, s.dice) for s in b
    ]


@pytest.mark.parametrize(("flow", "cellprob"), [(0.2, -2.0), (0.4, 0.5), (0.0, 0.5)])
def test_row_is_the_score_of_a_run_with_these_thresholds(images, swept, tmp_path, flow, cellprob):
    run = SegmentSettings(**SEGMENT, flow_threshold=flow, cellprob_threshold=cellprob)
    for index, name in enumerate("ab"):
        found = segment(images / f"{name}_img.png", tmp_path / name, run)
        for size in SIZES:
            options = ScoreOptions(
                ScoreSettings(thresholds=(Fraction(1, 2), Fraction(3, 4)), min_size=size)
            )
            expected = score_files(found.labels, images / f"{name}_masks.png", options).images
            ours = swept[0].scores[Setting(flow, cellprob, size)][index]
            assert ours.n_pred > 0
            assert same([ours], expected)


def test_every_threshold_matters(swept):
    scores = swept[0].scores
    assert len(scores) == len(FLOW) * len(CELLPROB) * len(SIZES)
    counts = {setting: sum(s.n_pred for s in images) for setting, images in scores.items()}
    assert len({counts[Setting(flow, -2.0, 0)] for flow in FLOW}) == len(FLOW)
    assert counts[Setting(0.4, -2.0, 0)] != counts[Setting(0.4, 0.5, 0)]
    assert counts[Setting(0.4, 0.5, 0)] > counts[Setting(0.4, 0.5, 100)]
    truth = {size: scores[Setting(0.4, 0.5, size)][0].n_truth for size in SIZES}
    assert truth[0] > truth[100]  # on both sides


def test_network_runs_once_per_patch_whatever_is_tried(images, tmp_path, patches):
    files = find_images(images, None)
    first = run_sweep(files, tmp_path, settings())
    plans = [
        planner.build_plan(file.image, SegmentSettings(**SEGMENT)).network_patches for file in files
    ]
    assert first.evaluated == sum(patches) == sum(plans) > 1
    loads = predict.model_loads

    again = run_sweep(files, tmp_path, settings())
    assert (again.evaluated, predict.model_loads) == (0, loads)
    assert same(sum(again.scores.values(), ()), sum(first.scores.values(), ()))

    other = {"segment": {**SEGMENT, "min_size": 40, "max_size": 500, "tile": 64}}
    changed = run_sweep(files, tmp_path, settings(flow_threshold=(0.7,), **other))
    assert changed.evaluated == 0
    assert sum(patches) == first.evaluated
    assert [*changed.scores] == [Setting(0.7, c, s) for c in CELLPROB for s in SIZES]


def test_lost_flows_are_made_again(images, tmp_path, patches):
    files = find_images(images, None)
    first = run_sweep(files, tmp_path, settings(flow_threshold=(0.4,)))
    chunk = next(p for p in (tmp_path / "b").rglob("c/0/0/0"))
    chunk.write_bytes(chunk.read_bytes()[:-40])
    again = run_sweep(files, tmp_path, settings(flow_threshold=(0.4,)))
    assert 0 < again.evaluated < first.evaluated
    assert same(sum(again.scores.values(), ()), sum(first.scores.values(), ()))


def test_tiles_do_not_change_a_score(images, swept, tmp_path):
    tiled = run_sweep(find_images(images, None), swept[1], settings(tile=64))
    assert tiled.evaluated == 0
    for setting, scores in swept[0].scores.items():
        assert same(scores, tiled.scores[setting])


def test_far_travellers_get_the_halo_that_they_need(images, swept, monkeypatch):
    """With a first halo that is too small, tiles are traced again until it is not."""
    from densebatch.studies import sweep as sweep_module

    fields = sweep_module.store_flows
    travels = []
    trace = sweep_module.trace_tile

    def shorten(*args, **kwargs):
        return {
            path: sweep_module.replace(field, plan=sweep_module.replace(field.plan, travel_px=1))
            for path, field in fields(*args, **kwargs).items()
        }

    def watch(flows, window, core, shape, limits):
        travels.append(window.area)
        return trace(flows, window, core, shape, limits)

    monkeypatch.setattr(sweep_module, "store_flows", shorten)
    monkeypatch.setattr(sweep_module, "trace_tile", watch)
    files = find_images(images, None)
    tiled = run_sweep(files, swept[1], settings(tile=64, flow_threshold=(0.4,)))
    once = len(files) * len(CELLPROB) * len(Grid(*SHAPE, 64, 64))
    assert len(travels) > once
    assert max(travels) > min(travels)
    for setting, scores in tiled.scores.items():
        assert same(scores, swept[0].scores[setting])


def test_failed_patches_are_no_background(images, tmp_path, monkeypatch):
    def fail(backend, patches):
        raise MemoryError("no room")

    monkeypatch.setattr(predict, "evaluate_patches", fail)
    with pytest.raises(DensebatchError, match=r"a_img\.png: predict-0-0 failed \(MemoryError"):
        run_sweep(find_images(images, None), tmp_path, settings())


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "sweep.yaml"
    values = {
        "flow_threshold": [0.2, 0.4],
        "cellprob_threshold": [-2, 0.5],
        "min_size": [100],
        "segment": {**SEGMENT, "membrane": ["0"]},
    }
    path.write_text(json.dumps(values))
    return path


def test_command_writes_table_text_and_plot(images, swept, tmp_path, recipe, capsys):
    out = tmp_path / "out"
    code, told, _ = call_main(capsys, "sweep", images, "-o", out, "-c", recipe)
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == ["sweep.csv", "sweep.md", "sweep.svg", "work"]
    rows = read_rows(out)
    assert len(rows) == 4 * 3
    row = next(
        r
        for r in rows
        if (r["flow_threshold"], r["cellprob_threshold"], r["image"]) == ("0.2", "-2.0", "b")
    )
    expected = swept[0].scores[Setting(0.2, -2.0, 100)][1]
    found = expected.at("0.5")
    assert [int(row[k]) for k in ("tp", "fp", "fn")] == [found.tp, found.fp, found.fn]
    assert float(row["ap"]) == pytest.approx(found.ap, abs=1e-6)
    assert float(row["ari"]) == pytest.approx(expected.ari, abs=1e-6)
    means = {
        (r["flow_threshold"], r["cellprob_threshold"]): float(r["ap"])
        for r in rows
        if r["image"] == "mean"
    }
    assert f"best   mean AP {max(means.values()):.3f} at IoU 0.5" in told
    assert f"**{max(means.values()):.3f}**" in (out / "sweep.md").read_text()
    ElementTree.parse(out / "sweep.svg")

    code, told, _ = call_main(capsys, "sweep", images, "-o", out, "-c", recipe)
    assert code == 0
    assert "network evaluated on 0 patches" in told


def test_flows_of_other_settings_are_refused_until_told(images, tmp_path, capsys, recipe, patches):
    out = tmp_path / "out"
    assert call_main(capsys, "sweep", images, "-o", out, "-c", recipe)[0] == 0
    before = sum(patches)
    text = recipe.read_text()
    recipe.write_text(text.replace('"pixel_size": 0.5', '"pixel_size": 0.6'))
    told = refuse(capsys, images, "-o", out, "-c", recipe)
    assert told.startswith(f"error: {out / 'work' / 'a'}: holds another run: ")
    assert told.endswith("; choose another folder or give --restart\n")
    assert sum(patches) == before
    assert call_main(capsys, "sweep", images, "-o", out, "-c", recipe, "--restart")[0] == 0
    assert sum(patches) > before


def test_one_slide_with_its_truth(tmp_path, capsys, recipe):
    pixels, labels = simulate(3)
    slide = write_tiff(tmp_path / "s.ome.tif", pixels[np.newaxis], ["CD3"])
    np.save(tmp_path / "s_masks.npy", labels)
    out = tmp_path / "out"
    arguments = ["sweep", slide, "-o", out, "-c", recipe]
    code, _, told = call_main(capsys, *arguments)
    assert code == 2
    assert told == f"error: {slide}: one slide needs its label image; give it with --truth\n"
    assert not out.exists()
    code, _, _ = call_main(capsys, *arguments, "--truth", tmp_path / "s_masks.npy")
    assert code == 0
    rows = read_rows(out)
    assert {row["image"] for row in rows} == {"s", "mean"}


def test_labels_inside_an_ome_zarr_score_one_where_they_came_from(images, tmp_path, capsys, recipe):
    run = SegmentSettings(**SEGMENT, flow_threshold=0.2, cellprob_threshold=0.5, image="copy")
    segment(images / "a_img.png", tmp_path / "run", run)
    slide = tmp_path / "run" / "segmentation.ome.zarr"
    code, told, _ = call_main(capsys, "sweep", slide, "-o", tmp_path / "out", "-c", recipe)
    assert code == 0
    assert "best   mean AP 1.000 at IoU 0.5: flow 0.2, cell probability 0.5" in told


def test_notes_name_the_images_that_they_are_of(images, tmp_path, capsys, recipe):
    """An image that tells its pixel size beside one that does not."""
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    pixels = np.asarray(Image.open(folder / "b_img.png"))
    (folder / "b_img.png").unlink()
    write_tiff(folder / "b_img.ome.tif", pixels[np.newaxis], ["CD3"])
    recipe.write_text(
        "flow_threshold: [0.4]\ncellprob_threshold: [0]\nmin_size: [0]\nsegment: {workers: 0}\n"
    )
    out = tmp_path / "out"
    code, _, err = call_main(capsys, "sweep", folder, "-o", out, "-c", recipe)
    assert code == 0, err
    assert "'a_img.png': pixel size unknown: taken as 0.5 um/px" in err
    assert "- 'a_img.png': pixel size unknown: taken as" in (out / "sweep.md").read_text()
    recipe.write_text(recipe.read_text().replace("workers: 0", "workers: 0, pixel_size: 0.506"))
    code, _, err = call_main(capsys, "sweep", folder, "-o", tmp_path / "again", "-c", recipe)
    assert code == 0
    assert "'b_img.ome.tif': pixel size 0.506 um/px, as stated, is used" in err


def read_rows(out):
    return list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))


def refuse(capsys, *arguments):
    code, _, told = call_main(capsys, "sweep", *arguments)
    assert code == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told


def test_bad_input_is_one_sentence_and_leaves_nothing(images, tmp_path, capsys, recipe):
    out = tmp_path / "out"
    bad = tmp_path / "bad"
    bad.mkdir()
    assert "no annotated image" in refuse(capsys, bad, "-o", out)
    (bad / "x_masks.png").write_bytes((images / "a_masks.png").read_bytes())
    assert "no image of the name x" in refuse(capsys, bad, "-o", out)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(bad / "x_img.png")
    assert "labels of 110 x 200 px for an image of 5 x 7 px" in refuse(capsys, bad, "-o", out)
    np.save(bad / "x.npy", np.full((5, 7), 0.5))
    told = refuse(capsys, bad / "x_img.png", "--truth", bad / "x.npy", "-o", out)
    assert "holds the value 0.5; a label image has one whole number" in told
    assert "does not exist" in refuse(capsys, tmp_path / "none.png", "-o", out)
    assert not out.exists()
    told = refuse(capsys, images, "-o", bad, "-c", recipe)
    assert told.startswith(f"error: {bad}: holds 'x")
    assert "is a file" in refuse(capsys, images, "-o", bad / "x.npy", "-c", recipe)


@pytest.fixture
def masks(images, tmp_path):
    """The images with masks for truth: 0 and 1, and bool; and with labels of the masks' pieces."""
    folders = tmp_path / "masks", tmp_path / "pieces"
    for folder in folders:
        folder.mkdir()
        for name in "ab":
            pixels = (images / f"{name}_img.png").read_bytes()
            (folder / f"{name}_img.png").write_bytes(pixels)
            labels = np.asarray(Image.open(images / f"{name}_masks.png"))
            # Cells of tissue touch, and are parted here.
            inside = (labels > 0) & ~find_boundaries(labels, mode="inner")
            if folder == folders[1]:
                truth = ndimage.label(inside, np.ones((3, 3)))[0]
            else:
                truth = inside if name == "b" else inside.astype(np.uint8)
            np.save(folder / f"{name}_masks.npy", truth)
    return folders


def test_masks_as_truth_are_refused_before_the_network_runs(
    masks, tmp_path, capsys, recipe, patches
):
    out = tmp_path / "out"
    told = refuse(capsys, masks[0], "-o", out, "-c", recipe)
    assert "a_masks.npy looks like a yes/no mask: its only label 1 lies in" in told
    (masks[0] / "a_masks.npy").write_bytes((masks[1] / "a_masks.npy").read_bytes())
    told = refuse(capsys, masks[0], "-o", out, "-c", recipe)
    assert "b_masks.npy holds a yes/no mask (bool)" in told
    slide = masks[0] / "b_img.png"
    told = refuse(capsys, slide, "--truth", masks[0] / "b_masks.npy", "-o", out, "-c", recipe)
    assert "label its pieces first (--label-components, or another tool)" in told
    assert not patches
    assert not out.exists()


def test_pieces_of_masks_are_scored_as_their_labels_are(masks, tmp_path):
    few = {"flow_threshold": (0.4,), "cellprob_threshold": (0.5,), "tile": 64}
    expected = run_sweep(find_images(masks[1], None), tmp_path / "one", settings(**few))
    asked = settings(**few, label_components=True)
    files = find_images(masks[0], None, label_components=True)
    found = run_sweep(files, tmp_path / "two", asked)
    assert (expected.labelled, found.labelled) == ((), ("a", "b"))
    for setting, scores in expected.scores.items():
        assert same(scores, found.scores[setting])
        assert scores[0].n_truth > 10
    told = "Truth that was a yes/no mask, whose 8-connected pieces were taken for cells: a, b."
    assert told in format_markdown(found.scores, labelled=found.labelled)
    assert "pieces" not in format_markdown(expected.scores, labelled=expected.labelled)


def test_command_says_whose_truth_was_a_mask(masks, tmp_path, capsys, recipe):
    out = tmp_path / "out"
    (masks[0] / "a_masks.npy").write_bytes((masks[1] / "a_masks.npy").read_bytes())
    code, told, _ = call_main(
        capsys, "sweep", masks[0], "-o", out, "-c", recipe, "--label-components"
    )
    assert code == 0
    assert "8-connected pieces were taken for cells: b.\n" in told
    assert "8-connected pieces were taken for cells: b.\n" in (out / "sweep.md").read_text()


def test_reports_hold_every_combination(swept):
    scores = {s: images for s, images in swept[0].scores.items() if s.min_size == 0}
    means = {s: np.mean([image.at("0.5").ap for image in v]) for s, v in scores.items()}
    best = find_best(scores)
    assert best.ap == pytest.approx(max(means.values()))
    assert means[best.setting] == pytest.approx(best.ap)
    assert format_csv(scores).count("\n") == 1 + len(scores) * 3 * 2
    text = format_markdown(scores)
    assert text.count("\n| ") == 1 + len(scores)
    assert text.count("**") == 2 * 2
    root = ElementTree.fromstring(draw_sweep(scores))
    namespace = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{namespace}svg")) == 1
    assert len(list(root.iter(f"{namespace}polyline"))) == len(CELLPROB)
    assert len(list(root.iter(f"{namespace}circle"))) == len(scores)


def test_each_setting_is_logged(images, swept, caplog):
    few = settings(flow_threshold=(0.4,), cellprob_threshold=(0.5,))
    with caplog.at_level(logging.INFO, "densebatch.studies.sweep"):
        result = run_sweep(find_images(images, None), swept[1], few)
    told = [r.fields for r in caplog.records if r.event == "sweep setting scored"]
    assert told == [
        {
            "flow_threshold": 0.4,
            "cellprob_threshold": 0.5,
            "min_size": size,
            "mean_ap": round(np.mean([image.at("0.5").ap for image in scores]), 4),
        }
        for size, scores in zip(SIZES, result.scores.values(), strict=True)
    ]


def test_a_scene_is_that_of_slides_and_labels(tmp_path):
    for seed in (1, 2):
        pixels, labels = simulate(seed)
        tifffile.imwrite(tmp_path / "a_img.tif", pixels, append=True)
        tifffile.imwrite(tmp_path / "a_masks.tif", labels, append=True)
    with pytest.raises(DensebatchError, match=r"a_img\.tif holds 2 images and none was chosen"):
        find_images(tmp_path, None)
    (file,) = find_images(tmp_path, None, scene="1")
    assert file.name == "a"


def test_planes_of_stacks_are_chosen_as_for_segment(images, tmp_path, capsys):
    """By options, and by the settings of the file."""
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    for name in "ab":
        plane = np.asarray(Image.open(images / f"{name}_img.png"))
        stack = np.stack([plane // 2, plane])
        tifffile.imwrite(stacks / f"{name}_img.ome.tif", stack, metadata={"axes": "ZYX"})
        shutil.copy(images / f"{name}_masks.png", stacks)
    recipe = tmp_path / "recipe.yaml"
    text = (
        "flow_threshold: [0.4]\ncellprob_threshold: [0]\nmin_size: [0]\n"
        "segment: {model: dense-tiny, pixel_size: 0.5, workers: 0"
    )
    recipe.write_text(text + "}\n")
    code, _, err = call_main(capsys, "sweep", stacks, "-o", tmp_path / "out", "-c", recipe)
    assert code == 2
    assert "2 images along Z (focal planes)" in err
    assert "--z" in err
    tables = []
    for folder, z, options in ((images, "", ()), (stacks, "", ("--z", "1")), (stacks, "1", ())):
        recipe.write_text(text + (f", z: '{z}'}}\n" if z else "}\n"))
        out = tmp_path / f"out{len(tables)}"
        code, _, err = call_main(capsys, "sweep", folder, "-o", out, "-c", recipe, *options)
        assert code == 0, err
        tables.append((out / "sweep.csv").read_text())
    assert tables[0] == tables[1] == tables[2]
