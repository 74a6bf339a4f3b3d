"""Tables: for the terminal by Rich, and for pages in Markdown."""

import shutil
from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

WIDTH = 80
# Longest line of a heading.
HEADING = 14


def terminal_table(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] = (),
    caption: str | None = None,
) -> Table:
    """A table for the terminal.

    Args:
        title: its title.
        rows: cells of each row; a row of one cell is a heading.
        header: headings of the columns, of which all but the first align to the right.
        caption: text below the table.
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
        table.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    return table


def terminal_tables(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str],
    caption: str | None = None,
) -> Group:
    """A table for the terminal, or several of some of its columns each.

    None is wider than the terminal, unless one of its columns is.

    Args:
        title: their title.
        rows: as for `terminal_table`.
        header: headings of the columns; each table has the first one.
        caption: text below them.
    """
    rows = [list(row) for row in rows]
    narrow = [header[0], *("\n".join(wrap(each, HEADING)) for each in header[1:])]
    first = max(cell_len(row[0]) for row in [header, *rows])
    parts = _parts([1 + _width(narrow, rows, i) for i in range(1, len(header))], first)
    shown: list[Any] = []
    for part in parts:
        table = terminal_table(
            "" if shown else title,
            [[row[0], *(row[i] for i in part if len(row) > i)] for row in rows],
            header=[narrow[0], *(narrow[i] for i in part)],
            caption=caption if len(parts) == 1 else None,
        )
        shown += ["", table] if shown else [table]
    if caption and len(parts) > 1:
        shown.append(Text(caption, "table.caption", justify="center"))
    return Group(*shown)


def _width(header: Sequence[str], rows: Sequence[Sequence[str]], index: int) -> int:
    """The width of a column."""
    cells = [row[index] for row in rows if len(row) > index]
    return max(map(cell_len, [*header[index].splitlines(), *cells, ""]))


def _parts(widths: Sequence[int], first: int) -> list[list[int]]:
    """Numbers of the columns of each table: as few tables, and as even, as fit."""
    columns, terminal = range(1, 1 + len(widths)), shutil.get_terminal_size((WIDTH, 24))
    for number in range(1, len(widths)):
        parts = [part.tolist() for part in np.array_split(columns, number)]
        wides = [first + sum(widths[i - 1] for i in part) for part in parts]
        if max(wides) <= terminal.columns:
            return parts
    return [[i] for i in columns]


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
