"""Figures of benchmarks over seeds or folds: collected as they come, printed as tables, kept as JSON."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perception.training.evaluate import spread


class Figures:
    """Values by (table, row, column), one per seed or fold."""

    def __init__(self) -> None:
        self._values: defaultdict[str, dict[str, dict[str, list[float]]]] = defaultdict(dict)

    def add(self, table: str, row: str, column: str, value: float) -> None:
        """Add the value of one more run."""
        self._values[table].setdefault(row, {}).setdefault(column, []).append(value)

    def mean(self, table: str, row: str, column: str) -> float:
        """Return the mean so far."""
        return spread(self._values[table][row][column])["mean"]

    def rows(self, table: str) -> list[str]:
        """Return the rows of a table in the order they came."""
        return list(self._values[table])

    def as_json(self) -> dict[str, Any]:
        """Return every value, mean and standard deviation."""
        return {
            table: {
                row: {column: spread(values) | {"values": values} for column, values in cells.items()}
                for row, cells in rows.items()
            }
            for table, rows in self._values.items()
        }

    def table(self, name: str, columns: Sequence[str] | None = None, scale: float = 100) -> str:
        """Return a table as Markdown, `mean +- standard deviation`."""
        rows = self._values[name]
        heads = list(columns or dict.fromkeys(column for cells in rows.values() for column in cells))
        lines = [f"| {name} | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
        for row, cells in rows.items():
            texts = [_cell(cells.get(column), scale) for column in heads]
            lines.append(f"| {row} | {' | '.join(texts)} |")
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return every table."""
        return "\n\n".join(self.table(name) for name in self._values)

    def save(self, folder: Path, name: str, about: dict[str, Any]) -> Path:
        """Write `name.json` and `name.md` into the folder; return the former."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(self.markdown() + "\n", encoding="utf-8")
        file = folder / f"{name}.json"
        text = json.dumps({"about": about, "tables": self.as_json()}, indent=1)
        file.write_text(text + "\n", encoding="utf-8")
        return file


def _cell(values: list[float] | None, scale: float) -> str:
    if not values:
        return ""
    figure = spread(values)
    deviation = f" +- {figure['sd'] * scale:.2f}" if len(values) > 1 else ""
    return f"{figure['mean'] * scale:.2f}{deviation}"
