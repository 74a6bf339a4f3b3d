"""The tables of the README, from the committed results.

`python -m benchmarks.readme` puts them in their places between `<!-- name -->` and
`<!-- /name -->`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report, results
from smoothout_jax.experiments.commands import sharpness as measures
from smoothout_jax.experiments.methods.table import METHODS

ROOT = Path(__file__).parents[1]


def digits(found: Mapping[str, Any]) -> str:
    """What `smoothout compare` found."""
    rows = [
        (
            METHODS[name].label,
            "{:.2f} ± {:.2f}".format(*row["test_accuracy"]),
            ""
            if name == "sgd"
            else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row["difference_to_sgd"]),
            "{:.2f}".format(row["train_accuracy"][0]),
            "{:.3f} ± {:.3f}".format(*row["loss_rise"]),
            "{:.2f}".format(row["relative_step_time"]),
        )
        for name, row in found["summary"].items()
    ]
    header = (
        "method",
        "test accuracy %",
        "minus SGD, paired [95 % interval]",
        "train accuracy %",
        "loss rise under noise",
        "step time / SGD's",
    )
    return report.markdown(header, rows)


def sharpness(found: Mapping[str, Any]) -> str:
    """What `smoothout sharpness` found of the whole networks."""
    rows = [measures.Row(**row) for row in found["rows"]]
    whole = [row for row in rows if row.layer == measures.WHOLE]
    header, *lines = measures.cells(found["settings"]["measures"], whole)
    return report.markdown(header, lines)


def evidence() -> str:
    """Differences to SGD in all cases of the CPU form."""
    return results.batches(_cpu_form())


def radii() -> str:
    """What each strength brought in them."""
    return results.advice(_cpu_form())


def _cpu_form() -> list[results.Found]:
    return [each for each in results.read() if each.form == "cpu"]


def _read(path: str) -> Any:
    return json.loads((ROOT / "docs" / path).read_text())


TABLES = {
    "digits": lambda: digits(_read("digits/results.json")),
    "evidence": evidence,
    "sharpness": lambda: sharpness(_read("sharpness/sharpness.json")),
    "radii": radii,
    "costs": lambda: report.readme(_read("performance/cpu.json")),
}


def block(name: str) -> str:
    """A table between its marks."""
    return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- /{name} -->"


def main() -> None:
    """Writes the tables into the README."""
    path = ROOT / "README.md"
    text = path.read_text()
    for name in TABLES:
        place = rf"(?s)<!-- {name} -->.*<!-- /{name} -->"
        text, count = re.subn(place, lambda _, name=name: block(name), text)
        if count != 1:
            raise ValueError(f"README.md must have one table {name}, it has {count}")
    path.write_text(text)


if __name__ == "__main__":
    main()
