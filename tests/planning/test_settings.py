import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from densebatch.base.errors import InputError
from densebatch.planning.settings import SegmentSettings, load_settings

OF_SEGMENTERS = ("segmenter", "segmenter_options", "overlap")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.yaml"


def refusal(path, text, **overrides):
    """The sentence with which a file is refused."""
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_settings(path, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_no_file_and_no_options_are_the_defaults():
    assert load_settings(None) == SegmentSettings()
    assert load_settings(None, tile=None, membrane=None) == SegmentSettings()


def test_file_sets_every_setting(path):
    path.write_text(
        """
        membrane: [CD3, 4]
        nuclei: 0
        scene: 1
        axes: CYX
        roi: areas.geojson
        exclude: folds.zip
        tissue: auto
        z: max
        t: 2
        panel: panel.csv
        model: models/cyto3
        pixel_size: 0.25
        diameter: 15
        flow_threshold: 0
        cellprob_threshold: -1.5
        min_size: 20
        max_size: 4000
        skip_background: no
        mask_debris: no
        compartments: yes
        nuclei_model: watershed
        nuclei_diameter: 12
        expand: 2.5
        membrane_width: 0.75
        ngff: 0.4
        image: none
        in_place: true
        channels: CD3
        quantiles: [0.9, 0.025]
        neighbour_radius: 20
        fraction: CD3=400
        positive: [CD3:fraction=0.5, CD8=otsu]
        phenotype: T=CD3+
        tile: 512
        workers: 0
        scheduler_address: tcp://10.0.0.1:8786
        scheduler_file: scheduler.json
        device: cpu
        backend: openvino
        keep_flows: yes
        patience: 5m
        tls_ca_file: ca.pem
        tls_cert: cert.pem
        tls_key: key.pem
        """
    )
    loaded = load_settings(path)
    assert loaded == SegmentSettings(
        membrane=("CD3", "4"),
        nuclei="0",
        scene="1",
        axes="CYX",
        roi=Path("areas.geojson"),
        exclude=Path("folds.zip"),
        tissue="auto",
        z="max",
        t="2",
        panel="panel.csv",
        model="models/cyto3",
        pixel_size=0.25,
        diameter=15.0,
        flow_threshold=0.0,
        cellprob_threshold=-1.5,
        min_size=20,
        max_size=4000,
        skip_background=False,
        mask_debris=False,
        compartments=True,
        nuclei_model="watershed",
        nuclei_diameter=12.0,
        expand=2.5,
        membrane_width=0.75,
        ngff="0.4",
        image="none",
        in_place=True,
        channels=("CD3",),
        quantiles=(0.9, 0.025),
        neighbour_radius=20.0,
        fraction=("CD3=400",),
        positive=("CD3:fraction=0.5", "CD8=otsu"),
        phenotype=("T=CD3+",),
        tile=512,
        workers=0,
        scheduler_address="tcp://10.0.0.1:8786",
        scheduler_file=Path("scheduler.json"),
        device="cpu",
        backend="openvino",
        keep_flows=True,
        patience=300,
        tls_ca_file=Path("ca.pem"),
        tls_cert=Path("cert.pem"),
        tls_key=Path("key.pem"),
    )
    # nothing was left at its default, so nothing was left out above
    told, defaults = loaded.model_dump(), SegmentSettings().model_dump()
    assert {name for name in told if told[name] == defaults[name]} == {
        *OF_SEGMENTERS,
        "diameter_um",
        "normalise",
    }
    path.write_text("normalise: together")
    assert load_settings(path).normalise == "together"
    path.write_text("diameter_um: 8")
    assert load_settings(path) == SegmentSettings(diameter_um=8.0)


def test_file_sets_a_segmenter(path):
    path.write_text("{segmenter: watershed, segmenter_options: {threshold: 0.3}, overlap: 40}")
    loaded = load_settings(path)
    assert loaded == SegmentSettings(
        segmenter="watershed", segmenter_options={"threshold": 0.3}, overlap=40
    )
    assert SegmentSettings(**loaded.model_dump()) == loaded  # as a report has it
    told, defaults = loaded.model_dump(), SegmentSettings().model_dump()
    assert {name for name in told if told[name] != defaults[name]} == set(OF_SEGMENTERS)


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "null", "{}"])
def test_empty_file_is_the_defaults(path, text):
    path.write_text(text)
    assert load_settings(path) == SegmentSettings()


