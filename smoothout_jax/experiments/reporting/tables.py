"""Tables: for the terminal by Rich, and for pages in Markdown."""

from collections.abc import Iterable, Sequence
from textwrap import wrap

from rich import box
from rich.cells import cell_len
from rich.console import Group
from rich.table import Table

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

    None is wider than a terminal of 80 columns, unless one of its columns is.

    Args:
        title: their title.
        rows: as for `terminal_table`.
        header: headings of the columns; each table has the first one.
        caption: text below them.
    """
    rows = [list(row) for row in rows]
    narrow = [header[0], *("\n".join(wrap(each, HEADING)) for each in header[1:])]
    parts, part, used = [], [], 0
    for index in range(1, len(header)):
        cells = [row[index] for row in rows if len(row) > index]
        width = 1 + max(map(cell_len, [*narrow[index].splitlines(), *cells, ""]))
        if part and used + width > WIDTH:
            parts, part = [*parts, part], []
        if not part:
            used = max(cell_len(row[0]) for row in [header, *rows])
        part, used = [*part, index], used + width
    parts.append(part)
    return Group(
        *(
            terminal_table(
                title if number == 0 else "",
                [[row[0], *(row[i] for i in part if len(row) > i)] for row in rows],
                header=[narrow[0], *(narrow[i] for i in part)],
                caption=caption if number == len(parts) - 1 else None,
            )
            for number, part in enumerate(parts)
        )
    )


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
