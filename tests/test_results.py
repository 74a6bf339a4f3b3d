"""The pages of the results: what stands there is what was measured."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from pages import choose, results
from pages.choose import mean, total
from pages.evidence import (
    CHOSEN,
    OURS,
    QUESTIONS,
    RISE,
    RISES,
    SHOWN,
    SWEPT,
    certain,
    holm,
    missing,
    read,
)
from smoothout_jax.experiments.commands.trials import case_settings
from smoothout_jax.experiments.plans import EXPERIMENTS, TRIALS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def committed():
    return read()


@pytest.fixture(scope="module")
def cases():
    return choose.cases()


def test_noise_helps_where_sgd_fits_and_rarely_elsewhere(cases):
    fits, short = total("fits"), total("short")
    assert fits.mean > 0
    assert fits.better > fits.undecided
    assert fits.worse == 0
    assert short.mean <= 0
    assert short.better < short.worse
    sure = certain(results.main_cases(), OURS)
    assert not any(each[:2] in sure for each in cases["short_gained"])


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (("large", OURS), ("small", OURS)),
        (("common", SWEPT), ("common", OURS)),
        (("common", OURS), ("common", "sam")),
        (("wrong", SWEPT), ("wrong", OURS)),
        (("rises", OURS), ("not_chosen", OURS)),
        (("parts", "adasmoothout"), ("parts", "smoothout")),
        *((("common", "msam"), ("common", name)) for name in SHOWN if name != "msam"),
    ],
    ids=str,
)
def test_what_is_advised_gains_more(more, less):
    assert mean(*more) > mean(*less)


def test_wrong_labels_choose_a_larger_rise_with_batch_norm(cases):
    def median(network):
        trials = [
            each.case["trials"][OURS]["chosen"]
            for each in cases["rises"]
            if each.settings["network"] == network
        ]
        return np.median(trials)

    assert median("f1") >= 1
    assert 0.1 <= median("mlp") <= 0.3


def test_pair_flips_mislead_some_sweeps(cases):
    pairs = cases["pairs"]
    assert any(each.difference(SWEPT)[0] < each.difference(OURS)[0] for each in pairs)


def test_noise_adds_to_recipes_and_least_to_dropout(cases):
    assert mean("recipes") > 0
    assert total("recipes").worse == 0
    gains: dict[str, list[float]] = {}
    for each in cases["recipes"]:
        recipe = each.name.split(", ")[-1]
        gains.setdefault(recipe, []).append(each.difference(OURS)[0])
    assert min(gains, key=lambda recipe: np.mean(gains[recipe])) == "dropout"


def test_de_noising_carries_the_gain_and_the_shape_of_the_noise_does_not():
    names = ("smoothout", "smoothout-gaussian", "no-denoising", OURS, "two-sided")
    gains = {name: mean("parts", name) for name in names}
    assert gains["no-denoising"] <= 0 < gains["smoothout"]
    assert abs(gains["smoothout-gaussian"] - gains["smoothout"]) < 0.5
    assert gains["two-sided"] < gains[OURS] + 0.5


def test_rounding_costs_less_after_noise():
    assert choose.lost(OURS) < choose.lost("sgd")


@pytest.mark.parametrize(
    ("group", "against"), [("fits", (-1.0, -1.5, -0.5)), ("short", (1.0, 0.5, 1.5))]
)
def test_what_went_against_the_prediction_is_named(group, against, committed):
    each = next(e for e in committed if e.group == group and "msam" in e.summary)
    assert results.exceptions([each]) == "no case"
    case = copy.deepcopy(each.case)
    case["equal_updates"]["summary"]["smoothout-fixed"]["difference_to_sgd"] = against
    said = results.exceptions([each._replace(case=case)])
    assert f"{each.label}: SmoothOut, fixed, {against[0]:+.2f} [" in said


def test_a_chosen_rise_stands_beside_the_fixed_one(committed):
    table = results.wrong_labels("test_accuracy").splitlines()
    rows = [row.split(" | ") for row in table]
    chosen = {e.name: e for e in committed if e.experiment == RISES}
    assert len(chosen) == 12
    for each in committed:
        if each.experiment == "wrong-labels":
            row = next(row for row in rows if row[0] == f"| {each.label}")
            fixed, found = each, chosen.get(each.name + CHOSEN)
            for cell, result in zip(row[2:4], (fixed, found), strict=True):
                figures = result and result.summary["adasmoothout"]["test_accuracy"]
                assert cell == (
                    f"{figures[0]:.1f} ± {figures[1]:.1f}" if figures else ""
                )


def test_every_committed_case_of_an_experiment_is_read(committed):
    for experiment in QUESTIONS:
        path = DOCS / "results" / f"{experiment}-cpu.json"
        cases = json.loads(path.read_text())["cases"] if path.exists() else {}
        assert {each.name for each in committed if each.experiment == experiment} == {
            *cases
        }


# Settings that results have and that are gone: all had these values.
GONE = {
    "base_batch_size": None,
    "learning_rate_rule": "none",
    "adapt_epochs": False,
    "statistics": "re-estimated",
}


def test_committed_results_are_of_the_plans(committed):
    for each in committed:
        if each.experiment == RISE:  # written before some settings
            continue
        plan = {case.name: case for case in EXPERIMENTS[each.experiment]["cpu"]}
        case = plan[each.name]
        settings = case_settings(case, Path(), held_out=False).to_json()
        chosen = {"learning_rate": each.case["trials"]["sgd"]["chosen"]}
        if case.recipe:
            chosen[case.recipe] = each.case["trials"]["recipe"]["chosen"]
        planned = json.loads(json.dumps(settings | chosen)) | GONE
        # A setting that is younger than the results had no other value then.
        assert planned | each.settings == planned


def test_no_strength_was_chosen_on_test_images(committed):
    """What was chosen is what was best in the trials, of the whole grid at least."""
    for each in committed:
        for name, trial in each.case["trials"].items():
            if not trial["accuracies"] or each.experiment == RISE:
                continue
            means = [
                np.nan_to_num(np.array(a, float)).mean() for a in trial["accuracies"]
            ]
            assert means[trial["strengths"].index(trial["chosen"])] == max(means), name
            assert len(trial["strengths"]) >= 5 or len(trial["strengths"]) == 1


def test_differences_are_those_of_the_accuracies_seed_by_seed(committed):
    for each in committed:
        for name in each.summary:
            if name == "sgd" or not each.difference(name):
                continue
            mean = (each.accuracies(name) - each.accuracies("sgd")).mean()
            assert each.difference(name)[0] == pytest.approx(mean, abs=1e-3)


def test_holm_rejects_until_the_first_that_stands():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.01, 0.04]) == [True, True]
    assert holm([0.04, 0.04]) == [False, False]
    # The next has a weaker threshold, which Bonferroni's correction has not.
    assert holm([0.02, 0.04]) == [True, True]


def test_cases_that_are_not_run_are_named(committed):
    there = {(each.experiment, each.name) for each in committed}
    for experiment in QUESTIONS:
        for case in EXPERIMENTS[experiment]["cpu"]:
            named = f"{experiment}: {case.name}" in missing([experiment])
            assert named == ((experiment, case.name) not in there)


def test_every_grid_reaches_from_no_effect_to_its_largest():
    for strengths in TRIALS.values():
        assert len(strengths) >= 6
        assert list(strengths) == sorted(strengths)
