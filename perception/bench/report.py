"""Figures to read, to keep, and to hold against budgets and against an earlier run."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from perception.bench.rounds import Figure
from perception.errors import PerceptionError

_SLACK: Final = 2.0
"""Against an earlier run only a doubling counts: the machine may be busier now."""
Figures = Mapping[str, Mapping[str, Figure]]


def as_text(figures: Figures) -> str:
    """Return one line per case: the median of each quantity, and the range over rounds."""
    width = max(map(len, figures))
    return "\n".join(
        f"{case:{width}}  "
        + "  ".join(f"{name} {one.median:.4g} ({one.least:.4g}..{one.most:.4g})" for name, one in row.items())
        for case, row in figures.items()
    )


def as_json(kind: str, figures: Figures) -> dict[str, Any]:
    """Return what is written to a file and read as a baseline."""
    return {kind: {case: {name: asdict(one) for name, one in row.items()} for case, row in figures.items()}}


def over_budget(kind: str, figures: Figures) -> list[str]:
    """Return a line for every ratio of `budgets.toml` that this run exceeds."""
    budgets = tomllib.loads(files("perception.bench").joinpath("budgets.toml").read_text("utf-8"))
    lines = []
    for budget in budgets.get(kind, []):
        of, to, quantity = budget["of"], budget["to"], budget["quantity"]
        if of in figures and to in figures:
            ratio = figures[of][quantity].median / figures[to][quantity].median
            if ratio > budget["most"]:
                lines.append(f"{of} / {to}: {quantity} {ratio:.2f}, at most {budget['most']} allowed")
    return lines


def against(kind: str, figures: Figures, baseline: Path) -> list[str]:
    """Return a line for every median more than twice that of the file; PerceptionError if unreadable."""
    try:
        before = json.loads(baseline.read_text("utf-8"))[kind]
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
