"""The command `smoothout evidence`: its trials, its comparisons, how it continues."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run, strict

from smoothout_jax.experiments import cli
from smoothout_jax.experiments.commands import evidence, trials
from smoothout_jax.experiments.commands.trials import BEYOND, case_settings
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS, FIRST_TRIAL_SEED, TRIALS
from smoothout_jax.experiments.training import comparison
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
NAME = "f1, batch 20"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp("evidence")
    cli.main(["evidence", "batches", "--form", "smoke", "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def document(output):
    return json.loads((output / "batches-smoke.json").read_text())


@pytest.mark.slow
def test_every_method_gets_as_many_trials_and_chooses_the_best(document):
    """At SGD's best learning rate, the default one, those between; beyond ends too."""
    trials = document["cases"][NAME]["trials"]
    assert list(trials) == ["sgd", "sam", "adasmoothout-split"]
    tuned = trials["sgd"]["chosen"]
    assert tuned != 0.1
    for name, trial in trials.items():
        found = trial.get("at_each_learning_rate", [trial])
        low, high = sorted((tuned, 0.1))
        between = [s for s in trials["sgd"]["strengths"] if low < s < high]
        rates = [0.1] if name == "sgd" else [tuned, *between, 0.1]
        assert [each["learning_rate"] for each in found] == rates
        planned = TRIALS[METHODS[name].strength]
        assert len(planned) == 6
        for each in found:
            strengths, means = each["strengths"], np.mean(each["accuracies"], 1)
            inside = [s for s in strengths if planned[0] <= s <= planned[-1]]
            assert tuple(inside) == planned
            assert len(strengths) <= len(planned) + 2 * BEYOND
            assert means[strengths.index(each["chosen"])] == means.max()
        best = max(np.mean(each["accuracies"], 1).max() for each in found)
        means = np.mean(trial["accuracies"], 1)
        assert means[trial["strengths"].index(trial["chosen"])] == best


def test_trials_never_see_the_test_images():
    (case,) = EXPERIMENTS["batches"]["smoke"]
    trial, final = (
        Task(case_settings(case, Path(), held_out=held_out)).data
        for held_out in (True, False)
    )

    def images(array):
        return {image.tobytes() for image in np.asarray(array)}

    held_out, test = images(trial.test_images), images(final.test_images)
    assert len(held_out) == 20
    assert not held_out & test
    assert not images(trial.train_images) & (held_out | test)
    assert held_out | images(trial.train_images) == images(final.train_images)
    for forms in EXPERIMENTS.values():
        for cases in forms.values():
            for each in cases:
                assert each.seeds <= FIRST_TRIAL_SEED


def test_methods_are_compared_at_what_they_chose(document):
    """SAM's second seed, trained once more on its own."""
    (case,) = EXPERIMENTS["batches"]["smoke"]
    found = document["cases"][NAME]
    chosen = {name: trial["chosen"] for name, trial in found["trials"].items()}
    assert found["settings"]["learning_rate"] == chosen["sgd"]
    settings = case_settings(case, Path(), held_out=False)
    rate = found["trials"]["sam"]["learning_rate"]
    task = Task(dataclasses.replace(settings, learning_rate=rate))
    for held, steps in (("equal_updates", 4), ("equal_gradients", 2)):
        trainer = Trainer(METHODS["sam"], task, [1], [chosen["sam"]], steps=steps)
        trainer.advance(0, steps)
        loss = task.evaluate(*trainer.networks()[0])["test loss"]
        outcome = found[held]["outcomes"]["sam"]
        assert outcome["test_loss"][1] == pytest.approx(loss, rel=1e-3)


def test_cases_that_are_there_are_not_run_again(output, document, monkeypatch):
    monkeypatch.setattr(evidence, "examine", lambda *_: pytest.fail("it ran again"))
    cli.main(["evidence", "batches", "--form", "smoke", "--output", str(output)])
    assert json.loads((output / "batches-smoke.json").read_text()) == document


def test_results_of_another_plan_are_not_added_to(document, tmp_path, capsys):
    other = json.loads(json.dumps(document))
    other["plan"][NAME]["seeds"] = 9
    path = tmp_path / "batches-smoke.json"
    path.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evidence", "batches", "--form", "smoke", "--output", str(tmp_path)])
    assert f"case '{NAME}' of another plan" in capsys.readouterr().err
    assert json.loads(path.read_text()) == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rivals --form smoke", "form must be one of 'cpu'; got 'smoke'"),
        (
            "batches --cases mlp",
            "cases must be one of 'digits, 500 images, mlp, batch 50, 1000 steps', 'di",
        ),
    ],
)
def test_bad_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["evidence", *options.split()])
    assert message in capsys.readouterr().err


class StoppedError(Exception):
    """Ends a command in the middle."""


@pytest.mark.slow
def test_experiments_that_are_continued_have_the_same_bits(tmp_path, monkeypatch):
    """There are a trial of MSAM, and four turns of each; the last turn is repeated."""
    (case,) = EXPERIMENTS["batches"]["smoke"]
    few = {"learning_rate": (0.1,), "msam_rho": (0.1, 0.3)}
    monkeypatch.setattr(trials, "BEYOND", 0)
    monkeypatch.setattr(comparison, "SECONDS_BETWEEN_SAVES", 0.0)
    case = dataclasses.replace(case, methods=("sgd", "msam"), trials=few)
    monkeypatch.setitem(EXPERIMENTS["batches"], "smoke", (case,))
    words, calls = ["evidence", "batches", "--form", "smoke"], []
    advance = Trainer.advance

    def stopping(trainer, start, stop):
        calls.append((start, stop))
        if len(calls) in (3, 5):
            raise StoppedError
        return advance(trainer, start, stop)

    monkeypatch.setattr(Trainer, "advance", stopping)
    for _ in range(2):
        with pytest.raises(StoppedError):
            run(*words, output=tmp_path / "parts")
    kept = strict((tmp_path / "parts/unfinished.json").read_text())
    run(*words, output=tmp_path / "parts")
    turns = [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (3, 4), (3, 4)]
    assert calls == [(0, 4), *turns[:2], turns[1], *turns[2:3], turns[2], *turns[3:]]
    run(*words, output=tmp_path / "whole")
    parts, whole = (
        strict((tmp_path / name / "batches-smoke.json").read_text())["cases"][case.name]
        for name in ("parts", "whole")
    )
    assert 60 * parts["minutes"] > kept["seconds"] > 0
    assert parts["trials"] == whole["trials"]
    assert parts["equal_updates"]["outcomes"] == whole["equal_updates"]["outcomes"]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [
        "batches-smoke.json"
    ]