def test_options_override_the_file(path):
    path.write_text("{tile: 512, min_size: 30, membrane: [CD3]}")
    loaded = load_settings(path, tile=256, membrane=("CD8",), min_size=None)
    assert (loaded.tile, loaded.min_size, loaded.membrane) == (256, 30, ("CD8",))


def test_option_overrides_a_bad_value_of_the_file(path):
    path.write_text("tile: nonsense")
    assert load_settings(path, tile=256).tile == 256


def test_unknown_key_is_refused_with_those_that_there_are(path):
    assert refusal(path, "tlie: 512") == (
        f"{path}: setting 'tlie' = 512: extra inputs are not permitted; accepted settings: "
        + ", ".join(SegmentSettings.model_fields)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tile: big", "setting 'tile' = 'big': input should be a valid integer"),
        ("tile: 512.5", "setting 'tile' = 512.5: input should be a valid integer"),
        ("tile: [512]", "setting 'tile' = [512]: input should be a valid integer"),
        ("tile: yes", "setting 'tile' = True: a number is accepted, not a truth value"),
        ("workers: on", "setting 'workers' = True: a number is accepted"),
        ("flow_threshold: off", "setting 'flow_threshold' = False: a number is accepted"),
        ("tile: null", "setting 'tile' = None: input should be a valid integer"),
        ("membrane: {a: 1}", "setting 'membrane' = {'a': 1}: input should be a valid list"),
        ("membrane: [[CD3]]", "setting 'membrane.0' = ['CD3']: input should be a valid string"),
        ("membrane: [yes]", "setting 'membrane.0' = True: input should be a valid string"),
        ("model: {a: 1}", "setting 'model' = {'a': 1}: input should be a valid string"),
        ("in_place: maybe", "setting 'in_place' = 'maybe': input should be a valid boolean"),
        ("2: 3", "setting '2' = 2: keys should be strings; accepted settings: membrane"),
    ],
)
def test_wrong_type_is_refused(path, text, told):
    assert refusal(path, text).startswith(f"{path}: {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tile: 63", "setting 'tile' = 63: input should be greater than or equal to 64"),
        ("workers: -1", "setting 'workers' = -1: input should be greater than or equal to 0"),
        ("min_size: -1", "setting 'min_size' = -1: input should be greater than or equal to 0"),
        ("max_size: 0", "setting 'max_size' = 0: input should be greater than 0"),
        ("pixel_size: 0", "setting 'pixel_size' = 0: input should be greater than 0"),
        ("diameter: -15", "setting 'diameter' = -15: input should be greater than 0"),
        ("flow_threshold: -0.1", "setting 'flow_threshold' = -0.1: input should be greater than"),
        ("pixel_size: .inf", "setting 'pixel_size' = inf: input should be a finite number"),
        ("diameter: big", "setting 'diameter' = 'big': accepted are a diameter in px, and auto"),
        ("diameter: yes", "setting 'diameter' = True: a number is accepted, not a truth value"),
        ("diameter: [3]", "setting 'diameter' = [3]: accepted are a diameter in px, and auto"),
        ("diameter_um: 0", "setting 'diameter_um' = 0: input should be greater than 0"),
        (
            "{diameter: auto, diameter_um: 8}",
            "diameter auto and diameter_um 8 both set the scale; accepted is one of them",
        ),
        ("diameter: .nan", "setting 'diameter' = nan: input should be a finite number"),
        ("flow_threshold: .inf", "setting 'flow_threshold' = inf: input should be a finite"),
        ("cellprob_threshold: .nan", "setting 'cellprob_threshold' = nan: input should be a"),
        ("ngff: 0.6", "setting 'ngff' = '0.6': input should be '0.4' or '0.5'"),
        ("ngff: [0.5]", "setting 'ngff' = [0.5]: input should be '0.4' or '0.5'"),
        ("image: copied", "setting 'image' = 'copied': input should be 'auto', 'copy' or 'none'"),
        ("device: gpu", "setting 'device' = 'gpu': input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_value_out_of_range_is_refused(path, text, told):
    assert refusal(path, text).startswith(f"{path}: {told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- tile", "holds a list; accepted is a mapping"),
        ("[]", "holds a list; accepted is a mapping"),
        ("tile", "holds a str; accepted is a mapping"),
        ("0", "holds a int; accepted is a mapping"),
        ("tile: [", "not a readable YAML file (while parsing a flow node"),
        ("tile: 1\n tile: 2", "not a readable YAML file (mapping values are not allowed here"),
        (b"\x89PNG\r\n\x1a\n", "not a readable YAML file ("),
        (b"tile: \xff", "not a readable YAML file ('utf-8' codec can't decode"),
        (
            "a: !!python/object/apply:os.system [ls]",
            "not a readable YAML file (could not determine a constructor for the tag",
        ),
    ],
)
def test_file_that_holds_no_settings_is_refused(path, text, told):
    assert refusal(path, text).startswith(f"{path}: {told}")


