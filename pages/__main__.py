"""Makes all pages and pictures from the committed results: `python -m pages`.

A page is a text in this folder in which each `{{ expression }}`, with a format if it
needs one, becomes its value. In hand-written pages, such as the README, a value stands
between `<!-- made: expression -->` and `<!-- /made -->`.
"""

import importlib
import re
from pathlib import Path

from pages.panels import PICTURES
from pages.pictures import DPI
from pages.source import DOCS, ROOT, gallery

# What expressions may use, by the last part of its name.
MODULES = (
    "benchmarks.scaling", "benchmarks.tables", "pages.choose", "pages.evidence",
    "pages.gap", "pages.methods", "pages.performance",
    "pages.results", "pages.source",
)  # fmt: skip
NAMES = {name.split(".")[-1]: importlib.import_module(name) for name in MODULES}
TEXTS = ROOT / "pages"
# Each page by its text.
PAGES = {path: DOCS / path.relative_to(TEXTS) for path in TEXTS.rglob("*.md")}
WITH_VALUES = (ROOT / "README.md", DOCS / "command.md", DOCS / "reproductions.md")


def value(expression: str) -> str:
    """The value of an expression, in its format."""
    return eval(f'f"{{{expression}}}"', dict(NAMES))


def page(text: Path) -> str:
    """The page that a text becomes."""
    source = text.relative_to(ROOT)
    head = f"<!-- Made by python -m pages from {source}; do not edit. -->\n\n"
    return head + re.sub(r"\{\{ (.+?) \}\}", lambda m: value(m[1]), text.read_text())


def with_values(text: str) -> str:
    """A hand-written page with its values up to date."""
    return re.sub(
        r"(<!-- made: (.+?) -->\n).*?(\n<!-- /made -->)",
        lambda match: match[1] + value(match[2]) + match[3],
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    """Writes the files."""
    for text, path in PAGES.items():
        path.write_text(page(text))
    for path in WITH_VALUES:
        path.write_text(with_values(path.read_text()))
    for name, draw in PICTURES.items():
        draw().savefig(DOCS / f"{name}.png", dpi=DPI)
    for name, picture in gallery().items():
        (DOCS / "gallery" / f"{name}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
