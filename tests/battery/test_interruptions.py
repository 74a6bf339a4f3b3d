"""Commands that are interrupted, meet another, or find no space: nothing is lost."""

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

import numpy as np
import pytest
from command_line import (
    checked,
    refused,
    run,
    spied,
    strict,
    words_of,
)

from smoothout_jax.experiments import folders
from smoothout_jax.experiments.commands import COMMANDS, sharpness
from smoothout_jax.experiments.training import comparison
from smoothout_jax.experiments.training.checkpoints import steps_of

pytestmark = pytest.mark.usefixtures("standard_promotion")


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
    assert "networks that were measured are kept" in told["sharpness", "work"][0]
    calls = spied(monkeypatch, sharpness, "_measure")
    output = folder / "sharpness-work"
    run(*words_of("sharpness", checkpoint, data), output=output)
    assert len(calls) == 1
    rows = strict((output / "sharpness.json").read_text())["rows"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert not (output / "unfinished.json").exists()


@pytest.mark.slow
def test_interrupted_evidence_is_continued(interrupted):
    folder, told = interrupted
    assert "trials that are done are kept" in told["evidence", "work"][0]
    output = folder / "evidence-work"
    assert strict((output / "unfinished.json").read_text())["results"]["sgd"]


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
