"""Annotated images that several test files train on."""

from __future__ import annotations

import pytest

from densebatch.training.annotated import load_annotated
from tests.helpers.small_training import SMALL, write_annotated


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_annotated(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def images(folder):
    return load_annotated(folder, SMALL)[0]
