"""What a person can do to the commands: each ends in one line, and loses nothing."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from smoothout_jax import landscape
from smoothout_jax.experiments import cli, folders, interruptions
from smoothout_jax.experiments.commands import COMMANDS, sharpness
from smoothout_jax.experiments.commands.train import TrainSettings
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.training import comparison, task
from smoothout_jax.experiments.training.checkpoints import steps_of
from smoothout_jax.experiments.training.task import Task

SMALL = "--hidden-sizes 4 --batch-size 8"
COMPARE = f"{SMALL} --steps 4 --seeds 2 --methods sgd --noise-samples 2"
TRAIN = f"{SMALL} --steps 4 --evaluate-every 2 --checkpoint-minutes 0 --method sgd"
QUICK = "--noise-samples 2 --repetitions 1 --probes 2 --measures expected sam"


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def write(folder, part="train", **changed):
    """24 images of 4 × 4 pixels, of three classes."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(24) % 3
    images = np.random.default_rng(0).uniform(0, 1, (24, 4, 4, 1)) + labels.reshape(
        -1, 1, 1, 1
    )
    arrays = {"images": images.astype(np.float32), "labels": labels} | changed
    np.savez(folder / f"{part}.npz", **arrays)
    return folder


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


def run(*arguments, output):
    cli.main([*map(str, arguments), "--output", str(output)])


def content(folder):
    """All that a folder holds; `None` if there is none."""
    if not folder.exists():
        return None
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def checked(shown, status, code=2):
    """The one line of a command that failed."""
    assert status == code, shown
    (line,) = shown.splitlines()
    assert line.startswith("smoothout: error: ")
    assert "usage:" not in line
    return line


def refused(capsys, *arguments, output):
    """The line of a command that does not begin, and leaves its folder as it was."""
    before = content(output) or {}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        run(*arguments, output=output)
    shown = capsys.readouterr()
    line = checked(shown.err, ended.value.code)
    assert not shown.out
    assert (content(output) or {}) == before
    return line


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


