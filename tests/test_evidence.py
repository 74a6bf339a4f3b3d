"""The command `smoothout evidence`: what it writes and how it continues."""

import dataclasses
import json
from pathlib import Path

import pytest
from command_line import refused, run, strict

from smoothout_jax.experiments.commands import evidence, trials
from smoothout_jax.experiments.commands.trials import case_settings
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.training import comparison
from smoothout_jax.experiments.training.task import Task
from smoothout_jax.experiments.training.trainer import Trainer

SMOKE = "evidence", "batches", "--form", "smoke"

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def case():
    """The case of the smoke test, with two strengths of MSAM and nothing beyond."""
    (case,) = EXPERIMENTS["batches"]["smoke"]
    few = {"learning_rate": (0.1,), "msam_rho": (0.1, 0.3)}
    case = dataclasses.replace(case, methods=("sgd", "msam"), trials=few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "BEYOND", 0)
        patch.setattr(comparison, "SECONDS_BETWEEN_SAVES", 0.0)
        patch.setitem(EXPERIMENTS["batches"], "smoke", (case,))
        yield case


@pytest.fixture(scope="module")
def whole(case, tmp_path_factory):
    output = tmp_path_factory.mktemp("evidence")
    run(*SMOKE, output=output)
    return output / "batches-smoke.json"


def test_methods_are_compared_at_what_they_chose(case, whole):
    """MSAM's second seed, trained once more on its own."""
    found = strict(whole.read_text())["cases"][case.name]
    trial = found["trials"]["msam"]
    assert trial["strengths"] == [0.1, 0.3]
    task = Task(case_settings(case, Path(), held_out=False))
    trainer = Trainer(METHODS["msam"], task, [1], [trial["chosen"]])
    trainer.advance(0, trainer.steps)
    loss = task.evaluate(*trainer.networks()[0])["test loss"]
    outcome = found["equal_updates"]["outcomes"]["msam"]
    assert outcome["test_loss"][1] == pytest.approx(loss, rel=1e-3)


def test_finished_cases_are_not_run_again(whole, monkeypatch):
    before = whole.read_text()
    monkeypatch.setattr(evidence, "examine", lambda *_: pytest.fail("it ran again"))
    run(*SMOKE, output=whole.parent)
    assert json.loads(whole.read_text()) == json.loads(before)


def test_results_of_another_plan_are_not_added_to(case, whole, tmp_path, capsys):
    other = json.loads(whole.read_text())
    other["plan"][case.name]["seeds"] = 9
    (tmp_path / whole.name).write_text(json.dumps(other))
    line = refused(capsys, *SMOKE, output=tmp_path)
    assert f"case '{case.name}' of another plan" in line


class StoppedError(Exception):
    """Ends a command in the middle."""


@pytest.mark.slow
def test_an_experiment_that_is_continued_has_the_same_bits(
    case, whole, tmp_path, monkeypatch
):
    """It has a trial of MSAM and four turns of each; the last turn is repeated."""
    calls, advance = [], Trainer.advance

    def stopping(trainer, start, stop):
        calls.append((start, stop))
        if len(calls) in (3, 5):
            raise StoppedError
        return advance(trainer, start, stop)

    monkeypatch.setattr(Trainer, "advance", stopping)
    for _ in range(2):
        with pytest.raises(StoppedError):
            run(*SMOKE, output=tmp_path)
    kept = strict((tmp_path / "unfinished.json").read_text())
    run(*SMOKE, output=tmp_path)
    turns = [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (3, 4), (3, 4)]
    assert calls == [(0, 4), *turns[:2], turns[1], *turns[2:3], turns[2], *turns[3:]]
    (path,) = tmp_path.iterdir()
    parts, expected = (
        strict(each.read_text())["cases"][case.name] for each in (path, whole)
    )
    assert 60 * parts["minutes"] > kept["seconds"] > 0
    assert parts["trials"] == expected["trials"]
    assert parts["equal_updates"]["outcomes"] == expected["equal_updates"]["outcomes"]
