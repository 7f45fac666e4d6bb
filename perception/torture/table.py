"""Rows as a table of text."""

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line per row under the names of its columns; None is shown as `-`."""
    names = list(rows[0]) if rows else []
    cells = [names, *([_cell(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value)
