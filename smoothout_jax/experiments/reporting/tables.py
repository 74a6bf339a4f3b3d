"""Tables: for the terminal by Rich, and for pages in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table


def terminal_table(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] = (),
    caption: str | None = None,
) -> Table:
    """A table for the terminal, whose cells break where it is narrow.

    A row of one cell is a heading. All columns but the first align to the right.
    """
    table = Table(
        title=title,
        caption=caption,
        min_width=len(title),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        show_header=bool(header),
        padding=0,
    )
    for index, heading in enumerate(header):
        justify = "right" if index else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    return table


def terminal_tables(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str],
    caption: str | None = None,
    at_once: int = 3,
) -> Group:
    """A table that may be too wide, as several below each other.

    Each has the first column and the next `at_once` others.
    """
    rows, shown = list(rows), []
    for start in range(1, len(header), at_once):
        part = slice(start, start + at_once)
        table: Any = terminal_table(
            "" if shown else title,
            [[row[0], *row[part]] for row in rows],
            header=[header[0], *header[part]],
            caption=caption if part.stop >= len(header) else None,
        )
        shown += ["", table] if shown else [table]
    return Group(*shown)


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
