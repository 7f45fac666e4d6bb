"""Interleaved rounds: every case runs once per round, so other load on the machine affects all alike."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """The median over rounds, and the least and the most."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> "Figure":
        """Return the figure of one value per round."""
        return cls(statistics.median(values), min(values), max(values), len(values))


Values = Mapping[str, float]


def interleave(
    cases: Mapping[str, Callable[[], Values]], rounds: int, note: Callable[[str], None] = lambda text: None
) -> dict[str, dict[str, Figure]]:
    """Run every case once per round, in turn; return its figures by case and quantity."""
    values: dict[str, dict[str, list[float]]] = {case: {} for case in cases}
    for number in range(rounds):
        for case, measure in cases.items():
            note(f"round {number + 1} of {rounds}: {case}")
            for quantity, value in measure().items():
                values[case].setdefault(quantity, []).append(value)
    return {
        case: {quantity: Figure.of(found) for quantity, found in quantities.items()}
        for case, quantities in values.items()
    }
