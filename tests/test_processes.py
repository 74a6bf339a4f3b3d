"""`smoothout train` over a mesh, in one process and in several on the loopback."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.data import image_folder
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.trained_networks import load_checkpoint
from smoothout_jax.experiments.training.checkpoints import steps_of
from smoothout_jax.experiments.training.placement import Placement
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

OPTIONS = (
    "--network f1 --hidden-sizes 16 --train-size 90 --batch-size 40 --evaluate-every 2"
    " --checkpoint-minutes 0 --relative-radius 0.2"
)

MESH = "--mesh data=4,model=2"
SHORT = "--steps 6"

pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(output, options):
    cli.main(["train", *options.split(), "--output", str(output)])
    return output


def start(number, output, options, program=("-m", "smoothout_jax.experiments.cli")):
    """Starts so many processes, of eight devices between them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("count=8", f"count={8 // number}")
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, *program, "train"]
    own = f"--coordinator-address {address} --num-processes {number} --process-id"
    return [
        subprocess.Popen(
            [*command, *options.split(), *own.split(), f"{i}", "--output", str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(number)
    ]


def finish(processes):
    shown = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(shown), shown
    return shown


def losses(run):
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("step", "loss", "train loss", "test loss")
    return np.array([[float(row[name]) for name in names] for row in rows])


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run on the same mesh in one process."""
    output = tmp_path_factory.mktemp("single") / "run"
    return train(output, f"{OPTIONS} {SHORT} {MESH}")


@pytest.fixture(scope="module")
def double(tmp_path_factory):
    """The run in two processes, and what each of them printed."""
    output = tmp_path_factory.mktemp("double") / "run"
    return output, finish(start(2, output, f"{OPTIONS} {SHORT} {MESH}"))


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does(single, tmp_path):
    alone = train(tmp_path / "alone", f"{OPTIONS} {SHORT}")
    np.testing.assert_allclose(losses(single), losses(alone), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_train_as_one_and_write_once(single, double):
    output, (first, second) = double
    np.testing.assert_allclose(losses(output), losses(single), rtol=1e-5)
    assert "test accuracy" in first
    assert "test accuracy" not in second
    assert steps_of(output) == [4, 6]
    assert sorted(path.name for path in output.glob("[!.]*")) == [
        "checkpoints",
        "log.csv",
        "settings.json",
        "tensorboard",
    ]
    kept, expected = load_checkpoint(output), load_checkpoint(single)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        kept.params,
        expected.params,
    )


def rewound(output, to):
    """A copy of a run, without its last checkpoint."""
    shutil.copytree(output, to)
    shutil.rmtree(to / "checkpoints" / "6")
    return to


@pytest.mark.slow
def test_a_checkpoint_is_restored_on_another_number_of_processes(
    single, double, tmp_path
):
    from_two = rewound(double[0], tmp_path / "two")
    train(from_two, f"--resume {MESH}")
    np.testing.assert_allclose(losses(from_two), losses(single), rtol=1e-5)
    from_one = rewound(single, tmp_path / "one")
    finish(start(2, from_one, f"--resume {MESH}"))
    np.testing.assert_allclose(losses(from_one), losses(single), rtol=1e-5)


@pytest.mark.slow
def test_when_a_process_dies_the_others_end_and_the_run_goes_on(tmp_path):
    output = tmp_path / "run"
    options = f"{OPTIONS} --steps 60 {MESH}"
    processes = start(2, output, options)
    while len(steps_of(output)) < 2 and processes[0].poll() is None:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    died = time.monotonic()
    shown = processes[0].communicate(timeout=120)[0]
    assert time.monotonic() - died < 60
    assert processes[0].returncode not in (0, None), shown
    processes[1].communicate(timeout=60)
    assert steps_of(output)[-1] < 60
    train(output, f"--resume {MESH}")
    alone = train(tmp_path / "alone", f"{options} --evaluate-every 60")
    np.testing.assert_allclose(losses(output)[-1, 2:], losses(alone)[-1, 2:], rtol=1e-3)
    assert losses(output)[:, 0].tolist() == list(range(2, 62, 2))


STREAMED = """
from smoothout_jax.experiments.data import image_folder
image_folder.SMALL = 0
from smoothout_jax.experiments.cli import run_process
run_process()
"""


@pytest.mark.slow
def test_each_process_reads_its_part_of_a_batch(tmp_path, monkeypatch):
    """Of files that are read while it trains: as one process without a mesh does."""
    draw = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    options = (
        f"--data {tmp_path}/photos --image-size 8 --hidden-sizes 8 --batch-size 16"
        " --steps 6 --evaluate-every 2 --crop-area 0.4 --method sgd"
    )
    monkeypatch.setattr(image_folder, "SMALL", 0)
    alone = losses(train(tmp_path / "alone", options))
    meshed = train(tmp_path / "mesh", f"{options} {MESH}")
    np.testing.assert_allclose(losses(meshed), alone, rtol=1e-4)
    finish(start(2, tmp_path / "two", f"{options} {MESH}", ["-c", STREAMED]))
    np.testing.assert_allclose(losses(tmp_path / "two"), alone, rtol=1e-4)


def test_parameters_and_examples_are_laid_over_the_mesh():
    settings = TrainSettings(
        network="f1", hidden_sizes=(16,), train_size=90, batch_size=40
    )
    task = Task(settings, Placement("data=4,model=2"))
    images, labels = task.arrays["train"]
    assert images.shape == (92, 8, 8, 1)
    assert images.addressable_shards[0].data.shape == (23, 8, 8, 1)
    assert labels.sharding.spec == jax.P("data")
    trainer = Trainer(METHODS["smoothout"], task, (0,))
    for _ in range(2):
        (state,) = trainer._states
        kernels = [
            tree["params"]["Dense_0"]["kernel"]
            for tree in (state.params, state.opt_state.smoothout_noise)
        ]
        for kernel in kernels:
            assert kernel.sharding.spec == jax.P(None, "model")
        assert state.params["params"]["Dense_1"]["bias"].sharding.spec == jax.P()
        trainer.advance(0, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mesh data=3", "mesh data=3 needs 3 devices, but there are 8"),
        ("--mesh data=4,pipe=2", "mesh must give sizes of at least 1 to the axes"),
        ("--mesh data=4,data=2", "mesh must give sizes of at least 1"),
        (
            "--mesh data=8 --batch-size 20",
            "batch_size=20 does not divide over the 8 devices of the mesh's axis data",
        ),
        (
            "--mesh data=8 --batch-size 40 --method adasmoothout-split",
            "batch_size=40 in 4 parts does not divide over the 8 devices",
        ),
        ("--distributed", "distributed needs mesh"),
        ("--process-id 1", "give all of coordinator_address, num_processes, process_"),
        (
            "--coordinator-address a:1 --num-processes 2 --process-id 2 --mesh data=8",
            "process_id must be in 0 to 1, got 2",
        ),
    ],
)
def test_meshes_that_do_not_suit_are_told(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path, options)
    assert message in " ".join(capsys.readouterr().err.split())
