"""Settings that commands refuse: in one line, before they write anything."""

import re

import jax
import numpy as np
import pytest
from command_line import QUICK, checked, refused, run, write

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands import COMMANDS
from smoothout_jax.experiments.commands.compare import CompareSettings
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.models import MODELS
from smoothout_jax.experiments.options import InputError, read_settings
from smoothout_jax.experiments.training.task import Task

pytestmark = pytest.mark.usefixtures("standard_promotion")

GAP = "--loss-rise gap"
TRAINING = {
    # What the command line accepts.
    "--steps": "argument --steps: expected one argument",
    "--steps -1e3": "argument --steps: invalid int value: '-1e3'",
    "--steps many": "argument --steps: invalid int value: 'many'",
    "--network lenet": "argument --network: invalid choice: 'lenet'",
    "--no-such-option": "unrecognized arguments: --no-such-option",
    "--data-dir=": "argument --data-dir: a path must not be empty",
    "--loss-rise gaps": "argument --loss-rise: must be float or gap, got 'gaps'",
    "--settings missing.json": "settings missing.json: No such file",
    # The regime.
    "--steps 0": "steps must be at least 1, got 0",
    "--steps 99999999999": "steps must be below 2³¹, got 99999999999",
    "--steps 5 --epochs 1": "steps=5 and epochs=1.0 exclude each other",
    "--epochs nan": "epochs must be finite and above 0, got nan",
    "--milestones 0.5 1": "milestones must be in [0, 1), got 1.0",
    "--momentum 1.5": "momentum must be in [0, 1), got 1.5",
    "--learning-rate 0": "learning_rate must be finite and above 0, got 0.0",
    "--learning-rate -1e-3": "learning_rate must be finite and above 0, got -0.001",
    "--learning-rate nan": "learning_rate must be finite and above 0, got nan",
    "--label-smoothing 1": "label_smoothing must be in [0, 1), got 1.0",
    "--ema-decay 1": "ema_decay must be in [0, 1), got 1.0",
    "--shift -1": "shift must be at least 0, got -1",
    "--shift 100": "shift=100 moves images of shape (8, 8, 1) out of sight",
    # The data.
    "--batch-size 501": "batch_size=501 is larger than train_size=500",
    "--train-size 1797": "train_size=1797 is more than the 1787 images that digits",
    "--train-size 9 --batch-size 5": "train_size must be at least 10",
    "--validation-size 495": "validation_size=495 must leave at least 10",
    "--watch-size -1": "watch_size must be at least 0, got -1",
    "--watch-size 5": "watch_size=5 must leave at least 10 of 500 training",
    "--validation-size 200 --watch-size 250": "batch_size=100 is larger than"
    " train_size=500 less validation_size=200 less watch_size=250",
    "--label-noise 1": "label_noise must be in [0, 1), got 1.0",
    "--label-noise -0.1": "label_noise must be in [0, 1), got -0.1",
    "--label-noise nan": "label_noise must be in [0, 1), got nan",
    "--data mnist --data-dir none": "none/mnist/train-images-idx3-ubyte does not exist",
    # The network.
    "--depth 20": "depth does not apply to mlp: give hidden_sizes",
    "--network cnet --hidden-sizes 5": "hidden_sizes does not apply to cnet",
    "--hidden-sizes 10 0": "hidden_sizes must be at least 1",
    "--dropout 1": "dropout must be in [0, 1), got 1.0",
    "--network resnet --dropout 0.1": "dropout does not apply to resnet",
    "--network resnet --depth 9": "depth must be 6n + 2",
    "--network vit --width 10": "width must be a multiple of 3",
    "--network resnet --data mnist1d": "resnet needs images of 2 dimensions",
    "--data mnist1d --flip": "shift and flip need images of 2",
    # The noise, and the images that it is held by.
    "--radius -0.1": "radius must be finite and at least 0, got -0.1",
    "--loss-rise -1": "loss_rise must be finite and at least 0, got -1",
    "--gap-share 0.3": "gap_share=0.3 needs loss_rise=gap",
    f"{GAP} --gap-share -1": "gap_share must be finite and at least 0",
    f"{GAP} --rise-epochs 3": "rise_epochs=3.0 does not apply to loss_rise=gap",
    f"{GAP} --radius-schedule tanh": "radius_schedule=tanh does not apply to loss_rise",
    "--heldout-size 20": "heldout_size=20 needs loss_rise=gap",
    f"{GAP} --heldout-size 20 --watch-size 30": "heldout_size=20 and watch_size=30 ex",
    f"{GAP} --heldout-size 0": "heldout_size must be at least 10 with loss_rise=gap",
    f"{GAP} --heldout-size 5": "heldout_size=5 must leave at least 10 of 500 training",
    f"{GAP} --heldout-size 50 --batch-size 451": "batch_size=451 is larger than"
    " train_size=500 less heldout_size=50",
}
OTHERS = {
    "compare --methods sgd adam": "methods must be one of 'sgd', 'smoothout', 'adas",
    "compare --methods smoothout-split --copies 3": "batch_size=100 does not divide"
    " into the 3 parts",
    "compare --seeds 1": "seeds must be at least 2",
    "compare --noise-samples 0": "noise_samples must be at least 1",
    "compare --momentum 1.5": "momentum must be in [0, 1), got 1.5",
    "compare --settings missing.json": "settings missing.json: No such file",
    "compare --data mnist --data-dir none": "train-images-idx3-ubyte does not exist",
    "evidence batches --form nonsense": "argument --form: invalid choice: 'nonsense'",
    "evidence rivals --form smoke": "form must be one of 'cpu'; got 'smoke'",
    "evidence batches --cases mlp": "cases must be one of 'digits, 500 images, mlp, ba",
    "nonsense train": "--help",
}
MEASURES = {
    "sharpness --measures flatness": "measures must be one of",
    "sharpness --probes 0": "probes must be at least 1, got 0",
    "sharpness --rho 0": "rho must be finite and above 0, got 0.0",
    "sharpness --noise-radius -1e-3": "noise_radius must be finite and above 0",
    "sharpness --noise-radius nan": "noise_radius must be finite and above 0",
    "sharpness --noise-radius 1e30": "the measure expected is",
    "sharpness --epsilon -1": "epsilon must be finite and above 0, got -1.0",
    "landscape --points 1": "points must be at least 2, got 1",
    "landscape --points 3 3 3": "points: kind='surface' needs one number or two",
    "landscape --kind curve --points 3 3": "kind='curve' needs one number, got 2",
    "landscape --kind between": "kind='between' needs two checkpoints, got 1",
    "landscape --kind nonsense": "argument --kind: invalid choice: 'nonsense'",
    "landscape --range 1": "range must be two numbers, got 1",
    "landscape --range nan 1": "range must increase",
    "landscape --range -1e30 -2E+31": "range must increase, got -1e+30 -2e+31",
    "landscape --range -inf -1e-3": "range must increase, got -inf -0.001",
    "landscape --range -.5e1 -nonsense": "unrecognized arguments: -nonsense",
    "landscape --seed -1": "seed must be at least 0, got -1",
    "landscape --seed 2": "holds the networks of seeds 0 to 1",
    "landscape --direction-seed -1": "direction_seed must be at least 0",
    "landscape --direction-seed 99999999999": "direction_seed must be in",
    "landscape --exclude [": "is not a valid regular expression",
    "landscape --exclude .*": "exclude .* leaves no parameter to move",
    "landscape --exclude bias --directions eigenvectors": "exclude applies to",
}


