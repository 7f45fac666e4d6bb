"""Figures of benchmarks over seeds or folds: collected per run, written as tables and plots."""

import html
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from perception.io.beside import replace_file
from perception.io.progress import Advance
from perception.training.report import page, svg
from perception.training.scores import Metrics, spread

HEADLINE: Final = ("accuracy", "macro_recall", "macro_f1", "nll", "ece")
Summary = dict[str, float | list[float]]
"""Mean, sample standard deviation `sd` and number `n` of the `values` of one cell."""
Benchmark = Callable[[Path, Path, int, Advance], "Figures"]
"""A benchmark: arguments are data folder, results folder, number of repeats, and progress."""


class Figures:
    """Values by (table, row, column), one per seed or fold.

    Args:
        scales: factor of the printed figures by table; by default 100.
    """

    def __init__(self, scales: Mapping[str, float] | None = None) -> None:
        self._scales = scales or {}
        self._values: defaultdict[str, dict[str, dict[str, list[float]]]] = defaultdict(dict)

    def add(self, table: str, row: str, column: str, value: float) -> None:
        """Add the value of one more run."""
        self._cell(table, row, column).append(value)

    def add_metrics(self, table: str, row: str, scored: Metrics, names: Sequence[str] = HEADLINE) -> None:
        """Add some metrics of one more run, a column each."""
        values = asdict(scored)
        for name in names:
            self.add(table, row, name, values[name])

    def extend(self, other: "Figures") -> None:
        """Add the values of other runs."""
        for table, rows in other._values.items():
            for row, cells in rows.items():
                for column, values in cells.items():
                    self._cell(table, row, column).extend(values)

    def _cell(self, table: str, row: str, column: str) -> list[float]:
        return self._values[table].setdefault(row, {}).setdefault(column, [])

    def mean(self, table: str, row: str, column: str) -> float:
        """Return the mean so far."""
        return spread(self._values[table][row][column])["mean"]

    def as_json(self) -> dict[str, dict[str, dict[str, Summary]]]:
        """Return every value, mean and standard deviation, by table, row and column."""
        return {
            table: {
                row: {column: {**spread(values), "values": values} for column, values in cells.items()}
                for row, cells in rows.items()
            }
            for table, rows in self._values.items()
        }

    def write(self, file: Path) -> None:
        """Write every value atomically."""
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, (json.dumps(self._values, indent=1) + "\n").encode())

    @classmethod
    def read(cls, file: Path) -> "Figures":
        """Return the figures of a file of `write`."""
        figures = cls()
        figures._values.update(json.loads(file.read_text(encoding="utf-8")))
        return figures

    def rendered(self, name: str) -> list[list[str]]:
        """Return a table as texts, headings first; cells are `mean +- standard deviation`."""
        rows = self._values[name]
        scale = self._scales.get(name, 100)
        heads = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        lines = [[row, *(_text(cells.get(column), scale) for column in heads)] for row, cells in rows.items()]
        return [[name, *heads], *lines]

    def markdown(self) -> str:
        """Return every table."""
        return "\n\n".join(_as_markdown(self.rendered(name)) for name in self._values)

    def save(
        self, folder: Path, name: str, about: Mapping[str, object], plots: Mapping[str, Figure] | None = None
    ) -> Path:
        """Write `name.json`, `name.md` and the page `name.html` into the folder; return the first."""
        sections = {title: svg(figure) for title, figure in (plots or {}).items()}
        sections |= {table: _as_html(self.rendered(table)) for table in self._values}
        intro = f"Accuracies and other figures times 100. {json.dumps(about)}"
        text = json.dumps({"about": about, "tables": self.as_json()}, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        files = {".md": self.markdown() + "\n", ".html": page(name, intro, sections), ".json": text + "\n"}
        for suffix, content in files.items():
            replace_file(folder / f"{name}{suffix}", content.encode())
        return folder / f"{name}.json"


def _as_markdown(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], f"|{'---|' * len(lines[0])}", *rows[1:]])


def _as_html(lines: Sequence[Sequence[str]]) -> str:
    rows = ["".join(f"<td>{html.escape(text)}</td>" for text in line) for line in lines]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _text(values: list[float] | None, scale: float) -> str:
    if not values:
        return ""
    figure = spread(values)
    deviation = f" +- {figure['sd'] * scale:.2f}" if len(values) > 1 else ""
    return f"{figure['mean'] * scale:.2f}{deviation}"
