"""What commands show: help, progress, tables that fit, and JSON that is JSON."""

import io
import json
import math
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from smoothout_jax import _extras
from smoothout_jax.experiments import cli, progress
from smoothout_jax.experiments.commands import COMMANDS
from smoothout_jax.experiments.reporting.files import json_text
from smoothout_jax.experiments.reporting.tables import terminal_tables
from smoothout_jax.experiments.training.resuming import SavedResults


@pytest.mark.parametrize("number", [1, 2, 3, 7, 12])
def test_tables_of_any_number_of_columns_fit_a_terminal(number):
    header = ["", *(f"digits, 500 images, mlp, batch {i}" for i in range(number))]
    rows = [
        ["split AdaSmoothOut", *(f"97.{i:02} ± 0.10" for i in range(number))],
        ["params/Dense_0"],
    ]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(terminal_tables("Test accuracy", rows, header=header, caption="In %"))
    text = console.export_text()
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for i in range(number):
        assert f"97.{i:02} ± 0.10" in text
    assert text.count("In %") == 1
    assert "In %" in text.splitlines()[-1]
    tables = text.count("split AdaSmoothOut")
    assert tables == text.count("params/Dense_0") == math.ceil(number / 3)


def help_of(capsys, *words):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words])
    text = capsys.readouterr().out
    return text, re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_most_need_and_all_on_request(command, capsys):
    short, common = help_of(capsys, command, "--help")
    long, every = help_of(capsys, command, "--help-all")
    assert len(common) <= 20
    assert set(common) <= set(every)
    assert {"--output", "--help", "--help-all"} <= set(common)
    assert short.splitlines()[0] == long.splitlines()[0]
    if command == "train":
        assert {"--clip-norm", "--process-id", "--radius"} < set(every) - set(common)
        assert {"data:", "network:", "training:", "run:"} <= set(short.splitlines())


@pytest.fixture
def clock(monkeypatch):
    """Stands still unless a test moves it."""
    now = SimpleNamespace(monotonic=lambda: now.seconds, seconds=100.0)
    monkeypatch.setattr(progress, "time", now)
    monkeypatch.setattr(progress.Progress, "_last", 0.0)
    return now


def test_the_rate_begins_after_what_is_compiled(clock, capsys):
    """Twenty items, of which the first two take a minute each, the others a second."""
    bar = progress.Progress("training", range(20), compiling=2)
    for item in bar:
        if item < 2:
            bar.say(f"compiling {item}")
        clock.seconds += 60 if item < 2 else 1
    assert capsys.readouterr().out.splitlines() == [
        "compiling 0",
        "training: 1 of 20",
        "compiling 1",
        "training: 2 of 20",
        "training: 12 of 20, about 8 s left",
    ]


def test_what_was_done_before_counts_not_to_the_rate(clock, capsys):
    with progress.Progress("training", total=100, done=60) as bar:
        for _ in range(3):
            clock.seconds += 20
            bar.postfix = "97.1 %"
            bar.update(10)
    assert capsys.readouterr().out.splitlines() == [
        "training: 70 of 100, 97.1 %",
        "training: 80 of 100, about 40 s left, 97.1 %",
        "training: 90 of 100, about 20 s left, 97.1 %",
    ]


def test_the_library_shows_its_progress_so_too(clock, capsys):
    with progress.shown():
        for _ in _extras.progress("probes", iter("ab")):
            clock.seconds += 6
    assert capsys.readouterr().out == "probes: 2 so far\n"
    assert _extras.SHOWN_BY == []


def test_a_long_wait_is_announced(capsys):
    for seconds in (3, 42.3, 42 * 60, 9000):
        progress.announce("training", seconds)
    assert capsys.readouterr().out.splitlines() == [
        "training takes about 42 s more",
        "training takes about 42 min more",
        "training takes about 2.5 h more",
    ]


def in_a_terminal(*words):
    """What a command shows in a terminal, and when it showed anything."""
    ours, theirs = pty.openpty()
    began, first, shown = time.monotonic(), None, b""
    running = subprocess.Popen(
        [sys.executable, "-m", "smoothout_command", *words],
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    while True:
        try:
            part = os.read(ours, 1024)
        except OSError:  # Linux says so at the end
            break
        if not part:
            break
        first = first or time.monotonic() - began
        shown += part
    assert running.wait() == 0, shown
    return shown.decode(), first


@pytest.mark.slow
def test_a_terminal_shows_one_line_that_changes(tmp_path):
    options = "train --steps 40 --evaluate-every 10 --hidden-sizes 4 --output"
    shown, first = in_a_terminal(*options.split(), str(tmp_path))
    assert first < 2
    assert "importing JAX\r" in shown
    assert "\r\x1b[Kcompiling the training step\r\x1b[K" in shown
    assert " GFLOP a step, " in shown
    assert "\r\x1b[Ktraining: 10 of 40" in shown
    assert "\r\x1b[K\x1b[3m  " in shown  # the table follows in its place


def test_seconds_of_earlier_processes_are_counted(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr("smoothout_jax.experiments.training.resuming.time", clock)
    kept = SavedResults(tmp_path, {"steps": 3})
    clock.now = 107.0
    kept["a"] = 1
    clock.now = 500.0  # the next day
    again = SavedResults(tmp_path, {"steps": 3})
    clock.now = 503.0
    assert again.seconds == 10.0


def test_results_are_kept_for_the_same_whole_alone(tmp_path):
    path = tmp_path / "unfinished.json"
    kept = SavedResults(tmp_path, {"steps": 3})
    kept["a"] = (1.5, math.nan)
    assert kept["a"] == [1.5, None]
    assert SavedResults(tmp_path, {"steps": 3}) == kept
    assert SavedResults(tmp_path, {"steps": 4}) == {}
    path.write_text("[]")
    assert SavedResults(tmp_path, {"steps": 3}) == {}
    kept.delete()
    assert not path.exists()


def test_json_has_no_number_that_is_not_finite():
    document = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": None}}
    assert json.loads(json_text(document)) == {
        "a": [1.5, None, [None, 2]],
        "b": {"c": None, "d": None},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "train --stepss 3",
            "unrecognized arguments: --stepss (did you mean --steps?)",
        ),
        ("train --foo=1", "unrecognized arguments: --foo=1; see smoothout train"),
        ("", "the following arguments are required: COMMAND"),
        ("nonsense train", "invalid choice: 'nonsense'"),
    ],
)
def test_words_that_are_not_understood_are_reported(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--help" in line


def test_without_the_extra_the_command_says_what_to_install():
    program = "import sys; sys.modules['rich.console'] = None; sys.argv[1:] = ['train']"
    program += "; import smoothout_command; smoothout_command.main()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert ended.returncode == 2
    assert ended.stderr.decode() == (
        "smoothout: error: rich is not installed; this needs the extra: pip install"
        ' "smoothout-jax[experiments]"\n'
    )
