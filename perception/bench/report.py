"""Figures as text and JSON, compared with budgets and with an earlier run."""

import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from perception.bench.rounds import Figure
from perception.errors import PerceptionError
from perception.io.text_file import read_text

_SLACK: Final = 2.0
"""A median counts as worse than in an earlier run above this factor: the machine may be busier now."""
_FEWEST: Final = 2
"""Every line goes exactly through so few points."""
Figures = Mapping[str, Mapping[str, Figure]]


@dataclass(frozen=True, slots=True)
class Line:
    """The line of least squares through medians that were measured for several numbers `along`."""

    along: str
    quantity: str
    base: float
    slope: float
    deviation: float
    """The largest distance of a point from the line, relative to the line."""

    @classmethod
    def through(cls, along: str, quantity: str, points: Sequence[tuple[int, float]]) -> "Line":
        """Fit (number, value) points."""
        slope, base = statistics.linear_regression(*zip(*points, strict=True))
        deviation = max(abs(value / (base + slope * number) - 1) for number, value in points)
        return cls(along, quantity, base, slope, deviation)

    def __str__(self) -> str:
        return (
            f"{self.along}: {self.quantity} = {self.base:.3g} + {self.slope:.3g} n, "
            f"points up to {self.deviation:.1%} off"
        )


def as_text(figures: Figures) -> str:
    """Return one line per case: the median of each quantity, and the range over rounds."""
    width = max(map(len, figures))
    return "\n".join(
        f"{case:{width}}  "
        + "  ".join(f"{name} {one.median:.4g} ({one.least:.4g}..{one.most:.4g})" for name, one in row.items())
        for case, row in figures.items()
    )


def as_json(kind: str, figures: Figures) -> dict[str, Any]:
    """Return the figures as plain data, for a file that `against` reads as a baseline."""
    return {kind: {case: {name: asdict(one) for name, one in row.items()} for case, row in figures.items()}}


def over_budget(kind: str, figures: Figures) -> list[str]:
    """Return a line for every ratio or deviation of `budgets.toml` that this run exceeds."""
    lines = []
    for budget in _budgets(kind):
        if "along" in budget:
            line = _line(budget, figures)
            if line is not None and line.deviation > budget["most"]:
                lines.append(f"{line}; at most {budget['most']:.0%} allowed")
        elif (of := budget["of"]) in figures and (to := budget["to"]) in figures:
            quantity, to_quantity = budget["quantity"], budget.get("to_quantity", budget["quantity"])
            ratio = figures[of][quantity].median / figures[to][to_quantity].median
            if ratio > budget["most"]:
                lines.append(f"{of} / {to}: {quantity} {ratio:.2f}, at most {budget['most']} allowed")
    return lines


def straight_lines(kind: str, figures: Figures) -> list[str]:
    """Return a line of text for every quantity that should grow linearly: its base and slope."""
    lines = [_line(budget, figures) for budget in _budgets(kind) if "along" in budget]
    return [str(line) for line in lines if line is not None]


def _budgets(kind: str) -> list[dict[str, Any]]:
    text = files("perception.bench").joinpath("budgets.toml").read_text("utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text).get(kind, [])
    return [
        budget | {"quantity": quantity, "most": most} if "each" in budget else budget
        for budget in found
        for quantity, most in budget.get("each", {"": 0}).items()
    ]


def _line(budget: Mapping[str, Any], figures: Figures) -> Line | None:
    """Fit the medians of all cases `along N`; None if there are fewer than three."""
    along, quantity = budget["along"], budget["quantity"]
    points = [
        (int(number), row[quantity].median)
        for name, _, number, row in ((*case.partition(f"{along} "), row) for case, row in figures.items())
        if not name and number.isdecimal()
    ]
    return Line.through(along, quantity, points) if len(points) > _FEWEST else None


def against(kind: str, figures: Figures, baseline: Path) -> list[str]:
    """Return a line for every median more than twice that of the file; PerceptionError if unreadable."""
    try:
        before = json.loads(read_text(baseline))[kind]
        return [
            f"{case}: {name} {row[name].median:.4g}, was {before[case][name]['median']:.4g}"
            for case, row in figures.items()
            for name in row
            if name in before.get(case, {})
            and name != "received"
            and row[name].median > _SLACK * before[case][name]["median"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PerceptionError(f"{baseline}: no baseline of 'perception bench {kind}': {error}") from error