def commands_on(checkpoint, data):
    """Each command that reads such data."""
    own = ["--data", "npz", "--data-dir", data]
    return {
        "train": ["train", *TRAIN.split(), *own],
        "compare": ["compare", *COMPARE.split(), *own],
        "sharpness": ["sharpness", checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": ["landscape", checkpoint, "--points", 3, "--data-dir", data],
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


def remove(path):
    path.unlink()


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def save_one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def scramble(path):
    path.write_bytes(b"\x00\xff" * 40)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "damage", [remove, make_a_folder, save_one_array, cut, scramble]
)
def test_bad_files_of_data_are_told(damage, part, checkpoint, tmp_path, capsys):
    folder = write(write(tmp_path / "data"), "test")
    damage(folder / f"{part}.npz")
    for command in commands_on(checkpoint, folder).values():
        line = refused(capsys, *command, output=tmp_path / "output")
        assert str(folder / f"{part}.npz") in line


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


@pytest.mark.parametrize("options", ["--train-size 12", "--validation-size 10"])
def test_a_class_of_one_image_is_told(options, tmp_path, capsys):
    labels = np.where(np.arange(24) < 23, LABELS % 2, 2)
    folder = write(write(tmp_path / "data", labels=labels), "test")
    for command in ("train", "compare"):
        own = ["--data", "npz", "--data-dir", folder, *options.split()]
        line = refused(capsys, command, *SMALL.split(), *own, output=tmp_path / "o")
        assert "cannot be drawn with the classes in proportion" in line


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


def strict(text):
    """JSON as its standard has it, without NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(word))


def test_folders_that_are_no_checkpoints_are_told(compared, tmp_path, capsys):
    (tmp_path / "empty" / "much").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    sgd = compared / "checkpoints" / "sgd"
    for command in ("sharpness", "landscape"):
        for path, message in (
            (compared, f"is not a checkpoint, but holds some: give {sgd}"),
            (compared / "checkpoints", f"but holds some: give {sgd}"),
            (tmp_path / "empty", f"{tmp_path}/empty is not a checkpoint of smoothout"),
            (tmp_path / "file", f"checkpoint {tmp_path}/file is not a folder"),
            (tmp_path / "none", f"checkpoint {tmp_path}/none does not exist"),
        ):
            assert message in refused(capsys, command, path, output=tmp_path / "output")


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_damaged_last_checkpoint_points_to_the_one_before(
    trained_run, data, tmp_path, capsys
):
    broken = copied(trained_run, tmp_path / "run")
    assert steps_of(broken) == [2, 4]
    (broken / "checkpoints" / "4" / "about" / "metadata").write_text("{}")
    before = f"the one before it is {broken}/checkpoints/2"
    words = "train", "--resume", "--data-dir", data
    assert before in refused(capsys, *words, output=broken)
    for command in ("sharpness", "landscape"):
        line = refused(
            capsys, command, broken, "--data-dir", data, output=tmp_path / "output"
        )
        assert before in line
    shutil.rmtree(broken / "checkpoints" / "4")
    run(*words, output=broken)
    digests = [
        json.loads((each / "checkpoints/4/about/metadata").read_text())["digests"]
        for each in (broken, trained_run)
    ]
    assert digests[0] == digests[1]


def test_a_damaged_log_is_told(trained_run, data, tmp_path, capsys):
    broken = copied(trained_run, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "4")
    log, words = broken / "log.csv", ("train", "--resume", "--data-dir", data)
    for text in (b"nonsense\n1\n", b"step,seconds\nx,1\n", b"\xff\xfe,\n"):
        log.write_bytes(text)
        assert f"{log} is damaged" in refused(capsys, *words, output=broken)
    log.unlink()
    run(*words, output=broken)  # the log begins anew
    assert steps_of(broken) == [2, 4]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{",
        "",
        '{"cases": []}',
        '{"cases": {"f1, batch 20": {}}, "plan": {}}',
    ],
)
def test_damaged_evidence_is_told(text, tmp_path, capsys):
    (tmp_path / "batches-smoke.json").write_text(text)
    line = refused(capsys, "evidence", "batches", "--form", "smoke", output=tmp_path)
    assert f"{tmp_path}/batches-smoke.json is damaged" in line


@pytest.mark.parametrize("damage", [cut, scramble, save_one_array])
def test_a_damaged_landscape_is_told(damage, checkpoint, data, tmp_path, capsys):
    words = "landscape", checkpoint, "--kind", "curve", "--points", 3
    run(*words, "--data-dir", data, output=tmp_path)
    damage(tmp_path / "curve-sgd.npz")
    line = refused(capsys, *words, "--data-dir", data, output=tmp_path)
    assert "curve-sgd.npz is not a landscape, or is damaged" in line


@pytest.mark.parametrize("text", ["[]", "{", '{"steps": "many"}', '{"output": ""}'])
def test_damaged_settings_are_told(text, trained_run, tmp_path, capsys):
    broken = copied(trained_run, tmp_path / "run")
    (broken / "settings.json").write_text(text)
    assert "settings" in refused(capsys, "train", "--resume", output=broken)


def test_the_number_of_checkpoints_to_keep_may_change(trained_run, data, tmp_path):
    more = copied(trained_run, tmp_path / "run")
    shutil.rmtree(more / "checkpoints" / "4")
    run("train", "--resume", "--keep", 1, "--data-dir", data, output=more)
    assert steps_of(more) == [4]
    assert json.loads((more / "settings.json").read_text())["keep"] == 1


# What is under way is kept at each turn and point, so that tests need not wait.
STARTED = """
import os, resource, sys
import smoothout_command
if "LIMIT" in os.environ:
    limit = int(os.environ["LIMIT"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if "at once" not in sys.argv:
    from smoothout_jax import _grid
    from smoothout_jax.experiments.training import comparison
    comparison.SECONDS_BETWEEN_SAVES = _grid.SECONDS_BETWEEN_SAVES = 0
sys.argv.remove("at once") if "at once" in sys.argv else None
smoothout_command.main()
"""


def words_of(command, checkpoint, data):
    """A command that takes its time."""
    given = {
        "train": [*TRAIN.split(), "--steps", 1000, "--evaluate-every", 10],
        "compare": [*COMPARE.split(), "--steps", 40_000],
        "evidence": ["batches", "--form", "smoke"],
        "sharpness": [checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": [checkpoint, "--points", 41, "--data-dir", data],
    }[command]
    return [command, *map(str, given)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_use_is_told(command, checkpoint, data, tmp_path, capsys):
    """By which process; and a lock that a process left behind is taken over."""
    words = words_of(command, checkpoint, data)
    with folders.held(tmp_path, "compare"):
        line = refused(capsys, *words, output=tmp_path)
        assert f"{tmp_path} is in use by process {os.getpid()} (smoothout com" in line
    assert not list(tmp_path.iterdir())
    (tmp_path / folders.LOCK).write_text('{"process": 999999, "machine": "elsewhere"}')
    with folders.held(tmp_path, command):
        told = json.loads((tmp_path / folders.LOCK).read_text())
        assert (told["process"], told["command"]) == (os.getpid(), command)


def test_folders_are_locked_on_windows_too(tmp_path, monkeypatch, capsys):
    """Where a lock is of a byte, and no open file can be deleted."""
    locked, unlink = [], Path.unlink

    def locking(number, mode, size):
        assert (os.lseek(number, 0, os.SEEK_CUR), mode, size) == (2**30, "mode", 1)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError from error
        locked.append(number)

    def unlink_closed(path, missing_ok=False):
        for number in locked:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(number), path.stat()):
                    raise PermissionError
        unlink(path, missing_ok)

    msvcrt = SimpleNamespace(LK_NBLCK="mode", locking=locking)
    monkeypatch.setattr(folders, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    monkeypatch.setattr(Path, "unlink", unlink_closed)
    for _ in range(2):
        with folders.held(tmp_path, "train"):
            line = refused(capsys, "compare", output=tmp_path)
            assert f"is in use by process {os.getpid()} (smoothout train" in line
        assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_process_are_removed(trained_run, data, tmp_path):
    left = copied(trained_run, tmp_path / "run")
    shutil.rmtree(left / "checkpoints" / "4")
    for name in ("0.going", "3.orbax-checkpoint-tmp", ".unfinished-4"):
        (left / "checkpoints" / name / "params").mkdir(parents=True)
    (left / ".unfinished-log.csv").write_text("step")
    run("train", "--resume", "--data-dir", data, output=left)
    assert sorted(path.name for path in (left / "checkpoints").iterdir()) == ["2", "4"]
    assert not list(left.glob(".*"))


def process(*words, output, limit=None):
    """A command as a process of its own."""
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    environment = os.environ | {"XLA_FLAGS": flags}
    if limit is not None:
        environment["LIMIT"] = str(limit)
    return subprocess.Popen(
        [sys.executable, "-c", STARTED, *map(str, words), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait(process, ready):
    while not ready() and process.poll() is None:
        time.sleep(0.005)


def ended(process, times=1):
    """The line of a process that was interrupted."""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=300)
    return checked(err, process.returncode, 130), out


# What a command keeps while it is under way.
SIGNS = {
    "train": "checkpoints/10",
    "compare": "unfinished-training",
    "evidence": "unfinished.json",
    "sharpness": "unfinished.json",
    "landscape": "surface-sgd.npz",
}


def interrupt(moment, words, output):
    """Interrupts a command at a moment; what it said, and what it left."""
    running = process(*words, *["at once"] * (moment == "import"), output=output)
    maps = Path(f"/proc/{running.pid}/maps")
    ready = {
        # As JAX is imported, and before a command is.
        "import": lambda: "jaxlib" in maps.read_text(),
        # Then come the data, compilation, and training or measuring.
        "compilation": (output / folders.LOCK).exists,
        "work": (output / SIGNS[words[0]]).exists,
        "twice": (output / SIGNS[words[0]]).exists,
    }[moment]
    wait(running, ready)
    return ended(running, 2 if moment == "twice" else 1)


def fill(command, words, output):
    """Runs a command whose files must not be longer than 500 bytes."""
    short = {"compare": ["--steps", "4"], "landscape": ["--points", "3"]}
    words = [*words, *short.get(command, [])]
    running = process(*words, output=output, limit=500)
    _, err = running.communicate(timeout=300)
    return err, running.returncode


@pytest.fixture(scope="module", autouse=True)
def background(request, checkpoint, data, tmp_path_factory):
    """Processes beside the other tests: what they say, and where they write."""
    mine = (item for item in request.session.items if item.path == request.path)
    if not any(item.get_closest_marker("slow") for item in mine):
        yield None
        return
    folder = tmp_path_factory.mktemp("background")
    moments = [(c, m) for c in COMMANDS for m in ("import", "compilation", "work")]
    with ThreadPoolExecutor(2) as pool:
        told = {}
        for command, moment in [*moments, ("train", "twice")]:
            words = words_of(command, checkpoint, data)
            output = folder / f"{command}-{moment}"
            told[command, moment] = pool.submit(interrupt, moment, words, output)
        for command in COMMANDS:
            words = words_of(command, checkpoint, data)
            output = folder / f"{command}-full"
            told[command, "full"] = pool.submit(fill, command, words, output)
        yield folder, told


@pytest.fixture(scope="module")
def interrupted(background):
    """What every command said when it was interrupted, and where it wrote."""
    folder, told = background
    return folder, {key: each.result() for key, each in told.items()}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["import", "compilation", "work"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_interruption_ends_in_one_line(command, moment, interrupted):
    folder, told = interrupted
    line, out = told[command, moment]
    assert "interrupted" in line
    assert "Traceback" not in out
    output = folder / f"{command}-{moment}"
    assert not output.exists() or not list(output.glob(".*"))
    if moment == "import":
        assert line == "smoothout: error: interrupted: nothing was done yet"
    if moment == "work":
        assert "to continue" in line


def spied(monkeypatch, module, name):
    """Counts the calls of a function."""
    calls, function = [], getattr(module, name)

    def spy(*arguments, **options):
        calls.append(arguments)
        return function(*arguments, **options)

    monkeypatch.setattr(module, name, spy)
    return calls


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(interrupted):
    """To the same bits, wherever it was; at the second interruption it ends at once."""
    folder, told = interrupted
    digests = []
    for moment in ("work", "twice"):
        output = folder / f"train-{moment}"
        line, _ = told["train", moment]
        assert f"smoothout train --resume --output {output}" in line
        step = steps_of(output)[-1]
        assert f"at step {step} of 1000" in line
        assert step < 1000
        run("train", "--resume", "--checkpoint-minutes", 9, output=output)
        about = output / "checkpoints" / "1000" / "about" / "metadata"
        digests.append(json.loads(about.read_text())["digests"]["state"])
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_an_interrupted_comparison_is_continued(interrupted, tmp_path, monkeypatch):
    """To the results that it would have had, from the turn that was next."""
    folder, told = interrupted
    assert "run the same command again" in told["compare", "work"][0]
    output = folder / "compare-work"
    turns = spied(monkeypatch, comparison.Trainer, "advance")
    words = words_of("compare", None, None)
    run(*words, output=output)
    assert 0 < len(turns) < comparison.ROUNDS
    assert not (output / "unfinished-training").exists()
    run(*words, output=tmp_path)
    found, expected = (
        json.loads((each / "results.json").read_text())["outcomes"]
        for each in (output, tmp_path)
    )
    np.testing.assert_allclose(
        found["sgd"]["test_loss"], expected["sgd"]["test_loss"], rtol=1e-3
    )


@pytest.mark.slow
def test_interrupted_measures_are_continued(interrupted, checkpoint, data, monkeypatch):
    folder, told = interrupted
    assert "1 of 2 networks are measured" in told["sharpness", "work"][0]
    calls = spied(monkeypatch, sharpness, "_measure")
    output = folder / "sharpness-work"
    run(*words_of("sharpness", checkpoint, data), output=output)
    assert len(calls) == 1
    rows = strict((output / "sharpness.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert not (output / "unfinished.json").exists()


@pytest.mark.slow
def test_interrupted_landscapes_and_evidence_are_continued(
    interrupted, checkpoint, data, monkeypatch
):
    folder, told = interrupted
    assert "the points that were done are kept" in told["landscape", "work"][0]
    output = folder / "landscape-work"
    with np.load(output / "surface-sgd.npz") as arrays:
        assert 0 < arrays["done"].sum() < 41**2
    assert "the trials of 1 methods" in told["evidence", "work"][0]
    output = folder / "evidence-work"
    assert strict((output / "unfinished.json").read_text())["results"]["sgd"]


def interrupted_at(monkeypatch, holder, name, call):
    """Interrupts a command at a call of a function; the list of the calls."""
    calls, function = [], getattr(holder, name)

    def spy(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            interruptions._watch.note(signal.SIGINT, None)
        return function(*arguments, **options)

    monkeypatch.setattr(holder, name, spy)
    return calls


def ends_as_interrupted(capsys, words, output):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(*words, output=output)
    line = checked(capsys.readouterr().err, end.value.code, 130)
    assert "to continue, run the same command again" in line


def test_landscapes_that_are_continued_have_the_same_bits(
    checkpoint, data, tmp_path, monkeypatch, capsys
):
    """Interrupted in the middle, and in the middle of the rest."""
    words = ["landscape", checkpoint, "--points", 4, "--data-dir", data]
    run(*words, output=tmp_path / "whole")
    whole = dict(np.load(tmp_path / "whole" / "surface-sgd.npz"))
    assert whole["done"].size == 16
    counts = []
    for call, done in ((5, 4), (8, 10), (None, 16)):
        with monkeypatch.context() as patched:
            calls = interrupted_at(patched, landscape._Evaluator, "__call__", call)
            if call:
                ends_as_interrupted(capsys, words, tmp_path / "parts")
            else:
                run(*words, output=tmp_path / "parts")
        parts = dict(np.load(tmp_path / "parts" / "surface-sgd.npz"))
        assert parts["done"].sum() == done
        counts.append(len(calls))
    # The first point is evaluated each time, to tell another landscape.
    assert counts == [5, 8, 7]
    assert parts.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


# A command that fails, and is interrupted while it does, twice.
FAILING = """
import errno, os, signal, sys, time
import smoothout_command
from smoothout_jax.experiments import failures, folders, interruptions
from smoothout_jax.experiments.commands import compare

def interrupt(module, name):
    function = getattr(module, name)

    def interrupted(*arguments):
        setattr(module, name, function)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return function(*arguments)

    setattr(module, name, interrupted)

def fail(settings):
    module, name = os.environ["INTERRUPTED"].split()
    interrupt(globals()[module], name)
    raise OSError(errno.ENOSPC, "No space left on device")

compare.run = fail
smoothout_command.main()
"""


@pytest.mark.slow
def test_an_interruption_while_a_command_fails_adds_no_line(tmp_path):
    """As it leaves its folder, as it explains the failure, and as it says so."""
    running = {}
    for place in ("folders _tidy", "failures of_the_machine", "interruptions say"):
        running[place] = subprocess.Popen(
            [sys.executable, "-c", FAILING, "compare", "--output", tmp_path / place],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"INTERRUPTED": place},
        )
    for place, process in running.items():
        out, err = process.communicate(timeout=300)
        said = place == "interruptions say"
        line = checked(err, process.returncode, 2 if said else 130)
        reason = "cannot write: No space left" if said else "interrupted: nothing"
        assert line.startswith(f"smoothout: error: {reason}")
        assert not out
        assert not list((tmp_path / place).iterdir())


@pytest.mark.slow
def test_a_run_that_goes_on_is_not_joined_by_another(tmp_path, capsys):
    words = words_of("train", None, None)
    running = process(*words, output=tmp_path)
    wait(running, (tmp_path / "checkpoints" / "10").exists)
    for second in (words, ["train", "--resume"]):
        with pytest.raises(SystemExit) as end:
            run(*second, output=tmp_path)
        line = checked(capsys.readouterr().err, end.value.code)
        assert f"is in use by process {running.pid} (smoothout train" in line
    ended(running)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_told(command, interrupted):
    folder, told = interrupted
    line = checked(*told[command, "full"])
    assert "cannot write: File too large" in line
    assert not list((folder / f"{command}-full").rglob("*unfinished-*"))
    assert not list((folder / f"{command}-full").rglob("*-tmp"))


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(tmp_path):
    """A file system of its own, where the machine allows it."""
    mounted = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("this machine mounts no file systems for tests")
    try:
        words = [*words_of("train", None, None), "--keep", "1000"]
        running = process(*words, output=tmp_path / "run")
        _, err = running.communicate(timeout=300)
        line = checked(err, running.returncode)
        assert "No space left on device" in line
        step = steps_of(tmp_path / "run")[-1]
        assert f"at step {step} of 1000; to continue: smoothout train --resume" in line
        for older in steps_of(tmp_path / "run")[:-1]:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(older))
        running = process("train", "--resume", "--keep", "1", output=tmp_path / "run")
        wait(running, lambda: (steps_of(tmp_path / "run") or [0])[-1] > step)
        ended(running)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_data_are_loaded_and_losses_compiled_once(
    compared, checkpoint, data, tmp_path, monkeypatch
):
    """For however many checkpoints of one data set and network."""
    other = copied(checkpoint, tmp_path / "other")
    loads = spied(monkeypatch, task, "prepare")
    traces = spied(monkeypatch, task.Task, "quantities")
    counts = []
    for number in (1, 2):
        jax.clear_caches()
        words = [*(checkpoint, other)[:number], "--data-dir", data, *QUICK.split()]
        run("sharpness", *words, output=tmp_path / f"{number}")
        assert len(loads) == number
        counts.append(len(traces) - sum(counts))
    assert counts[0] == counts[1]
