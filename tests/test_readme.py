"""The README tells the truth: its examples run, its figures are the committed ones."""

import json
import re
from pathlib import Path

import jax
import pytest

from pages import costs, eigenvalues, readme, rise, scaling

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_printed(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # as a user runs them
        exec(compile(example, "README.md", "exec"), {})


@pytest.mark.parametrize("name", readme.TABLES)
def test_tables_are_those_of_the_committed_results(name):
    assert readme.block(name) in README


def test_the_committed_results_show_the_claim():
    summary = json.loads((ROOT / "docs/digits/results.json").read_text())["summary"]
    sgd, ours = summary["sgd"], summary["adasmoothout"]
    assert ours["difference_to_sgd"][1] > 0
    assert ours["loss_rise"][0] < sgd["loss_rise"][0] / 3


def test_the_networks_of_the_claim_are_flatter_by_every_measure():
    rows = json.loads((ROOT / "docs/sharpness/sharpness.json").read_text())["rows"]
    for name in rows[0]["measures"]:
        sgd, ours, relative = (
            [
                row["measures"][name][0]
                for row in rows
                if (row["network"], row["layer"]) == (network, "whole")
            ]
            for network in ("SGD", "SmoothOut", "AdaSmoothOut")
        )
        assert len(sgd) == len(ours) == len(relative) == 10
        assert sum(ours) < sum(sgd) / 2
        assert sum(relative) < sum(sgd)


@pytest.mark.parametrize(
    ("page", "name"), [(costs.page, "cpu"), (eigenvalues.page, "eigenvalues")]
)
def test_pages_of_costs_are_those_of_the_committed_benchmarks(page, name):
    path = ROOT / "docs" / "performance" / f"{name}.json"
    assert page(json.loads(path.read_text())) == path.with_suffix(".md").read_text()


def test_the_page_of_scaling_is_that_of_the_committed_counts():
    assert scaling.page(scaling.committed()) == (ROOT / "docs/scaling.md").read_text()


def test_the_page_of_the_rise_is_that_of_the_committed_results():
    assert rise.page(rise.read()) == (ROOT / "docs/rise.md").read_text()


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", "docs/results.md", "docs/rise.md"]
)
def test_links_and_pictures_exist(page):
    path = ROOT / page
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
    assert targets
    for target in targets:
        assert (path.parent / target).exists(), target
