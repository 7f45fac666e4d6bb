"""Scores of predictions: metrics by scikit-learn, calibration, conformal sets, paired tests.

Probabilities are (N, C) float64 rows that sum to one; labels (N,) int64.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

Probabilities = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
ECE_BINS: Final = 15
DRAWS: Final = 2000
"""Of the bootstrap."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of one set of predictions. Precision, recall and F1 are means over the classes that occur."""

    count: int
    accuracy: float
    balanced_accuracy: float
    macro_recall: float
    macro_precision: float
    macro_f1: float
    nll: float
    ece: float


def metrics(labels: Labels, p: Probabilities) -> Metrics:
    """Return the metrics of probabilities against the labels."""
    classes = np.arange(p.shape[1])
    predicted = p.argmax(axis=1)
    occurring = np.unique(labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=occurring, average="macro", zero_division=0
    )
    return Metrics(
        count=len(labels),
        accuracy=float(accuracy_score(labels, predicted)),
        balanced_accuracy=float(recall),
        macro_recall=float(recall),
        macro_precision=float(precision),
        macro_f1=float(f1),
        nll=float(log_loss(labels, p.clip(1e-12), labels=classes)),
        ece=expected_calibration_error(labels, p),
    )


def expected_calibration_error(labels: Labels, p: Probabilities, bins: int = ECE_BINS) -> float:
    """Return the mean gap of confidence and accuracy over equal bins of confidence, weighted by rows.

    Naeini et al. 2015; 15 bins as in Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    size = np.bincount(number, minlength=bins)
    gaps = np.abs(np.bincount(number, confidence, bins) - np.bincount(number, right, bins))
    return float(gaps[size > 0].sum() / len(labels))


def per_class(labels: Labels, p: Probabilities, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return precision, recall, F1 and support by class name."""
    columns = precision_recall_fscore_support(
        labels, p.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    names = ("precision", "recall", "f1", "support")
    rows = zip(classes, zip(*columns, strict=True), strict=True)
    return {name: dict(zip(names, map(float, values), strict=True)) for name, values in rows}


def confusion(labels: Labels, p: Probabilities) -> list[list[int]]:
    """Return counts, true class by row, predicted class by column."""
    matrix: list[list[int]] = confusion_matrix(
        labels, p.argmax(axis=1), labels=np.arange(p.shape[1])
    ).tolist()
    return matrix


@dataclass(frozen=True, slots=True)
class Conformal:
    """Split conformal prediction sets (Angelopoulos & Bates 2021) for one set of inputs."""

    threshold: float
    """A class is in the set if its probability is at least this; 0 if rows are too few for the coverage."""
    coverage: float
    size: float
    rows: int


def conformal(
    calibration: tuple[Labels, Probabilities], test: tuple[Labels, Probabilities], alpha: float = 0.1
) -> Conformal:
    """Choose the threshold on the calibration rows; return coverage and mean set size on the test rows.

    The coverage is 1 - alpha for exchangeable rows only. Overlapping windows of one session are not
    exchangeable, so calibrate on whole sessions that are not in the test.
    """
    labels, p = calibration
    likeliest_first = np.sort(p[np.arange(len(labels)), labels])[::-1]
    rank = int(np.ceil((len(labels) + 1) * (1 - alpha)))
    threshold = float(likeliest_first[rank - 1]) if rank <= len(labels) else 0.0
    truth, tested = test
    sets = tested >= threshold
    covered = sets[np.arange(len(truth)), truth]
    return Conformal(threshold, float(covered.mean()), float(sets.sum(axis=1).mean()), len(truth))


def mcnemar(labels: Labels, first: Probabilities, second: Probabilities) -> float:
    """Return the exact two-sided p-value for both being right equally often, on the same rows."""
    a, b = first.argmax(axis=1) == labels, second.argmax(axis=1) == labels
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def paired_bootstrap(
    labels: Labels,
    first: Probabilities,
    second: Probabilities,
    sources: npt.NDArray[np.int64],
) -> tuple[float, float, float]:
    """Return the accuracy gained by `first` over `second` with its 95 % interval; whole sources are drawn."""
    return gained(first.argmax(axis=1) == labels, second.argmax(axis=1) == labels, sources)


def gained(
    first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], sources: npt.NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return by how much more often `first` is right than `second`, and its 95 % interval by bootstrap.

    Args:
        first: (N,) where the first is right.
        second: (N,) where the second is right.
        sources: (N,) the session or file of each row; the bootstrap draws whole ones.
    """
    gain = first.astype(float) - second
    _, number = np.unique(sources, return_inverse=True)
    sums, sizes = np.bincount(number, gain), np.bincount(number)
    picks = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean and sample standard deviation over seeds or folds."""
    array = np.asarray(values, dtype=float)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "sd": deviation, "n": len(array)}


def as_json(value: Any) -> Any:
    """Return metrics, nested in dicts and lists or not, as plain data."""
    if isinstance(value, Metrics | Conformal):
        return asdict(value)
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value
