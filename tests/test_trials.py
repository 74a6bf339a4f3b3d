"""The trials of an experiment: what each method tries and chooses."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from smoothout_jax.experiments.commands import evidence, trials
from smoothout_jax.experiments.plans import EXPERIMENTS, FIRST_TRIAL_SEED, Case, widened
from smoothout_jax.experiments.training.resuming import SavedResults

CASE = Case(
    data="digits",
    network="mlp",
    batch_size=10,
    methods=("sgd", "sam", "msam"),
    validation_size=20,
    seeds=2,
    trial_seeds=2,
    training={"train_size": 60, "steps": 4},
    trials={
        "learning_rate": (0.01, 0.1, 1.0),
        "rho": (0.1, 0.2, 0.4),
        "msam_rho": (1.0, 2.0, 4.0),
        "weight_decay": (1e-3, 1e-2),
    },
)


@pytest.mark.parametrize(
    ("setting", "strengths", "low", "expected"),
    [
        ("rho", (0.1, 0.2, 0.6), False, 1.8),
        ("rho", (0.1, 0.2, 0.6), True, 0.05),
        ("learning_rate", (0.003, 0.01, 0.03), True, 0.0009),
        ("momentum", (0.5, 0.9), False, 0.988),
        ("ema_decay", (0.5, 0.9), True, 0.1),
        ("dropout", (0.2, 0.5), False, 0.8),
        ("label_smoothing", (0.02, 0.05), True, 0.00785),
        ("shift", (0, 1, 3), False, 5),
        ("shift", (1, 2, 3), True, 0),
        ("shift", (0, 1, 2), True, None),
    ],
)
def test_grids_are_widened_beyond_an_end(setting, strengths, low, expected):
    """By the last ratio of sizes or odds, or the last difference of shifts."""
    assert widened(setting, strengths, low) == expected


class FakeTask:
    """Settings, with the accuracies that `FakeTrainer` made of them as networks."""

    loaded = 0

    def __init__(self, settings, data=None):
        FakeTask.loaded += data is None
        self.settings, self.data = settings, data or "the data"

    def evaluate(self, accuracy, seed):
        """An accuracy on the held-out images, and a lower one on those trained on."""
        del seed
        return {"test accuracy": accuracy, "train accuracy": accuracy / 2}


@pytest.fixture
def accuracies(monkeypatch):
    """Makes accuracies a function of method, settings, strength and seed."""
    seen = []

    def install(function):
        class FakeTrainer:
            steps = 4

            def __init__(self, method, task, seeds, strengths=None):
                self.task = task
                self._found = [
                    (function(method.label, task.settings, strength, seed), seed)
                    for strength, seed in zip(
                        strengths or itertools.repeat(None), seeds, strict=False
                    )
                ]
                seen.append((method.label, task.settings, strengths, list(seeds)))

            def advance(self, start, stop):
                assert (start, stop) == (0, 4)

            def networks(self):
                return self._found

        monkeypatch.setattr(trials, "Trainer", FakeTrainer)
        return seen

    monkeypatch.setattr(trials, "Task", FakeTask)
    return install


def tried(method, plain=None, case=CASE, **options):
    """The trials of one method alone."""
    settings = trials.case_settings(case, Path(), held_out=True)
    return trials.try_method(method, case, FakeTask(settings), plain, **options)


def plain_at(accuracy):
    return {"accuracies": [[0.1, 0.1], [accuracy, accuracy]]}


@pytest.mark.parametrize(
    ("method", "accuracy", "sgd", "expected", "chosen"),
    [
        # Above, while the best is there, but at most two beyond.
        ("sam", lambda x: 1 - abs(x - 0.8), 0, [0.1, 0.2, 0.4, 0.8, 1.6], 0.8),
        ("sam", lambda x: x / 10, 0, [0.1, 0.2, 0.4, 0.8, 1.6], 1.6),
        ("sam", lambda x: 1 - abs(x - 0.2), 0, [0.1, 0.2, 0.4], 0.2),
        # Below, only if it is better than SGD; learning rates in any case.
        ("sam", lambda x: 1 - x, 0.85, [0.025, 0.05, 0.1, 0.2, 0.4], 0.025),
        ("sam", lambda x: 1 - x, 0.9, [0.1, 0.2, 0.4], 0.1),
        ("sgd", lambda x: 0.5 - x / 10, None, [1e-4, 1e-3, 0.01, 0.1, 1.0], 1e-4),
        # Of equal ones, the weakest, but the largest learning rate.
        ("sam", lambda x: 0.5 + 0.1 * (x > 0.1), 0.5, [0.1, 0.2, 0.4], 0.2),
        ("sgd", lambda x: 0.6 - 0.1 * (x > 0.1), None, [0.01, 0.1, 1.0], 0.1),
    ],
)
def test_trials_continue_beyond_the_end_with_the_best_strength(
    method, accuracy, sgd, expected, chosen, accuracies
):
    accuracies(lambda method, settings, strength, seed: accuracy(strength))
    found = tried(method, plain=None if sgd is None else plain_at(sgd))
    assert found["strengths"] == expected
    assert found["chosen"] == chosen
    assert found["accuracies"] == [[accuracy(each)] * 2 for each in expected]
    assert found["train_accuracies"][0] == [accuracy(expected[0]) / 2] * 2


def test_a_strength_that_diverges_from_a_seed_is_not_chosen(accuracies):
    def accuracy(method, settings, strength, seed):
        return np.nan if strength >= 0.2 and seed % 2 else strength

    accuracies(accuracy)
    found = tried("sam", plain=plain_at(0.9))
    assert (found["strengths"], found["chosen"]) == ([0.1, 0.2, 0.4], 0.1)


def test_each_strength_is_tried_from_the_seeds_of_trials(accuracies):
    seen = accuracies(lambda method, settings, strength, seed: seed - 1000 + strength)
    found = tried("msam", plain=plain_at(0.5))
    assert found["accuracies"][:3] == [[1.0, 2.0], [2.0, 3.0], [4.0, 5.0]]
    for _, _, strengths, seeds in seen:
        assert seeds == [1000, 1001] * (len(strengths) // 2)


@pytest.mark.parametrize("needed", [True, False])
def test_a_held_rise_has_one_strength(needed, accuracies):
    seen = accuracies(lambda method, settings, strength, seed: 0.7)
    case = dataclasses.replace(CASE, holds_rise=True)
    found = tried("adasmoothout", case=case, needed=needed)
    assert (found["strengths"], found["chosen"]) == ([0.15], 0.15)
    assert found["accuracies"] == ([[0.7, 0.7]] if needed else [])
    assert len(seen) == needed


def test_rises_are_tried_where_they_are_planned(accuracies):
    accuracies(lambda method, settings, rise, seed: 0.9 - abs(np.log(rise / 1.1)))
    planned = CASE.trials | {"loss_rise": (0.1, 0.3, 1.0)}
    case = dataclasses.replace(CASE, holds_rise=True, trials=planned)
    found = tried("adasmoothout", case=case)
    assert found["strengths"] == [0.1, 0.3, 1.0, 3.3]
    assert found["chosen"] == 1.0


def by_rate(best):
    """SGD is best at this rate; the methods at 0.1, with strengths of 0.2 and 2."""

    def accuracy(method, settings, strength, seed):
        del seed
        if method == "SGD":
            return 0.9 - abs(np.log(strength / best)) / 100
        far = abs(np.log(settings.learning_rate / 0.1)) / 100
        return 0.8 - far - 0.1 * (strength not in (0.2, 2.0))

    return accuracy


@pytest.fixture
def kept(tmp_path):
    return SavedResults(tmp_path, CASE.to_json())


@pytest.mark.parametrize(
    ("best", "rates"), [(10.0, [10.0, 1.0, 0.1]), (0.1, [0.1]), (0.01, [0.01, 0.1])]
)
def test_methods_try_the_learning_rates_from_sgd_s_best_to_the_default(
    best, rates, accuracies, kept, tmp_path
):
    seen = accuracies(by_rate(best))
    before = FakeTask.loaded
    found = trials.try_strengths(CASE, Path(), kept)
    assert FakeTask.loaded - before == 2  # for SGD, and for all others
    assert list(found) == ["sgd", "sam", "msam"]
    assert found["sgd"]["chosen"] == best
    for name, strength in (("sam", 0.2), ("msam", 2.0)):
        each = found[name]["at_each_learning_rate"]
        tried = [
            settings.learning_rate
            for label, settings, strengths, _ in seen
            if label == name.upper()
        ]
        assert list(dict.fromkeys(tried)) == rates
        assert [trial["learning_rate"] for trial in each] == rates
        assert [trial["chosen"] for trial in each] == [strength] * len(rates)
        assert found[name]["learning_rate"] == 0.1
        assert found[name]["accuracies"] == each[-1]["accuracies"]
    for _, settings, *_ in seen:
        assert settings.validation_size == 20
    again = SavedResults(tmp_path, CASE.to_json())
    accuracies(lambda *_: pytest.fail("it tried again"))
    assert trials.try_strengths(CASE, Path(), again) == found


def test_of_two_equal_learning_rates_methods_take_sgd_s(accuracies, kept):
    accuracies(lambda method, _, strength, seed: strength if method == "SGD" else 0.5)
    found = trials.try_strengths(CASE, Path(), kept)
    assert found["sam"]["learning_rate"] == found["sgd"]["chosen"] == 100.0


def test_learning_rates_from_which_sgd_diverges_are_kept_as_null(accuracies, kept):
    def accuracy(method, settings, strength, seed):
        diverged = method == "SGD" and strength > 0.1
        return np.nan if diverged else 0.5

    accuracies(accuracy)
    found = trials.try_strengths(CASE, Path(), kept)
    assert found["sgd"]["accuracies"][-1] == [None, None]
    assert found["sgd"]["chosen"] == 0.1
    assert found["sam"]["strengths"] == [0.1, 0.2, 0.4]


RECIPE_CASE = dataclasses.replace(CASE, recipe="weight_decay")


def with_recipe(method, settings, strength, seed):
    """SGD is best at a weight decay of 0.01, which the methods ignore."""
    if method == "SGD" and strength is None:
        return 0.95 - abs(np.log(settings.weight_decay / 0.01)) / 100
    return by_rate(best=1.0)(method, settings, strength, seed)


def test_a_recipe_is_tried_by_sgd_and_shared_by_all(accuracies, kept):
    seen = accuracies(with_recipe)
    found = trials.try_strengths(RECIPE_CASE, Path(), kept)
    assert list(found) == ["sgd", "recipe", "sam", "msam"]
    recipe = found["recipe"]
    assert (recipe["strengths"], recipe["chosen"]) == ([1e-3, 1e-2, 0.1], 1e-2)
    assert recipe["learning_rate"] == 1.0
    decays = [
        (method, strengths is None, settings.learning_rate, settings.weight_decay)
        for method, settings, strengths, _ in seen
    ]
    rates = [each for each in decays if each[:2] == ("SGD", False)]
    assert {decay for *_, decay in rates} == {0.0}
    recipes = [each[2:] for each in decays if each[:2] == ("SGD", True)]
    assert recipes == [(1.0, 1e-3), (1.0, 1e-2), (1.0, 0.1)]
    others = [each[2:] for each in decays if each[0] != "SGD"]
    assert others == [(1.0, 1e-2), (0.1, 1e-2)] * 2


def test_a_recipe_weaker_than_its_grid_must_beat_sgd_without(accuracies, kept):
    def accuracy(method, settings, strength, seed):
        if method == "SGD" and strength is None:
            return 0.9 - settings.weight_decay
        return by_rate(best=1.0)(method, settings, strength, seed)

    accuracies(accuracy)
    found = trials.try_strengths(RECIPE_CASE, Path(), kept)["recipe"]
    assert (found["strengths"], found["chosen"]) == ([1e-3, 1e-2], 1e-3)


def test_methods_must_beat_sgd_with_the_recipe(accuracies, kept):
    """0.92 is above SGD's 0.9, but below the 0.95 that it reaches with the recipe."""

    def accuracy(method, settings, strength, seed):
        if method == "SGD":
            return with_recipe(method, settings, strength, seed)
        return 0.92 - strength / 1000

    accuracies(accuracy)
    found = trials.try_strengths(RECIPE_CASE, Path(), kept)
    assert found["sam"]["strengths"] == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("case", [CASE, RECIPE_CASE])