def test_file_that_cannot_be_read_is_refused(tmp_path):
    for path, reason in [
        (tmp_path / "no.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ]:
        with pytest.raises(InputError) as caught:
            load_settings(path)
        assert str(caught.value) == f"{path}: not a readable YAML file ({reason})"


def test_bad_option_does_not_blame_the_file(path):
    found = refusal(path, "tile: 512", min_size=-3)
    assert found == "setting 'min_size' = -3: input should be greater than or equal to 0"
    with pytest.raises(InputError, match=r"^setting 'tile' = 3: input should be"):
        load_settings(None, tile=3)


def test_long_value_is_cut(path):
    found = refusal(path, "image: " + "x" * 5000)
    assert found.startswith(f"{path}: setting 'image' = 'xxx")
    assert "xx...: input should be 'auto'" in found


@pytest.mark.parametrize(
    ("text", "expected"), [("15", 15.0), ("'15.5'", 15.5), ("auto", "auto"), ("null", None)]
)
def test_a_diameter_is_a_number_or_auto(path, text, expected):
    path.write_text(f"diameter: {text}")
    assert load_settings(path).diameter == expected
    schema = SegmentSettings.model_json_schema()
    jsonschema.Draft202012Validator(schema).validate({"diameter": expected})


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        SegmentSettings().tile = 256


def test_schema_accepts_the_defaults_and_describes_each_setting():
    schema = SegmentSettings.model_json_schema()
    json.dumps(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == list(SegmentSettings.model_fields)
    assert all(entry["description"] for entry in schema["properties"].values())
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check({})
    assert check(SegmentSettings(membrane=("a",), tile=512).model_dump(mode="json"))
    assert not check({"tlie": 512})
    assert not check({"tile": 63})
    assert not check({"tile": "big"})
    assert not check({"ngff": "0.6"})
    for name in ("pixel_size", "diameter", "max_size"):
        assert not check({name: 0})
    for name in ("workers", "min_size", "flow_threshold"):
        assert check({name: 0})
        assert not check({name: -1})


def test_one_channel_needs_no_list(path):
    path.write_text("membrane: CD3")
    assert load_settings(path).membrane == ("CD3",)
    assert load_settings(None, membrane=0).membrane == ("0",)
    assert load_settings(None, membrane="CD8").membrane == ("CD8",)
