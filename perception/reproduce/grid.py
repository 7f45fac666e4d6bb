"""GRID: spoken commands as video and sound; fusion under noise in the sound and under late video.

Two slots, the digit and the command word, in windows around the given word times. Five folds by clip.
There are classifiers per modality; those of sound search for the word near its given time. A network and the
other words of the command estimate how late the video is. The pool that fuses them is that of any model-level
head. It is fitted under every disturbance, on training clips that none of the classifiers was trained on.
There is no published equivalent: one speaker, a task of this package.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from perception.io.progress import Advance, nothing
from perception.models.checkpoint import Head
from perception.models.fusion import ModelFusion
from perception.reproduce.arrays import Floats, Rows, log_softmax
from perception.reproduce.grid_data import load
from perception.reproduce.grid_experts import BRANCHES, Experts, Logits
from perception.reproduce.grid_features import Course, Material, features
from perception.reproduce.grid_results import FIXED, FUSED, MISSED, PAIR, PRODUCTS, Hits, add, plot
from perception.reproduce.results import Figures
from perception.training.scores import Labels

SCORED: Final = ("digit", "command")
OUTER, INNER = 5, 4
SPLIT_SEED: Final = 6001
"""Designs are compared on splits from 100 on; earlier ones were scored on 2026, 2027, 3001 to 3003, 4001 to
4003 and 5001 to 5003."""
IN_STEP_COPIES: Final = 8
"""How many times windows in step are used in a fit; windows of every other offset are used once."""
UNCLIPPED: Final = 1000.0
"""Deviation of log-probabilities set in a head, because a head clips values beyond ten deviations."""
_LOG: Final = logging.getLogger(__name__)
Features = Mapping[str, torch.Tensor]
"""Log-probabilities (N, C) by branch: the features of a head."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Heads of one slot, fitted to the same clips."""

    fixed: ModelFusion
    """Fitted on undisturbed windows only."""
    fused: ModelFusion
    """Fitted on every SNR and every offset."""


