"""Damaged files, leftovers, and files of other settings."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import QUICK, commands_on, copied, digests, refused, run, spied, write

from smoothout_jax.experiments.data.datasets import load
from smoothout_jax.experiments.options import InputError
from smoothout_jax.experiments.training import task
from smoothout_jax.experiments.training.checkpoints import steps_of

pytestmark = pytest.mark.usefixtures("standard_promotion")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def save_one_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def save_other_names(path):
    np.savez(path, pictures=np.zeros(2))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def scramble(path):
    path.write_bytes(b"\x00\xff" * 40)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (make_a_folder, "cannot be read"),
        (save_one_array, "holds one array"),
        (save_other_names, "is damaged, or has no arrays"),
        (cut, "is damaged, or has no arrays"),
        (scramble, "is damaged, or has no arrays"),
        (empty, "is damaged, or has no arrays"),
    ],
)
def test_damaged_data_are_named(damage, message, part, tmp_path):
    damage(write(write(tmp_path), "test") / f"{part}.npz")
    with pytest.raises(InputError, match=f"{tmp_path}/{part}.npz {message}"):
        load("npz", tmp_path, None)


def test_every_command_names_missing_data(checkpoint, tmp_path, capsys):
    folder = write(tmp_path / "data")
    for command in commands_on(checkpoint, folder).values():
        line = refused(capsys, *command, output=tmp_path / "output")
        assert f"{folder}/test.npz does not exist" in line


@pytest.mark.parametrize("command", ["sharpness", "landscape"])
def test_folders_that_are_not_checkpoints_are_refused(
    command, compared, tmp_path, capsys
):
    (tmp_path / "empty" / "much").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    sgd = compared / "checkpoints" / "sgd"
    for paths, message in (
        ([compared], f"is not a checkpoint, but holds some: give {sgd}"),
        ([compared / "checkpoints"], f"but holds some: give {sgd}"),
        ([tmp_path / "empty"], f"{tmp_path}/empty is not a checkpoint of smoothout"),
        ([tmp_path / "file"], f"checkpoint {tmp_path}/file is not a folder"),
        ([sgd, tmp_path / "none"], f"checkpoint {tmp_path}/none does not exist"),
        ([sgd, sgd], f"checkpoint {sgd} is given twice"),
    ):
        assert message in refused(capsys, command, *paths, output=tmp_path / "output")


def change_largest(path, change):
    files = [file for file in path.rglob("*") if file.is_file()]
    file = max(files, key=lambda file: file.stat().st_size)
    file.write_bytes(change(bytearray(file.read_bytes())))


def flipped(content):
    content[len(content) // 2] ^= 1
    return content


def describe_another_network(path):
    about = path / "about" / "metadata"
    text = about.read_text()
    about.write_text(text.replace('"hidden_sizes": [4]', '"hidden_sizes": [9]'))
    assert about.read_text() != text


DAMAGES = {
    "truncated": lambda path: change_largest(path, lambda all: all[: len(all) // 2]),
    "flipped": lambda path: change_largest(path, flipped),
    "no settings": lambda path: shutil.rmtree(path / "about"),
    "no parameters": lambda path: shutil.rmtree(path / "params"),
    "another network": describe_another_network,
}
LOAD = """
import pathlib, sys
from smoothout_jax.experiments import options
from smoothout_jax.experiments import trained_networks
for path in sys.argv[1:]:
    try:
        trained_networks.load_checkpoint(pathlib.Path(path))
    except options.InputError as error:
        print(error)
"""


def test_a_damaged_checkpoint_is_named(checkpoint, tmp_path):
    """In a process of its own, as Orbax leaves tasks behind when its storage fails."""
    for name, damage in DAMAGES.items():
        damage(copied(checkpoint, tmp_path / name))
    paths = [tmp_path / name for name in DAMAGES]
    command = [sys.executable, "-c", LOAD, checkpoint, *paths]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    assert len(lines) == len(paths), ended
    for line, path in zip(lines, paths, strict=True):
        assert line.startswith(f"checkpoint {path} is damaged")


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
        other = command, broken, "--data-dir", data
        assert before in refused(capsys, *other, output=tmp_path / "output")
    shutil.rmtree(broken / "checkpoints" / "4")
    run(*words, output=broken)
    assert digests(broken) == digests(trained_run)


def test_a_damaged_log_is_refused_and_a_missing_one_restarted(
    trained_run, data, tmp_path, capsys
):
    """Leftovers of a killed process are removed too."""
    broken = copied(trained_run, tmp_path / "run")
    shutil.rmtree(broken / "checkpoints" / "4")
    log, words = broken / "log.csv", ("train", "--resume", "--data-dir", data)
    for text in (b"nonsense\n1\n", b"step,seconds\nx,1\n", b"\xff\xfe,\n"):
        log.write_bytes(text)
        assert f"{log} is damaged" in refused(capsys, *words, output=broken)
    log.unlink()
    for name in (".unfinished-3.orbax-checkpoint-tmp", ".unfinished-4"):
        (broken / "checkpoints" / name / "params").mkdir(parents=True)
    (broken / ".unfinished-log.csv").write_text("step")
    run(*words, "--keep", 1, output=broken)
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["4"]
    assert not list(broken.glob(".*"))
    assert json.loads((broken / "settings.json").read_text())["keep"] == 1


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
def test_damaged_evidence_is_named(text, tmp_path, capsys):
    (tmp_path / "batches-smoke.json").write_text(text)
    line = refused(capsys, "evidence", "batches", "--form", "smoke", output=tmp_path)
    assert f"{tmp_path}/batches-smoke.json is damaged" in line


def test_landscapes_that_are_damaged_or_others_are_not_overwritten(
    checkpoint, data, tmp_path, capsys
):
    words = "landscape", checkpoint, "--kind", "curve", "--points", 3
    words = *words, "--data-dir", data
    run(*words, output=tmp_path)
    line = refused(capsys, *words, "--seed", 1, output=tmp_path)
    assert "curve-sgd.npz holds another landscape" in line
    for damage in (cut, scramble, save_one_array):
        damage(tmp_path / "curve-sgd.npz")
        line = refused(capsys, *words, output=tmp_path)
        assert "curve-sgd.npz is not a landscape, or is damaged" in line


def test_data_are_loaded_and_losses_compiled_once(
    checkpoint, data, tmp_path, monkeypatch
):
    """However many checkpoints share a data set and a network."""
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
