"""From similarities to results, and the metrics of a ranking. Pure numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
RECALL_AT: Final = (1, 5, 10)


def best(
    scores: Scores, stamps_ns: npt.NDArray[np.int64], groups: npt.NDArray[np.int64], top: int, apart_ns: int
) -> list[int]:
    """Return the rows of at most `top` results, best first; of equal ones the first.

    An item less than `apart_ns` from a better one of the same group is left out: neighbours in time show the
    same scene again.
    """
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) == top:
            break
        same = [other for other in chosen if groups[other] == groups[index]]
        if all(abs(int(stamps_ns[other]) - int(stamps_ns[index])) >= apart_ns for other in same):
            chosen.append(index)
    return chosen


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Metrics of the ranking for one query."""

    relevant: int
    count: int
    average_precision: float
    """Over all items, neighbours in time included."""
    found_at: dict[int, bool]
    """By k: whether a relevant item is among the best k results, without neighbours in time."""

    @property
    def chance(self) -> float:
        """The average precision of a random order, approximately: the share of relevant items."""
        return self.relevant / self.count


def ranking_metrics(
    scores: Scores, relevant: npt.NDArray[np.bool_], results: Sequence[int]
) -> RankingMetrics:
    """Return the metrics of (n,) scores; at least one of the (n,) items is relevant."""
    from sklearn.metrics import average_precision_score

    return RankingMetrics(
        relevant=int(relevant.sum()),
        count=len(relevant),
        average_precision=float(average_precision_score(relevant, scores)),
        found_at={k: bool(relevant[list(results[:k])].any()) for k in RECALL_AT},
    )


def mean(scored: Mapping[str, RankingMetrics]) -> dict[str, float]:
    """Return mean average precision, its chance level, and recall@k: the share of queries found in k."""
    rows = scored.values()
    columns: dict[str, list[float]] = {
        "mAP": [row.average_precision for row in rows],
        "chance": [row.chance for row in rows],
        **{f"recall@{k}": [row.found_at[k] for row in rows] for k in RECALL_AT},
    }
    return {name: float(np.mean(values)) for name, values in columns.items() if values}