def as_features(logits: Mapping[str, Floats], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the features of some branches from their logits (N, C)."""
    return {name: torch.from_numpy(log_softmax(logits[name])).float() for name in names}


def fit_head(branches: Features, classes: Sequence[str], labels: Labels, copies: int = 1) -> ModelFusion:
    """Return a model-level head whose models are identities, its pool fitted to these rows.

    Args:
        branches: log-probabilities by branch, (N, C).
        classes: their names.
        labels: (N,) int64.
        copies: how many rows there are of each clip.
    """
    head = ModelFusion({name: len(classes) for name in branches}, classes).eval()
    head.std.fill_(UNCLIPPED)
    for model in head.models:
        model.load_state_dict(
            {"weight": UNCLIPPED * torch.eye(len(classes)), "bias": torch.zeros(len(classes))}
        )
    head.calibrate(branches, _present(branches), torch.from_numpy(labels), copies)
    return head


@torch.no_grad()
def infer(head: Head, branches: Features) -> Floats:
    """Return the head's log-probabilities (N, C), float32."""
    log_p: Floats = head(branches, _present(branches)).numpy()
    return log_p


def _present(branches: Features) -> torch.Tensor:
    return torch.ones(len(next(iter(branches.values()))), len(branches), dtype=torch.bool)


class _Windows:
    """Rows for the fit of one head, collected part by part."""

    def __init__(self) -> None:
        self._features: list[Features] = []
        self._labels: list[Labels] = []

    def add(self, branches: Features, labels: Labels, times: int = 1) -> None:
        """Add rows, `times` times."""
        self._features += [branches] * times
        self._labels += [labels] * times

    def fit(self, classes: Sequence[str], clips: int) -> ModelFusion:
        """Return a head fitted to all rows, which are of so many clips."""
        together = {name: torch.cat([one[name] for one in self._features]) for name in self._features[0]}
        labels = np.concatenate(self._labels)
        return fit_head(together, classes, labels, len(labels) // clips)


def fit_heads(parts: Sequence[tuple[Experts, Rows]], materials: Mapping[str, Material]) -> dict[str, Pools]:
    """Fit both heads of each slot on training clips.

    Args:
        parts: experts, and the clips they were not trained on.
        materials: by slot.
    """
    plain: defaultdict[str, _Windows] = defaultdict(_Windows)
    mixed: defaultdict[str, _Windows] = defaultdict(_Windows)
    for experts, rows in parts:
        for slot, (snr_db, offset_s), logits in experts.infer(rows):
            labels = materials[slot].labels[rows]
            if offset_s == 0 and np.isinf(snr_db):
                plain[slot].add(as_features(logits, PAIR), labels)
            times = IN_STEP_COPIES if offset_s == 0 else 1
            mixed[slot].add(as_features(logits, BRANCHES), labels, times)
    clips = sum(len(rows) for _, rows in parts)
    classes = {slot: materials[slot].classes for slot in SCORED}
    return {
        slot: Pools(plain[slot].fit(names, clips), mixed[slot].fit(names, clips))
        for slot, names in classes.items()
    }


def score(
    hits: Mapping[str, Hits],
    materials: Mapping[str, Material],
    experts: Experts,
    heads: Mapping[str, Pools],
    test: Rows,
) -> None:
    """Write into `hits` which clips of one test fold are inferred correctly, under every condition."""
    for slot, condition, logits in experts.infer(test):
        labels = materials[slot].labels
        for kind, values in (logits | _fused(logits, heads[slot])).items():
            right = hits[slot][condition].setdefault(kind, np.zeros(len(labels), np.bool_))
            right[test] = values.argmax(axis=1) == labels[test]


def _fused(logits: Logits, heads: Pools) -> Logits:
    """Return the scores (N, C) of every way of fusion."""
    kinds = {kind: _sum([log_softmax(logits[name]) for name in names]) for kind, names in PRODUCTS.items()}
    kinds["averaged logits"] = _sum([logits[name] for name in PAIR])
    kinds[FIXED] = infer(heads.fixed, as_features(logits, PAIR))
    kinds[FUSED] = infer(heads.fused, as_features(logits, BRANCHES))
    return kinds


def _sum(parts: Sequence[Floats]) -> Floats:
    total: Floats = np.sum(parts, axis=0)
    return total


def cross_validate(
    materials: Mapping[str, Material], course: Course, seed: int, advance: Advance
) -> tuple[dict[str, Hits], dict[str, ModelFusion]]:
    """Return by slot which clips were inferred correctly, each tested once, and heads of the last fold."""
    hits: dict[str, Hits] = {slot: defaultdict(dict) for slot in SCORED}
    strata = materials[SCORED[0]].labels
    splitter = StratifiedKFold(OUTER, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(splitter.split(strata, strata)):
        inner = StratifiedKFold(INNER, shuffle=True, random_state=seed).split(train, strata[train])
        parts = [(Experts(course, materials, train[fitted], SCORED), train[rest]) for fitted, rest in inner]
        heads = fit_heads(parts, materials)
        score(hits, materials, Experts(course, materials, train, SCORED), heads, test)
        advance(note=f"fold {number + 1} of {OUTER}")
        _LOG.info("fold %d of %d done", number + 1, OUTER)
    return hits, {slot: pools.fused for slot, pools in heads.items()}


def run(data: Path, out: Path, seeds: int = 1, advance: Advance = nothing, workers: int = 1) -> Figures:
    """Score both slots; write `grid.json`, `.md`, `.html` and a head per slot; return the figures.

    `advance` counts the folds, and the features before them.
    """
    clips = load(data, workers)
    course, materials = features(clips)
    advance(note="features")
    _LOG.info("features of %d clips", len(clips))
    figures = Figures({f"{slot}, {MISSED}": 1 for slot in SCORED})
    for seed in range(seeds):
        all_hits, heads = cross_validate(materials, course, SPLIT_SEED + seed, advance)
        for slot, hits in all_hits.items():
            add(figures, slot, hits)
    for slot, head in heads.items():
        head.save_pretrained(out / f"grid-{slot}")
    plots = {"Accuracy over noise and over the offset of the video": plot(figures, SCORED)}
    about = {"clips": len(clips), "seeds": seeds, "first split seed": SPLIT_SEED}
    figures.save(out, "grid", about, plots)
    return figures
