"""Commands as the tests run them, and what they say when they end."""

import json
import signal

import numpy as np
import pytest

from smoothout_jax.experiments import cli, interruptions

SMALL = "--hidden-sizes 4 --batch-size 8"
COMPARE = f"{SMALL} --steps 4 --seeds 2 --methods sgd --noise-samples 2"
TRAIN = f"{SMALL} --steps 4 --evaluate-every 2 --checkpoint-minutes 0 --method sgd"
QUICK = "--noise-samples 2 --repetitions 1 --probes 2 --measures expected sam"


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


def run(*arguments, output):
    cli.main([*map(str, arguments), "--output", str(output)])


def untrained(monkeypatch, capsys, *arguments):
    """What a command says, in one line, that refuses its options before it trains."""
    monkeypatch.setattr(cli, "_run", lambda *_: pytest.fail("it trained"))
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments])
    return " ".join(capsys.readouterr().err.split())


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


def strict(text):
    """JSON as its standard has it, without NaN."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(word))


def commands_on(checkpoint, data):
    """Each command that reads such data."""
    own = ["--data", "npz", "--data-dir", data]
    return {
        "train": ["train", *TRAIN.split(), *own],
        "compare": ["compare", *COMPARE.split(), *own],
        "sharpness": ["sharpness", checkpoint, *QUICK.split(), "--data-dir", data],
        "landscape": ["landscape", checkpoint, "--points", 3, "--data-dir", data],
    }


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


def spied(monkeypatch, holder, name, interrupted_at=None):
    """Lists the calls of a function; at one of them the command is interrupted."""
    calls, function = [], getattr(holder, name)

    def spy(*arguments, **options):
        calls.append(arguments)
        if len(calls) == interrupted_at:
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
