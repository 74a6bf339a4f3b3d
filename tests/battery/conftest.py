"""Small data, and what commands made of them."""

import pytest
from command_line import COMPARE, TRAIN, run, write


@pytest.fixture(scope="module")
def data(standard_promotion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write(write(folder), "test")


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("compared")
    run("compare", *COMPARE.split(), "--data", "npz", "--data-dir", data, output=output)
    return output


@pytest.fixture(scope="module")
def checkpoint(compared):
    return compared / "checkpoints" / "sgd"


@pytest.fixture(scope="module")
def trained_run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    run("train", *TRAIN.split(), "--data", "npz", "--data-dir", data, output=output)
    return output
