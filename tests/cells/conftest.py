"""Label images that several modules look at."""

import pytest

from tests.helpers.label_files import VERSIONS, make_spec, write_all


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """One finished output of each version, with and without an image."""
    result = {}
    for version in VERSIONS:
        for image in (True, False):
            root = tmp_path_factory.mktemp("out") / "segmentation.ome.zarr"
            spec = make_spec(root, version, image=image)
            result[version, image] = (spec, *write_all(spec))
    return result
