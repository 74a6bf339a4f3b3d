"""The README and the generated pages show the figures of the committed results."""

import re
from pathlib import Path

import jax
import pytest

import smoothout_jax
from pages.__main__ import PAGES, WITH_VALUES, page, with_values
from pages.source import figures, gallery

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_prints_the_gain(tmp_path, monkeypatch, capsys):
    (example,), (shown,) = EXAMPLES, re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # as a user runs them
        exec(compile(example, "README.md", "exec"), {})
    sgd, ours = found = percentages(capsys.readouterr().out)
    assert ours > sgd + 10
    assert found == pytest.approx(percentages(shown), abs=3)


def percentages(text):
    return [float(each) for each in re.findall(r"([\d.]+)% right", text)]


def test_the_first_25_lines_print_the_gain():
    beginning = README.splitlines()[:25]
    assert beginning[3] == "```python"
    assert beginning[-1].strip().startswith("print(")


def test_it_has_at_most_600_words():
    """Besides code, tables and comments."""
    text = re.sub(
        r"```.*?```|<!--.*?-->|^\|.*?$|^    .*?$", "", README, flags=re.S | re.M
    )
    assert len(text.split()) <= 600


def test_it_is_one_screen_and_its_test_command_is_that_of_the_project():
    assert len(README.splitlines()) <= 145
    assert '\n    pip install -e ".[test]" && pytest\n' in README


@pytest.mark.parametrize("path", WITH_VALUES, ids=lambda path: path.name)
def test_values_are_those_of_the_committed_results(path):
    text = path.read_text()
    assert text.count("<!-- made: ") == text.count("<!-- /made -->") > 0
    assert with_values(text) == text


def test_a_value_is_written_between_its_marks():
    text = "a\n<!-- made: 6 * 7:.1f -->\nold\n<!-- /made -->\nb"
    assert with_values(text) == text.replace("old", "42.0")


def test_the_citation_is_of_this_version():
    assert f"\nversion: {smoothout_jax.__version__}\n" in (
        (ROOT / "CITATION.cff").read_text()
    )


def test_the_committed_results_show_the_claim():
    summary = figures("digits/results.json")["summary"]
    sgd, ours = summary["sgd"], summary["adasmoothout"]
    assert ours["difference_to_sgd"][1] > 0
    assert ours["loss_rise"][0] < sgd["loss_rise"][0] / 3


@pytest.mark.parametrize("text", PAGES, ids=lambda text: text.stem)
def test_pages_are_those_of_the_committed_results(text):
    assert PAGES[text].read_text() == page(text)


def test_the_gallery_shows_the_pictures_of_the_notebooks():
    folder = ROOT / "docs" / "gallery"
    files = {path.stem: path.read_bytes() for path in folder.iterdir()}
    assert files == gallery()


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CHANGELOG.md",
        "docs/results.md",
        "docs/reproductions.md",
        "docs/gap.md",
        "docs/choose.md",
    ],
)
def test_links_and_pictures_exist(page):
    path = ROOT / page
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text())
    assert targets
    for target in targets:
        assert (path.parent / target).exists(), target
