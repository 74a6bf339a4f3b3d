"""Files that commands find: damaged, left over, of other settings, or several."""

import json
import shutil

import jax
import numpy as np
import pytest
from command_line import QUICK, commands_on, refused, run, spied, write

from smoothout_jax.experiments.training import task
from smoothout_jax.experiments.training.checkpoints import steps_of

pytestmark = pytest.mark.usefixtures("standard_promotion")


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


def test_leftovers_of_a_killed_process_are_removed(trained_run, data, tmp_path):
    left = copied(trained_run, tmp_path / "run")
    shutil.rmtree(left / "checkpoints" / "4")
    for name in (".unfinished-3.orbax-checkpoint-tmp", ".unfinished-4"):
        (left / "checkpoints" / name / "params").mkdir(parents=True)
    (left / ".unfinished-log.csv").write_text("step")
    run("train", "--resume", "--data-dir", data, output=left)
    assert sorted(path.name for path in (left / "checkpoints").iterdir()) == ["2", "4"]
    assert not list(left.glob(".*"))


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