@pytest.mark.parametrize("options", TRAINING)
def test_training_refuses(options, tmp_path, capsys):
    line = refused(capsys, "train", *options.split(), output=tmp_path / "output")
    assert TRAINING[options] in line


@pytest.mark.parametrize("words", OTHERS)
def test_other_commands_refuse(words, tmp_path, capsys):
    line = refused(capsys, *words.split(), output=tmp_path / "output")
    assert OTHERS[words] in line


@pytest.mark.parametrize("words", MEASURES)
def test_measures_refuse(words, checkpoint, data, tmp_path, capsys):
    command, *options = words.split()
    quick = QUICK.split() if command == "sharpness" else []
    given = [command, checkpoint, *quick, "--data-dir", data, *options]
    assert MEASURES[words] in refused(capsys, *given, output=tmp_path / "output")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_an_output_that_cannot_be_a_folder(
    command, checkpoint, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    first = {"evidence": ["batches"], "train": [], "compare": []}
    first["predict"] = [checkpoint, tmp_path]
    words = [command, *first.get(command, [checkpoint])]
    for output, message in (
        ("", "argument --output: a path must not be empty"),
        (tmp_path / "file", f"cannot write to {tmp_path}/file: "),
        (tmp_path / "file" / "inside", f"cannot write to {tmp_path}/file/inside: "),
    ):
        with pytest.raises(SystemExit) as ended:
            run(*words, output=output)
        assert message in checked(capsys.readouterr().err, ended.value.code)


def test_the_program_without_a_command_points_to_its_help(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert "--help" in checked(capsys.readouterr().err, ended.value.code)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"stepz": 3}', "'stepz' is not a setting"),
        ('{"steps": "3"}', "steps must be int, got '3'"),
        ('{"steps": true}', "steps must be int, got True"),
        ('{"milestones": 0.5}', "milestones must be a list of float, got 0.5"),
        ('{"flip": 1}', "flip must be bool, got 1"),
        ('{"loss_rise": "gaps"}', "loss_rise must be float or gap, got 'gaps'"),
        ('{"output": ""}', "a path must not be empty"),
        ("[1]", "must hold an object, got [1]"),
        ("{", "is not a JSON file"),
        ('{"network": "lenet"}', "network must be one of 'mlp', 'f1', 'cnet'"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_settings_are_checked(resume, content, message, tmp_path, capsys):
    path = tmp_path / "settings.json"
    path.write_text(content)
    given = ["--resume"] if resume else ["--settings", path]
    output = tmp_path if resume else tmp_path / "output"
    assert message in refused(capsys, "train", *given, output=output)


def test_options_override_the_file_of_settings(tmp_path, capsys):
    path = tmp_path / "settings.json"
    path.write_text('{"batch_size": 501, "train_size": 600}')
    given = "--settings", path, "--train-size", 300
    line = refused(capsys, "train", *given, output=tmp_path / "output")
    assert "batch_size=501 is larger than train_size=300" in line


def test_a_file_of_settings_holds_numbers_words_and_null(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"loss_rise": 1, "network": "f1", "steps": null, "shift": 2}')
    expected = {"loss_rise": 1.0, "network": "f1", "steps": None, "shift": 2}
    assert read_settings(path, TrainSettings) == expected
    path.write_text('{"loss_rise": "gap"}')
    assert read_settings(path, TrainSettings) == {"loss_rise": "gap"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss_rise": "gaps"}, "loss_rise must be one of 'gap'; got 'gaps'"),
        ({"loss_rise": 0.1, "retrain": True}, "retrain needs loss_rise=gap"),
        (
            {"loss_rise": "gap", "watch_size": 20, "retrain": True},
            "retrain needs loss_rise=gap",
        ),
    ],
)
def test_settings_made_by_a_program_are_checked(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CompareSettings(**given)


SIZES = {
    "cnet": {"width": 2},
    "resnet": {"depth": 8, "width": 2},
    "vit": {"depth": 1, "width": 6},
    "f1": {"hidden_sizes": (4,)},
}


@pytest.mark.parametrize("network", SIZES)
def test_networks_accept_or_refuse_images_of_any_shape(network, tmp_path):
    refusals = 0
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
        try:
            jax.eval_shape(Task(settings).init, jax.random.key(0))
        except InputError:
            refusals += 1
    assert refusals < 4


def test_only_images_must_divide_into_patches():
    MODELS["vit"].check_images("vit", (17, 3), "npz")
    with pytest.raises(InputError, match="a multiple of 4 pixels"):
        MODELS["vit"].check_images("vit", (17, 16, 1), "npz")
