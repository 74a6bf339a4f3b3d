"""The pages of the results: what stands there is what was measured."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest

from pages import cases, choose, results
from pages.evidence import CHOSEN, QUESTIONS, RISE, RISES, holm, read
from smoothout_jax.experiments.commands.trials import case_settings
from smoothout_jax.experiments.plans import EXPERIMENTS, TRIALS

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def committed():
    return read()


@pytest.mark.parametrize(
    ("name", "page"),
    [("results", results.page), ("cases", cases.page), ("choose", choose.page)],
)
def test_pages_are_those_of_the_committed_results(name, page, committed):
    assert (DOCS / f"{name}.md").read_text() == page(committed)


@pytest.mark.parametrize("claim", choose.Figures(read()).claims)
def test_figures_bear_what_the_advice_rests_on(claim, committed):
    assert choose.Figures(committed).claims[claim]


@pytest.mark.parametrize(
    ("group", "against"), [("fits", (-1.0, -1.5, -0.5)), ("short", (1.0, 0.5, 1.5))]
)
def test_what_went_against_the_prediction_is_named(group, against, committed):
    each = next(e for e in committed if e.group == group and "msam" in e.summary)
    assert results.exceptions([each]).endswith(": no case.")
    case = copy.deepcopy(each.case)
    case["equal_updates"]["summary"]["smoothout-fixed"]["difference_to_sgd"] = against
    said = results.exceptions([each._replace(case=case)])
    assert f"{each.label}: SmoothOut, fixed, {against[0]:+.2f} [" in said


def test_a_chosen_rise_stands_beside_the_fixed_one(committed):
    (page,) = [
        part
        for part in results.page(committed).split("## ")
        if part.startswith("What if labels are wrong?")
    ]
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| ")]
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
        planned = json.loads(json.dumps(settings | chosen))
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
    assert holm([0.04]) == [True]
    assert holm([0.04, 0.04]) == [False, False]


def test_cases_that_are_not_run_are_named(committed):
    there = {(each.experiment, each.name) for each in committed}
    page = (DOCS / "results.md").read_text()
    for experiment, forms in EXPERIMENTS.items():
        for case in forms.get("cpu", ()):
            named = f"- {experiment}: {case.name}\n" in page
            assert named == (
                experiment in QUESTIONS and (experiment, case.name) not in there
            )


def test_every_grid_reaches_from_no_effect_to_its_largest():
    for strengths in TRIALS.values():
        assert len(strengths) >= 6
        assert list(strengths) == sorted(strengths)
