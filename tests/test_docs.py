"""The code of the documentation runs, prints and fails as the pages say."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import smoothout_jax
from smoothout_jax import landscape, plots, rivals

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
]


def sections(page):
    """Title and fenced blocks of every section, after those before the first title."""
    first, *others = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.M)
    before, *parts = [
        re.findall(r"```(\w+)\n(.*?)```", t, re.S) for t in (first, *others)
    ]
    if not parts:
        return [(page.stem, before)]
    titles = [text.partition("\n")[0] for text in others]
    return [
        (f"{page.stem}: {t}", before + p)
        for t, p in zip(titles, parts, strict=True)
        if p
    ]


SECTIONS = [section for page in PAGES for section in sections(page)]


def raised(source, namespace):
    """The last line of the traceback of code that fails, or warns."""
    with pytest.raises((TypeError, ValueError, UserWarning)) as caught:
        exec(source, namespace)
    return f"{caught.type.__name__}: {caught.value}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks", [b for _, b in SECTIONS], ids=[t for t, _ in SECTIONS]
)
def test_code_does_what_the_page_says(blocks, tmp_path, monkeypatch, capsys):
    """A comment after a print is its output; a text block is the whole error."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for (language, source), (following, text) in zip(
            blocks, [*blocks[1:], ("", "")], strict=True
        ):
            if language == "python" and following == "text":
                assert raised(source, namespace).strip() == text.strip()
            elif language == "python":
                exec(source, namespace)
                promised = re.findall(r"^print\(.*\)  # (.*)$", source, re.M)
                printed = capsys.readouterr().out.splitlines()
                assert not promised or printed == promised
                check_training(printed)


# The points that noise must add to the plain optimizer's accuracy.
POINTS = {"SGD": 0, "Adam": 10, "AdamW": 10}


def check_training(lines):
    """Noise adds at least these points, or lowers the loss by more than one nat."""
    found = re.findall(r"^(.+): ([-\d.]+) (%|nats)", "\n".join(lines), re.M)
    reached = [(name, float(value), unit) for name, value, unit in found]
    for (baseline, plain, unit), (name, noisy, _) in itertools.pairwise(reached):
        if name == "SmoothOut":
            least = plain + POINTS[baseline]
            assert noisy > least if unit == "%" else noisy < plain - 1
    assert all(value > 80 for name, value, _ in reached if name == "four copies")


def test_every_framework_and_recipe_shows_its_baseline():
    frameworks, recipes = (
        (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for name in ("frameworks", "recipes")
    )
    printed = r"^print\(f.SmoothOut: "
    assert len(re.findall(rf"^compare\(fit\)|{printed}", frameworks, re.M)) == 5
    assert len(re.findall(r"^print\(f.four copies: ", frameworks, re.M)) == 5
    sections = len(re.findall("^## ", recipes, re.M))
    assert len(re.findall(r"^print\(f.AdamW?: ", recipes, re.M)) == sections
    assert len(re.findall(printed, recipes, re.M)) == sections


def test_every_public_name_is_in_the_reference():
    text = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("api/*.md"))
    named = re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.M)
    modules = smoothout_jax, smoothout_jax.sharpness, landscape, plots, rivals
    public = [name for module in modules for name in module.__all__]
    assert sorted(named) == sorted(public)


@pytest.mark.slow
def test_the_tour_of_the_command_runs_as_printed(tmp_path):
    text = (DOCS / "command.md").read_text(encoding="utf-8")
    (tour,) = re.findall(r"```sh\n(.*?)```", text, re.S)
    command = tmp_path / "smoothout"
    command.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m smoothout_command "$@"\n'
    )
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parent),
        "MPLBACKEND": "agg",
    }
    script = ["bash", "-euo", "pipefail", "-c", tour]
    subprocess.run(script, cwd=tmp_path, env=environment, check=True)
    for each in tour.splitlines():
        output = {
            "compare": "smoothout-results/results.json",
            "sharpness": "smoothout-sharpness/sharpness.csv",
            "landscape": "smoothout-landscape/between.png",
            "train": "smoothout-run/log.csv",
        }[each.split()[1]]
        assert (tmp_path / output).stat().st_size


def test_the_networks_of_the_claim_are_flatter_by_every_measure():
    rows = json.loads((DOCS / "sharpness/sharpness.json").read_text())["rows"]
    text = (DOCS / "command.md").read_text(encoding="utf-8")
    assert "flatter than SGD's by every measure" in text
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
