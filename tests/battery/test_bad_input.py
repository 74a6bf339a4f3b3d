"""What a person can give the commands: each ends in one line, and writes nothing."""

import contextlib

import jax
import numpy as np
import pytest
from command_line import (
    COMPARE,
    QUICK,
    TRAIN,
    checked,
    commands_on,
    refused,
    run,
    write,
)

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands import COMMANDS
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")


SHAPE = (24, 4, 4, 1)
GREY = np.random.default_rng(1).uniform(0, 1, SHAPE)
NAN = GREY.copy()
NAN[3, 1, 2] = np.nan
INFINITE = np.where(np.isnan(NAN), np.inf, NAN)
LABELS = np.arange(24) % 3
DATA = {
    "nan": ({"images": NAN}, "values that are not finite in float32"),
    "inf": ({"images": INFINITE}, "values that are not finite in float32"),
    "0-d": ({"images": np.float32(1)}, "images must have shape (images, …, channels)"),
    "1-d": ({"images": np.zeros(24)}, "images must have shape (images, …, channels)"),
    "no channels": ({"images": GREY[..., 0]}, "have no axis of channels"),
    "channels first": (
        {"images": np.random.default_rng(1).uniform(0, 1, (24, 3, 8, 8))},
        "have their channels first",
    ),
    "no pixels": ({"images": np.zeros((24, 0, 4, 1))}, "have no pixels"),
    "zero channels": ({"images": np.zeros((24, 4, 4, 0))}, "have no pixels"),
    "constant": ({"images": np.ones(SHAPE)}, "images that are all alike"),
    "negative": ({"labels": LABELS - 1}, "has a label -1"),
    "huge": ({"labels": LABELS * 500_000}, "has a label 1000000, but only 24"),
    "wrapping": ({"labels": LABELS.astype(np.int64) * (2**31 + 5)}, "has a label 4294"),
    "from one": ({"labels": LABELS + 1}, "has no training image of class 0"),
    "with a gap": ({"labels": LABELS * 2}, "has no training image of class 1"),
    "one class": ({"labels": LABELS * 0}, "training images of one class only"),
    "too few labels": ({"labels": LABELS[:5]}, "has 24 images, but 5 labels"),
    "floating labels": ({"labels": LABELS / 1}, "labels must be integers in one row"),
    "integers": ({"images": np.ones(SHAPE, int)}, "must be uint8 or floating"),
    "other shape": ({"images": np.zeros((24, 5, 5, 1))}, "have shape (5, 5, 1), those"),
    "bytes": ({"images": (255 * GREY).astype(np.uint8)}, "scale them alike"),
    "signed": ({"images": 40 * GREY - 39}, "scale them alike"),
}


@pytest.mark.parametrize("kind", DATA)
def test_bad_images_and_labels_are_told(kind, checkpoint, tmp_path, capsys):
    changed, message = DATA[kind]
    folder = write(write(tmp_path / "data", **changed), "test")
    for command in commands_on(checkpoint, folder).values():
        assert message in refused(capsys, *command, output=tmp_path / "output")


@pytest.mark.parametrize("kind", ["nan", "inf", "0-d", "no channels", "negative"])
def test_bad_test_images_are_told(kind, checkpoint, tmp_path, capsys):
    changed, message = DATA[kind]
    folder = write(write(tmp_path / "data"), "test", **changed)
    for command in commands_on(checkpoint, folder).values():
        assert message in refused(capsys, *command, output=tmp_path / "output")


