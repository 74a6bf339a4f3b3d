"""What commands show: progress, tables that fit, and JSON that is JSON."""

import io
import itertools
import json
import math
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
from rich.console import Console

from smoothout_jax import _extras
from smoothout_jax.experiments import cli, interruptions, progress
from smoothout_jax.experiments.commands import unfinished
from smoothout_jax.experiments.commands.unfinished import Unfinished
from smoothout_jax.experiments.reporting.formats import json_text
from smoothout_jax.experiments.reporting.tables import terminal_tables


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


def test_where_nobody_watches_progress_is_told_in_lines(monkeypatch, capsys):
    clock = itertools.count(0.0, 4.0)
    now = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(progress, "time", now)
    monkeypatch.setattr(progress.Lines, "_last", 0.0)
    with progress.shown():
        assert list(_extras.progress("training", range(6))) == list(range(6))
        with _extras.progress("measuring", total=4) as bar:
            bar.set_postfix_str("97.1 %")
            for _ in range(4):
                bar.update()
    shown = capsys.readouterr()
    assert not shown.err
    assert shown.out.splitlines() == [
        "training: 3 of 6, about 12 s left",
        "training: 6 of 6, about 0 s left",
        "measuring: 3 of 4, about 4 s left, 97.1 %",
    ]
    assert _extras.SHOWN_BY == []


def test_what_takes_long_is_told(capsys):
    progress.announce("training", 3)
    progress.announce("training", 42.3)
    progress.announce("measuring", 42 * 60)
    progress.announce("measuring", 9000)
    assert capsys.readouterr().out.splitlines() == [
        "training takes about 42 s more on this machine",
        "measuring takes about 42 min more on this machine",
        "measuring takes about 2.5 h more on this machine",
    ]


def test_times_are_foretold_without_the_first_part(monkeypatch, capsys):
    """During which programs are compiled; once, and after a second."""
    now = iter([0.0, 60.0, 60.5, 62.0, 64.0])
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(progress, "time", clock)
    next(now)  # when it began
    forecast = progress.Forecast("training")
    for done in (10, 11, 20, 30):
        forecast.update(done, 100)
    assert capsys.readouterr().out == (
        "training takes about 16 s more on this machine\n"
    )


def test_times_of_bars_are_foretold(monkeypatch, capsys):
    """Of those that follow too."""
    now = itertools.count(0.0, 0.6)
    clock = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(progress, "time", clock)
    forecast = progress.Forecast("drawing")
    with forecast.watching(later=20):
        assert list(_extras.progress("points", range(10))) == list(range(10))
    with forecast.watching():
        assert list(_extras.progress("points", range(3))) == [0, 1, 2]
    assert _extras.SHOWN_BY == []
    assert capsys.readouterr().out == "drawing takes about 17 s more on this machine\n"


def test_seconds_before_an_interruption_are_counted(tmp_path, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(unfinished, "time", clock)
    kept = Unfinished(tmp_path / "unfinished.json", {"steps": 3})
    clock.now = 107.0
    kept["a"] = 1
    clock.now = 112.0
    with pytest.raises(KeyboardInterrupt), kept.timed():
        raise KeyboardInterrupt
    clock.now = 500.0  # the next day
    again = Unfinished(tmp_path / "unfinished.json", {"steps": 3})
    clock.now = 503.0
    assert again.seconds == 15.0


def test_json_has_no_number_that_is_not_finite():
    document = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": -math.inf, "d": None}}
    assert json.loads(json_text(document)) == {
        "a": [1.5, None, [None, 2]],
        "b": {"c": None, "d": None},
    }


def test_results_are_kept_for_the_same_whole_alone(tmp_path):
    path = tmp_path / "unfinished.json"
    kept = Unfinished(path, {"steps": 3})
    kept["a"] = (1.5, math.nan)
    again = Unfinished(path, {"steps": 3})
    assert list(again) == ["a"]
    assert again["a"] == [1.5, None]
    assert not len(Unfinished(path, {"steps": 4}))
    path.write_text("[]")
    assert not len(Unfinished(path, {"steps": 3}))
    again.remove()
    assert not path.exists()


def test_loops_end_where_an_interruption_is_looked_for():
    interruptions.reset()
    interruptions.check()
    with interruptions.deferred() as arrived:
        interruptions._watch.note(2, None)
        interruptions.check()  # a loop that ends by itself is left alone
        assert arrived()
    with pytest.raises(KeyboardInterrupt):
        interruptions.check()
    interruptions.reset()
    assert interruptions.line() == "interrupted: nothing was done yet"
    interruptions.advise(lambda: "interrupted at step 3")
    assert interruptions.line() == "interrupted at step 3"
    interruptions.reset()


def test_without_the_extra_the_command_says_what_to_install():
    """In a process that cannot import any package of it."""
    program = """
    import sys
    extra = {extra!r}
    sys.modules.update(dict.fromkeys(extra))
    from smoothout_jax.experiments import cli
    assert cli.EXTRA == extra
    for words in (["--version"], ["train"]):
        try:
            cli.main(words)
        except SystemExit as end:
            print("exit code", end.code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program.format(extra=cli.EXTRA))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[1:] == ["exit code 0", "exit code 2"]
    (line,) = done.stderr.splitlines()
    assert "pip install" in line
    assert "smoothout-jax[experiments]" in line
