"""Settings of a sweep are strict."""

import pytest

from densebatch.base.errors import InputError
from densebatch.planning.settings import SegmentSettings
from densebatch.studies.sweep_settings import SweepSettings, load_sweep


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flow_threshold: 0.4", "setting 'flow_threshold' = 0.4: input should be a valid list"),
        ("flow_threshold: []", "setting 'flow_threshold' = []: list should have at least 1 item"),
        ("flow_threshold: [-1]", "setting 'flow_threshold.0' = -1: input should be greater than"),
        ("min_size: [1, 1]", "setting 'min_size' = [1, 1]: names a value twice"),
        ("iou: [1.5]", "setting 'iou.0' = 1.5: input should be less than or equal to 1"),
        ("cellprob: [0]", "setting 'cellprob' = [0]: extra inputs are not permitted; accepted set"),
        ("segment: {min_size: -1}", "setting 'segment.min_size' = -1: input should be greater"),
        (
            "segment: {flow_threshold: 0.4}",
            "setting 'segment' = {'flow_threshold': 0.4}: flow_threshold has no effect here; it is "
            "accepted beside segment",
        ),
        (
            "segment: {ngff: 0.4}",
            "setting 'segment' = {'ngff': 0.4}: ngff has no effect here",
        ),
        (
            "segment: {nuclei: b, compartments: true}",
            "setting 'segment' = {'nuclei': 'b', 'compartments': True}: compartments and expand "
            "have no effect here; thresholds are tried on the flows of one run",
        ),
        (
            "segment: {roi: a.json}",
            "setting 'segment' = {'roi': 'a.json'}: roi has no effect here",
        ),
        (
            "segment: {tlie: 4}",
            "setting 'segment.tlie' = 4: extra inputs are not permitted; accepted settings: "
            "membrane, nuclei",
        ),
    ],
)
def test_settings_are_strict(tmp_path, text, told):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_sweep(path)
    assert str(caught.value).startswith(f"{path}: {told}")


def test_defaults_are_what_the_paper_varied():
    assert load_sweep(None) == SweepSettings()
    assert SweepSettings().segment.min_size == SegmentSettings().min_size == 15


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("label_components: true")
    assert load_sweep(path).label_components is True
    assert load_sweep(path, label_components=None).label_components is True
    assert load_sweep(path, label_components=False).label_components is False
