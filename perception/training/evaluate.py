"""Scores of a head: metrics by scikit-learn, for every subset of inputs, with inputs shuffled or late.

Probabilities are (N, C) float64 rows that sum to one; labels (N,) int64.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
)

from perception.training.augment import delayed
from perception.training.examples import Examples
from perception.training.model import FusionModel, predict
from perception.training.rows import read

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


def probabilities(model: FusionModel, data: Examples, present: torch.Tensor | None = None) -> Probabilities:
    """Return the probabilities of every row that has a label; `present` as in `predict`."""
    result: Probabilities = torch.softmax(predict(model, data, present).double(), dim=1).numpy()
    return result


def truth_of(data: Examples) -> Labels:
    """Return the labels of the rows that have one, in the order of `probabilities`."""
    labels: Labels = data.labels[data.labelled].numpy()
    return labels


def sources_of(data: Examples) -> npt.NDArray[np.int64]:
    """Return the sources of the rows that have a label."""
    sources: npt.NDArray[np.int64] = data.sources[data.labelled].numpy()
    return sources


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


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield every set of names that is not empty, the largest first."""
    for size in range(len(names), 0, -1):
        yield from combinations(names, size)


def shown(data: Examples, inputs: Mapping[str, str], kept: Sequence[str]) -> Examples:
    """Return the windows with only the inputs in `kept`; those in which all are absent lose their label.

    `inputs` maps branch to input.
    """
    return data.only([branch for branch in data.branches if inputs[branch] in kept]).without_empty()


def by_subset(model: FusionModel, data: Examples, inputs: Mapping[str, str]) -> dict[str, Metrics]:
    """Return metrics for every set of inputs, the others absent; keys such as `camera+text`.

    A window counts where one of the set is present; a set without such a window is left out, see `left_out`.
    """
    found = {}
    for kept in subsets(sorted(set(inputs.values()))):
        own = shown(data, inputs, kept)
        if len(own.labelled):
            found["+".join(kept)] = metrics(truth_of(own), probabilities(model, own))
    return found


def left_out(data: Examples, inputs: Mapping[str, str]) -> dict[str, int]:
    """Return by set of inputs how many labelled windows are not scored, because all of the set are absent."""
    return {
        "+".join(kept): len(data.labelled) - len(shown(data, inputs, kept).labelled)
        for kept in subsets(sorted(set(inputs.values())))
    }


def named_sources(data: Examples) -> dict[int, str]:
    """Return the names of the sources of labelled rows; a name that occurs twice gets its number."""
    names = data.names
    return {
        source: names[source] if names.count(names[source]) == 1 else f"{names[source]} #{source}"
        for source in np.unique(sources_of(data)).tolist()
    }


def by_source(labels: Labels, p: Probabilities, data: Examples) -> dict[str, Metrics]:
    """Return the metrics of each session or file."""
    sources = sources_of(data)
    return {
        name: metrics(labels[sources == source], p[sources == source])
        for source, name in named_sources(data).items()
    }


def by_clip(labels: Labels, p: Probabilities, data: Examples) -> dict[str, float]:
    """Return scores in which each session or file counts once, however many windows it has.

    `accuracy` is the mean over them. If all windows of a source have one class, as in a folder of clips, the
    source is a clip. `clip_accuracy` is the share of clips whose class has the largest product of
    probabilities over their windows.
    """
    sources = sources_of(data)
    each = [(labels[sources == one], p[sources == one]) for one in np.unique(sources)]
    found = {
        "sources": len(each),
        "accuracy": float(np.mean([(rows.argmax(axis=1) == truth).mean() for truth, rows in each])),
    }
    clips = [(truth[0], np.log(rows.clip(1e-12)).sum(axis=0)) for truth, rows in each if len({*truth}) == 1]
    if clips:
        right = [total.argmax() == truth for truth, total in clips]
        found |= {"clips": len(clips), "clip_accuracy": float(np.mean(right))}
    return found


def shuffle_drops(
    model: FusionModel, data: Examples, inputs: Mapping[str, str], seed: int = 0
) -> dict[str, float]:
    """Return by input how much accuracy is lost when it is shuffled among the windows in which it is present.

    A head that loses nothing when its sound is shuffled does not use its sound.
    """
    truth = truth_of(data)
    whole = metrics(truth, probabilities(model, data)).accuracy
    drops = {}
    for name in sorted(set(inputs.values())):
        columns = torch.tensor([inputs[branch] == name for branch in data.branches])
        own = torch.nonzero(data.present[:, columns].any(dim=1)).squeeze(1)
        order = torch.arange(len(data))
        order[own] = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))]
        mixed = {b: x[order] if inputs[b] == name else x for b, x in data.features.items()}
        shuffled = replace(
            data,
            features=mixed,
            present=torch.where(columns, data.present[order], data.present),
            ages_s=torch.where(columns, data.ages_s[order], data.ages_s),
        )
        drops[name] = whole - metrics(truth, probabilities(model, shuffled)).accuracy
    return drops


def noise_sweep(
    model: FusionModel,
    data: Examples,
    inputs: Mapping[str, str],
    levels: Sequence[float] = (0, 0.25, 0.5, 1, 2),
) -> dict[str, dict[str, float]]:
    """Return accuracy per input with Gaussian noise on its features, in their own standard deviations.

    An input of text whose encoder was trained is left out: noise cannot be added to letters.
    """
    truth = truth_of(data)
    curves: dict[str, dict[str, float]] = {}
    for name in sorted(set(inputs.values())):
        own = {branch: read(x) for branch, x in data.features.items() if inputs[branch] == name}
        if not all(x.is_floating_point() for x in own.values()):
            continue
        curves[name] = {}
        for level in levels:
            generator = torch.Generator().manual_seed(0)
            features = dict(data.features)
            for branch, x in own.items():
                noise = torch.randn(x.shape, generator=generator)
                features[branch] = x + level * x.std(dim=0, keepdim=True, correction=0) * noise
            noisy = probabilities(model, replace(data, features=features))
            curves[name][str(level)] = metrics(truth, noisy).accuracy
    return curves


def delay_sweep(
    model: FusionModel,
    data: Examples,
    inputs: Mapping[str, str],
    ticks: Sequence[int] = (0, 1, 2, 5, 10, 20),
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Return accuracy per input when it is late by so many windows of its own session, and windows left out.

    Windows in which that leaves nothing present are not scored but counted; a lag that leaves no window has
    no accuracy.
    """
    curves: dict[str, dict[str, float]] = {}
    missed: dict[str, dict[str, int]] = {}
    for name in sorted(set(inputs.values())):
        curves[name], missed[name] = {}, {}
        for lag in ticks:
            late = data
            for branch in data.branches:
                if inputs[branch] == name:
                    late = delayed(late, branch, lag)
            late = late.without_empty()
            missed[name][str(lag)] = len(data.labelled) - len(late.labelled)
            if len(late.labelled):
                curves[name][str(lag)] = metrics(truth_of(late), probabilities(model, late)).accuracy
    return curves, missed


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
