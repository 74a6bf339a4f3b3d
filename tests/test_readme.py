"""The README tells the truth: its examples run, its figures are the committed ones."""

import json
import re
from pathlib import Path

import jax
import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_printed(example):
    with jax.numpy_dtype_promotion("standard"):  # as a user runs them
        exec(compile(example, "README.md", "exec"), {})


def test_the_table_is_that_of_the_committed_results():
    summary = json.loads((ROOT / "docs/digits/results.json").read_text())["summary"]
    labels = {"sgd": "SGD", "smoothout": "SmoothOut", "sam": "SAM"}
    for name, row in summary.items():
        cells = (
            labels.get(name, "AdaSmoothOut"),
            "{:.2f} ± {:.2f}".format(*row["test_accuracy"]),
            "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["difference_to_sgd"])
            if name != "sgd"
            else "",
            "{:.2f}".format(row["train_accuracy"][0]),
            "{:.3f} ± {:.3f}".format(*row["loss_rise"]),
            "{:.2f}".format(row["relative_step_time"]),
        )
        assert "| " + " | ".join(cells).replace("|  |", "| |") + " |" in README


def test_the_committed_results_show_the_claim():
    summary = json.loads((ROOT / "docs/digits/results.json").read_text())["summary"]
    sgd, ours = summary["sgd"], summary["adasmoothout"]
    assert ours["difference_to_sgd"][1] > 0
    assert ours["loss_rise"][0] < sgd["loss_rise"][0] / 3


def test_the_costs_are_those_of_the_committed_benchmark():
    results = json.loads((ROOT / "docs/performance/cpu.json").read_text())
    assert report.readme(results) in README
    assert report.page(results) == (ROOT / "docs/performance/cpu.md").read_text()


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
