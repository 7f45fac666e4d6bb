"""Scores of a head: for every subset of inputs, by source, with inputs shuffled, noisy or late."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch

from perception.training.augment import delayed
from perception.training.examples import Examples
from perception.training.model import FusionModel, predict
from perception.training.rows import read
from perception.training.scores import Labels, Metrics, Probabilities, metrics


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
            suspect=torch.where(columns, data.suspects[order], data.suspects),
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
