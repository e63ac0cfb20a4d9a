"""Slides that several modules look at."""

import pytest

from tests.helpers.slide_formats import SLIDES


@pytest.fixture(scope="session")
def slides(tmp_path_factory):
    """Path and (planes, height, width) of one slide per way of storing it."""
    written = {}
    for name, (write, to_planes) in SLIDES.items():
        path, pixels = write(tmp_path_factory.mktemp("slide"))
        written[name] = path, to_planes(pixels)
    return written