def test_methods_are_compared_with_the_rates_strengths_and_recipe_chosen(
    case, accuracies, kept, monkeypatch, tmp_path
):
    accuracies(with_recipe)
    compared = []

    def record(settings, strengths, rates, *, curves):
        assert not curves
        compared.append((settings, strengths, rates))

    monkeypatch.setattr(evidence, "compare", record)
    monkeypatch.setattr(evidence, "_to_json", lambda results: {"found": results})
    evidence.examine(case, Path(), kept, tmp_path)
    strengths = {"sgd": 1.0, "sam": 0.2, "msam": 2.0}
    rates = {"sgd": 1.0, "sam": 0.1, "msam": 0.1}
    (settings, *chosen), (halved, *again) = compared
    assert chosen == again == [strengths, rates]
    for each in (settings, halved):
        assert each.learning_rate == 1.0
        assert each.weight_decay == (1e-2 if case.recipe else 0)
        assert each.validation_size == 0
    assert halved.equal_gradients
    assert halved.methods == ("sgd", "sam")


def test_images_that_a_comparison_watches_are_those_of_its_trials():
    for case in EXPERIMENTS["wrong-labels"]["cpu"]:
        held, final = (
            trials.case_settings(case, Path(), held_out=each) for each in (True, False)
        )
        assert held.validation_size == final.watch_size == case.validation_size > 0
        assert held.watch_size == final.validation_size == 0
        assert held.label_noise == final.label_noise > 0


def test_the_cases_of_a_plan_have_different_names():
    for experiment, forms in EXPERIMENTS.items():
        for form, cases in forms.items():
            names = [case.name for case in cases]
            assert len(set(names)) == len(names), (experiment, form)
            for case in cases:
                assert case.seeds <= FIRST_TRIAL_SEED
                for held_out in (True, False):
                    trials.case_settings(case, Path(), held_out=held_out)