def idx(array):
    sizes = np.array(array.shape, ">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


def test_idx_test_images_of_another_size_are_told(tmp_path, capsys):
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    for part, side in (("train", 4), ("t10k", 5)):
        images = np.random.default_rng(0).integers(0, 256, (30, side, side), np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = (np.arange(30) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    own = ["--data", "fashion-mnist", "--data-dir", folder.parent]
    names = [case.name for case in EXPERIMENTS["batches"]["cpu"]]
    cases = ["--cases", *(name for name in names if "fashion-mnist" in name)]
    for command in (
        ["train", *TRAIN.split(), *own],
        ["compare", *COMPARE.split(), *own],
        ["evidence", "batches", *cases, "--data-dir", folder.parent],
    ):
        line = refused(capsys, *command, output=tmp_path / "output")
        assert "of train have shape (4, 4, 1), those of t10k (5, 5, 1)" in line


SIZES = {
    "cnet": {"width": 2},
    "resnet": {"depth": 8, "width": 2},
    "wide-resnet": {"depth": 10, "width": 2},
    "vit": {"depth": 1, "width": 6},
    "f1": {"hidden_sizes": (4,)},
}


@pytest.mark.parametrize("network", SIZES)
def test_networks_take_images_or_tell(network, tmp_path):
    """Images of any number of dimensions, however small."""
    for number, shape in enumerate([(3,), (40, 1), (2, 2, 2, 1), (4, 4, 1), (1, 1, 1)]):
        images = np.random.default_rng(0).uniform(0, 1, (24, *shape))
        folder = write(tmp_path / str(number), images=images)
        settings = TrainSettings(
            data="npz",
            data_dir=write(folder, "test", images=images),
            network=network,
            batch_size=8,
            **SIZES[network],
        )
        with contextlib.suppress(InputError):
            jax.eval_shape(Task(settings).init, jax.random.key(0))


SETTINGS = {
    "--momentum 1.5": "momentum must be in [0, 1), got 1.5",
    "--learning-rate 0": "learning_rate must be finite and above 0, got 0.0",
    "--learning-rate nan": "learning_rate must be finite and above 0, got nan",
    "--shift 100": "shift=100 moves images of shape (8, 8, 1) out of sight",
    "--steps 99999999999": "steps must be below 2³¹, got 99999999999",
    "--learning-rate -1e-3": "learning_rate must be finite and above 0, got -0.001",
    "--steps -1e3": "argument --steps: invalid int value: '-1e3'",
    "--steps many": "argument --steps: invalid int value: 'many'",
    "--batch-size 8.5": "argument --batch-size: invalid int value",
    "--network lenet": "argument --network: invalid choice: 'lenet'",
    "--steps": "argument --steps: expected one argument",
    "--no-such-option": "unrecognized arguments: --no-such-option",
    "--data-dir=": "argument --data-dir: a path must not be empty",
    "--settings missing.json": "settings missing.json: No such file",
    "--data mnist --data-dir none": "none/mnist/train-images-idx3-ubyte does not exist",
}


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_bad_settings_are_told(command, options, tmp_path, capsys):
    line = refused(capsys, command, *options.split(), output=tmp_path / "output")
    assert SETTINGS[options] in line


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("sharpness", "--measures nonsense", "measures must be one of"),
        ("sharpness", "--probes 0", "probes must be at least 1, got 0"),
        ("sharpness", "--noise-radius 1e30", "the measure expected is"),
        ("landscape", "--exclude .*", "exclude .* leaves no parameter to move"),
        ("landscape", "--exclude bias --directions eigenvectors", "exclude applies to"),
        ("landscape", "--kind nonsense", "argument --kind: invalid choice: 'nonsense'"),
        ("landscape", "--points 1", "points must be at least 2, got 1"),
        ("landscape", "--range -1e30 -2E+31", "range must increase, got -1e+30 -2e+31"),
        ("landscape", "--range -inf -1e-3", "range must increase, got -inf -0.001"),
        ("landscape", "--range -.5e1 -nonsense", "unrecognized arguments: -nonsense"),
        ("landscape", "--direction-seed -1", "direction_seed must be at least 0"),
        ("sharpness", "--noise-radius -1e-3", "noise_radius must be"),
        ("landscape", "--direction-seed 99999999999", "direction_seed must be in"),
        ("landscape", "--seed 7", "holds the networks of seeds 0 to 1"),
        ("evidence", "--form nonsense", "argument --form: invalid choice: 'nonsense'"),
        ("evidence", "--cases nonsense", "cases must be one of"),
    ],
)
def test_bad_settings_of_measures_are_told(
    command, options, message, checkpoint, data, tmp_path, capsys
):
    given = {
        "sharpness": [checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": [checkpoint, "--data-dir", data],
        "evidence": ["batches"],
    }[command]
    words = [command, *given, *options.split()]
    assert message in refused(capsys, *words, output=tmp_path / "output")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_is_told(command, checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    first = {"evidence": ["batches"], "train": [], "compare": []}
    words = [command, *first.get(command, [checkpoint])]
    for output, message in (
        ("", "argument --output: a path must not be empty"),
        (tmp_path / "file", f"cannot write to {tmp_path}/file: "),
        (tmp_path / "file" / "inside", f"cannot write to {tmp_path}/file/inside: "),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(*words, output=output)
        assert message in checked(capsys.readouterr().err, ended.value.code)


def test_words_that_are_no_command_are_told(capsys):
    for words in ([], ["nonsense"], ["nonsense", "train"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert "--help" in checked(capsys.readouterr().err, ended.value.code)
