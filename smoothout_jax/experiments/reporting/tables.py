"""Tables: for the terminal by Rich, and for pages in Markdown."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def terminal_table(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] = (),
    caption: str | None = None,
    wrap: bool = False,
) -> Table:
    """A table for the terminal.

    Args:
        title: its title.
        rows: cells of each row; a row of one cell is a heading.
        header: headings of the columns, of which all but the first align to the right.
        caption: text below the table.
        wrap: whether cells may wrap, except those of the first column.
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
        table.add_column(heading, justify=justify, no_wrap=not (index and wrap))
    for row in rows:
        table.add_row(*row, style="bold" if len(row) == 1 else None)
    return table


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
