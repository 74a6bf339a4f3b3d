"""Commands that are interrupted, run twice, or find no space: nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command_line import COMPARE, QUICK, TRAIN, checked, refused, run, spied, strict

from smoothout_jax.experiments import folders
from smoothout_jax.experiments.commands import COMMANDS, sharpness
from smoothout_jax.experiments.training import comparison
from smoothout_jax.experiments.training.checkpoints import steps_of

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Turns are kept at once, so that tests need not wait; files may have a largest size.
STARTED = """
import os, resource
if limit := int(os.environ.get("LIMIT", 0)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if "KEEP" in os.environ:
    from smoothout_jax.experiments.training import comparison
    comparison.SECONDS_BETWEEN_SAVES = 0
import smoothout_command
smoothout_command.main()
"""
# Of each command that takes its time, what it keeps while it is under way.
SIGNS = {
    "train": "checkpoints/10",
    "compare": "unfinished-training",
    "evidence": "unfinished.json",
    "sharpness": "unfinished.json",
}
# When a command is stopped, and by what.
MOMENTS = [
    *((command, "work", signal.SIGINT) for command in SIGNS),
    ("train", "work", signal.SIGTERM),
    ("train", "import", signal.SIGINT),
    ("landscape", "compilation", signal.SIGINT),
]


def words_of(command, checkpoint, data):
    given = {
        "train": [*TRAIN.split(), "--steps", 1000, "--evaluate-every", 10],
        "compare": [*COMPARE.split(), "--steps", 40_000],
        "evidence": ["batches", "--form", "smoke"],
        "sharpness": [checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": [checkpoint, "--points", 41, "--data-dir", data],
        "predict": [checkpoint, data],
        "check": [data],
    }[command]
    return [command, *map(str, given)]


def process(*words, output, **environment):
    """A command as a process of its own."""
    flags = os.environ["XLA_FLAGS"].replace("count=8", "count=1")
    return subprocess.Popen(
        [sys.executable, "-c", STARTED, *map(str, words), "--output", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags} | environment,
    )


def stop(command, moment, number, words, output):
    """Stops a command at a moment; what it said, and its exit code."""
    keep = {} if moment == "import" else {"KEEP": ""}
    running = process(*words, output=output, **keep)
    maps = Path(f"/proc/{running.pid}/maps")
    ready = {
        "import": lambda: "jaxlib" in maps.read_text(),
        "compilation": (output / folders.LOCK).exists,
        "work": (output / SIGNS.get(command, "")).exists,
    }[moment]
    while not ready() and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(number)
    _, err = running.communicate(timeout=300)
    return err, running.returncode


def fill(words, output):
    """Runs a command whose files must not be longer than 500 bytes."""
    running = process(*words, output=output, LIMIT="500")
    _, err = running.communicate(timeout=300)
    return err, running.returncode


@pytest.fixture(scope="module")
def stopped(checkpoint, data, tmp_path_factory):
    """What every command said when it was stopped, and where it wrote."""
    folder, said = tmp_path_factory.mktemp("stopped"), {}
    with ThreadPoolExecutor(2) as pool:
        for each in MOMENTS:
            words = words_of(each[0], checkpoint, data)
            output = folder / "-".join(map(str, each))
            said[each] = output, pool.submit(stop, *each, words, output)
        for command in ("train", "compare"):
            words, output = words_of(command, None, None), folder / f"{command}-full"
            said[command, "full"] = output, pool.submit(fill, words, output)
    return {each: (output, *end.result()) for each, (output, end) in said.items()}


@pytest.mark.slow
@pytest.mark.parametrize("each", MOMENTS, ids=str)
def test_an_interruption_ends_in_one_line(each, stopped):
    _, err, code = stopped[each]
    line = checked(err, code, 128 + each[2])
    assert "interrupted" in line
    if each[1] == "import":
        assert line == "smoothout: error: interrupted: nothing was done yet"
    elif each[1] == "work":
        assert "to continue" in line


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(stopped):
    """To the same bits, wherever it was."""
    digests = []
    for number in (signal.SIGINT, signal.SIGTERM):
        output, err, _ = stopped["train", "work", number]
        assert f"smoothout train --resume --output {output}" in err
        assert 0 < steps_of(output)[-1] < 1000
        run("train", "--resume", "--checkpoint-minutes", 9, output=output)
        about = output / "checkpoints" / "1000" / "about" / "metadata"
        digests.append(json.loads(about.read_text())["digests"]["state"])
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_an_interrupted_comparison_is_continued(stopped, tmp_path, monkeypatch):
    """To the results that it would have had, from the turn that was next."""
    output, err, _ = stopped["compare", "work", signal.SIGINT]
    assert "run the same command again" in err
    turns = spied(monkeypatch, comparison.Trainer, "advance")
    for each in (output, tmp_path):
        run(*words_of("compare", None, None), output=each)
        assert not (each / "unfinished-training").exists()
    assert comparison.ROUNDS < len(turns) < 2 * comparison.ROUNDS
    found, expected = (
        json.loads((each / "results.json").read_text())["outcomes"]
        for each in (output, tmp_path)
    )
    np.testing.assert_array_equal(
        found["sgd"]["test_loss"], expected["sgd"]["test_loss"]
    )


@pytest.mark.slow
def test_interrupted_measures_and_trials_are_continued(
    stopped, checkpoint, data, monkeypatch
):
    output, *_ = stopped["evidence", "work", signal.SIGINT]
    assert strict((output / "unfinished.json").read_text())["results"]["sgd"]
    output, *_ = stopped["sharpness", "work", signal.SIGINT]
    calls = spied(monkeypatch, sharpness, "_measure")
    run(*words_of("sharpness", checkpoint, data), output=output)
    assert len(calls) == 1
    rows = strict((output / "sharpness.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert not (output / "unfinished.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_full_disk_is_reported(command, stopped):
    output, err, code = stopped[command, "full"]
    assert "cannot write: File too large" in checked(err, code)
    assert not list(output.glob("*.json"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_in_use_is_refused(command, checkpoint, data, tmp_path, capsys):
    words = words_of(command, checkpoint, data)
    with folders.held(tmp_path):
        line = refused(capsys, *words, output=tmp_path)
    assert f"output {tmp_path} is in use by another smoothout command" in line
    with folders.held(tmp_path):
        pass
