"""Small data, and what commands made of them."""

import jax
import pytest
from command_line import COMPARE, TRAIN, run, write


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write(write(folder), "test")


def made(tmp_path_factory, data, command, options):
    output = tmp_path_factory.mktemp(command)
    with jax.numpy_dtype_promotion("standard"):
        own = "--data", "npz", "--data-dir", data
        run(command, *options.split(), *own, output=output)
    return output


@pytest.fixture(scope="session")
def compared(data, tmp_path_factory):
    return made(tmp_path_factory, data, "compare", COMPARE)


@pytest.fixture(scope="session")
def checkpoint(compared):
    return compared / "checkpoints" / "sgd"


@pytest.fixture(scope="session")
def trained_run(data, tmp_path_factory):
    return made(tmp_path_factory, data, "train", TRAIN)
