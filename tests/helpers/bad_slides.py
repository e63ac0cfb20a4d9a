"""How a slide that cannot be used is refused."""

from __future__ import annotations

import pytest

from densebatch.base.errors import InputError
from densebatch.slides.slide import open_slide
from tests.helpers.slide_files import random_pixels

CYX = random_pixels((3, 64, 96))
GREY = random_pixels((64, 96), "uint8")


def refused(path, match):
    """The message, after the checks that hold for all of them."""
    with pytest.raises(InputError, match=match) as error:
        open_slide(path)
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    assert not message.endswith(".")
    return message
