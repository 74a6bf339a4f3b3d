"""Training that diverges or does not learn."""

import json

import pytest
from command_line import COMPARE, TRAIN, checked, refused, run, strict

from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.training.checkpoints import steps_of
from smoothout_jax.experiments.training.outcome import Guessing

pytestmark = pytest.mark.usefixtures("standard_promotion")


def row_of(name, shown):
    """The cells of a row of the table, not the lines that report progress."""
    lines = (line for line in shown.splitlines() if not line.startswith("compiling"))
    (row,) = (line.split() for line in lines if name in line)
    return row


def test_methods_that_diverge_are_named_and_the_others_kept(tmp_path, capsys):
    options = [*COMPARE.split(), "--methods", "smoothout-fixed", "--radius", "1e30"]
    with pytest.raises(SystemExit) as ended:
        run("compare", *options, output=tmp_path)
    shown = capsys.readouterr()
    line = checked(shown.err, ended.value.code)
    assert "SmoothOut, fixed diverged from 2 of 2 seeds (0 1)" in line
    assert "lower the learning_rate (0.1) or radius (1e+30)" in line
    assert row_of("fixed", shown.out)[:3] == ["SmoothOut,", "fixed", "diverged"]
    summary = strict((tmp_path / "results.json").read_text())["summary"]
    assert summary["sgd"]["test_accuracy"][0] > 0
    assert "seeds to tell" not in shown.out
    assert summary["smoothout-fixed"].keys() == {"diverged", "relative_step_time"}
    path = tmp_path / "checkpoints" / "smoothout-fixed"
    for command in ("sharpness", "landscape"):
        line = refused(capsys, command, path, output=tmp_path / "other")
        assert f"{path}: training from seed 0 diverged" in line


def test_methods_that_do_not_learn_are_named(tmp_path, capsys):
    """Noise this strong makes the network give the same output for all images."""
    methods = "--methods", "smoothout-fixed", "smoothout"
    options = [*methods, "--radius", "2", "--steps", "60"]
    run("compare", *COMPARE.split(), *options, output=tmp_path)
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("smoothout: warning: SmoothOut did not learn from 2")
    assert "; SmoothOut, fixed did not learn from 2" in line
    assert "nats, is not below that of guessing, 2.302: train for longer" in line
    assert "or lower the learning_rate (0.1) or radius (2)" in line
    row = row_of("fixed", shown.out)
    assert row[:5] == ["SmoothOut,", "fixed", "did", "not", "learn"]
    assert len(row) == 6  # the time of a step
    assert "SGD fits" not in shown.out  # nothing follows for noise
    summary = strict((tmp_path / "results.json").read_text())["summary"]
    assert summary["smoothout-fixed"]["did_not_learn"] == [0, 1]
    assert summary["smoothout-fixed"]["test_accuracy"][0] < 20
    assert "did_not_learn" not in summary["sgd"]


def test_a_network_that_does_not_learn_gets_a_warning(tmp_path, capsys):
    words = [*TRAIN.split(), "--method", "smoothout-fixed", "--radius", "2"]
    run("train", *words, "--steps", "60", output=tmp_path)
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("smoothout: warning: SmoothOut, fixed did not learn: its tr")
    assert steps_of(tmp_path)[-1] == 60
    assert "train accuracy" in shown.out


def test_experiments_mark_what_did_not_learn(tmp_path, capsys):
    (case,) = EXPERIMENTS["batches"]["smoke"]
    figures = {"test_accuracy": [9.9, 0.1], "difference_to_sgd": [-80.0, -81.0, -79.0]}
    summary = {
        "sgd": figures | {"test_accuracy": [90.0, 0.1]},
        "sam": figures | {"did_not_learn": [1]},
        "msam": figures,
    }
    plan = {case.name: case.to_json()}
    cases = {case.name: {"trials": summary, "equal_updates": {"summary": summary}}}
    path = tmp_path / "batches-smoke.json"
    for sgd, row in (({}, "90.00 ± 0.10"), ({"did_not_learn": [0]}, "did not learn")):
        summary["sgd"] |= sgd
        path.write_text(
            json.dumps(
                {"experiment": "batches", "form": "smoke", "plan": plan, "cases": cases}
            )
        )
        run("evidence", "batches", "--form", "smoke", output=tmp_path)
        shown = capsys.readouterr()
        assert f"SAM did not learn in {case.name}" in shown.err
        (line,) = (line for line in shown.out.splitlines() if case.name in line)
        # A difference from a network that did not learn means nothing.
        cells = [row, "did not learn", *([] if sgd else ["-80.00"])]
        assert line.removeprefix(case.name).split() == " ".join(cells).split()


def test_without_a_baseline_there_are_no_differences(tmp_path, capsys):
    options = [*COMPARE.split(), "--learning-rate", "1e30"]
    with pytest.raises(SystemExit) as ended:
        run("compare", *options, output=tmp_path)
    shown = capsys.readouterr()
    assert "SGD diverged from 2 of 2" in checked(shown.err, ended.value.code)
    assert "nan" not in shown.out
    strict((tmp_path / "results.json").read_text())
    assert "nan" not in (tmp_path / "results.csv").read_text()


@pytest.mark.parametrize(
    ("loss", "accuracy", "learned"),
    [
        (2.2, 0.1, True),
        (3.0, 0.5, True),  # the right labels of images whose wrong ones raise the loss
        (3.0, 0.12, False),
        (2.3 - 1e-6, 0.1, False),
    ],
)
def test_a_network_that_beats_guessing_has_learned(loss, accuracy, learned):
    assert Guessing(2.3, 0.13).beaten_by(loss, accuracy) == learned
