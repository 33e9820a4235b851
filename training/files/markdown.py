"""Markdown tables."""

import statistics
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of one line a row; line breaks and `|` in a cell do not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def select_cells(
    header: Sequence[str], rows: Sequence[Sequence[str]], names: Sequence[str] = (), columns: Sequence[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """
    A part of a table, in the order that is asked for.

    Args:
        names: first cells of the rows to keep; all rows if empty.
        columns: titles to keep behind the first column; all columns if empty.

    Raises:
        ValueError: a row or column that the table does not have.
    """
    places = range(1, len(header)) if not columns else [_place(title, header[1:], "column") + 1 for title in columns]
    first = [row[0] for row in rows]
    chosen = rows if not names else [rows[_place(name, first, "row")] for name in names]
    return [header[place] for place in (0, *places)], [[row[place] for place in (0, *places)] for row in chosen]


def mean_cell(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, as `0.728 ± 0.012`; one value alone; an empty cell for none."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def _place(name: str, known: Sequence[str], kind: str) -> int:
    if name not in known:
        raise ValueError(f"the table has no {kind} {name!r}; it has {'; '.join(known)}")
    return list(known).index(name)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
