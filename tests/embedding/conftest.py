"""A small model, a folder of sounds and a folder to write, for the tests of `embed_dataset`."""

import pytest
from embed_runs import make_model, write_sounds


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def sounds(tmp_path):
    return write_sounds(tmp_path / "sounds")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"
