"""GRID: spoken commands seen and heard; does fusion hold when the sound is noisy or the video late?

Two slots, the digit and the command word, in windows around the given word times. Five folds by clip.
Classifiers per modality, of which those of sound search for the word near its given time; how late the
video is, a network and the other words of the command tell. The pool that fuses them is that of any
model-level head, and is fitted on training clips which none of these was trained on, under every
disturbance.
No published equivalent: one speaker, our own task.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import log_softmax
from sklearn.model_selection import StratifiedKFold

from perception.io.progress import Advance, nothing
from perception.models.checkpoint import Head
from perception.models.fusion import ModelFusion
from perception.reproduce.grid_data import load
from perception.reproduce.grid_experts import BRANCHES, SINGLES, Condition, Experts
from perception.reproduce.grid_features import OFFSETS_S, SNRS_DB, Course, Material, features
from perception.reproduce.results import Figures

SCORED: Final = ("digit", "command")
OUTER, INNER = 5, 4
SPLIT_SEED: Final = 6001
"""Designs are compared on splits from 100 on; earlier ones were scored on 2026, 2027, 3001 to 3003, 4001 to
4003 and 5001 to 5003."""
IN_STEP_COPIES: Final = 8
"""How often windows in step are fitted on, against once for every other offset."""
UNCLIPPED: Final = 1000.0
"""Deviation that heads are told of log-probabilities: what lies ten deviations out is clipped."""
DRAWS: Final = 2000
PAIR: Final = ("audio", "video")
PRODUCT: Final = "product of experts, trained without noise"
PRODUCTS: Final = {
    PRODUCT: ("audio, trained without noise", "video"),
    "product of experts": PAIR,
    "product of experts, by noise level": ("audio, by noise level", "video"),
}
FIXED: Final = "pool, fitted without disturbance"
FUSED: Final = "pool, fitted under every disturbance"
MISSED: Final = f"conditions of {len(SNRS_DB) * len(OFFSETS_S)} at which it is below"
_LOG: Final = logging.getLogger(__name__)
Hits = dict[Condition, dict[str, Any]]
"""By condition and kind: (N,) whether each clip was told rightly."""


def told_by(logits: Mapping[str, Any], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return log-probabilities (N, C) of some branches, which are what a head takes as their features."""
    return {name: torch.from_numpy(log_softmax(logits[name], axis=1)).float() for name in names}


def fit_head(
    told: Mapping[str, torch.Tensor], classes: Sequence[str], labels: Any, copies: int = 1
) -> ModelFusion:
    """Return a model-level head whose models pass on what the experts say, its pool fitted to these rows.

    Args:
        told: log-probabilities by branch, (N, C).
        classes: their names.
        labels: (N,).
        copies: how many rows there are of each clip.
    """
    head = ModelFusion({name: len(classes) for name in told}, classes).eval()
    head.std.fill_(UNCLIPPED)
    for model in head.models:
        model.load_state_dict(
            {"weight": UNCLIPPED * torch.eye(len(classes)), "bias": torch.zeros(len(classes))}
        )
    head.calibrate(told, _present(told), torch.from_numpy(labels), copies)
    return head


@torch.no_grad()
def answers(head: Head, told: Mapping[str, torch.Tensor]) -> Any:
    """Return the head's log-probabilities (N, C)."""
    return head(told, _present(told)).numpy()


def _present(told: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.ones(len(next(iter(told.values()))), len(told), dtype=torch.bool)


def fit_heads(
    parts: Sequence[tuple[Experts, Any]], materials: Mapping[str, Material]
) -> dict[str, tuple[ModelFusion, ModelFusion]]:
    """Fit both pools of each slot on training clips, each told by experts that were not trained on it.

    The fixed pool sees undisturbed windows, as a user without disturbed ones would have it; the other one
    every SNR and every offset.

    Args:
        parts: experts, and the clips they were not trained on.
        materials: by slot.
    """
    plain: dict[str, Any] = defaultdict(list)
    mixed: dict[str, Any] = defaultdict(list)
    for experts, rows in parts:
        for slot, (snr_db, offset_s), logits in experts.told(rows):
            labels = materials[slot].labels[rows]
            if offset_s == 0 and np.isinf(snr_db):
                plain[slot].append((told_by(logits, PAIR), labels))
            mixed[slot] += [(told_by(logits, BRANCHES), labels)] * (IN_STEP_COPIES if offset_s == 0 else 1)

    def fitted(slot: str, rows: Sequence[tuple[dict[str, torch.Tensor], Any]]) -> ModelFusion:
        together = {name: torch.cat([told[name] for told, _ in rows]) for name in rows[0][0]}
        labels = np.concatenate([labels for _, labels in rows])
        copies = len(labels) // sum(len(held) for _, held in parts)
        return fit_head(together, materials[slot].classes, labels, copies)

    return {slot: (fitted(slot, plain[slot]), fitted(slot, mixed[slot])) for slot in SCORED}


def score(
    hits: Mapping[str, Hits],
    materials: Mapping[str, Material],
    experts: Experts,
    heads: Mapping[str, tuple[ModelFusion, ModelFusion]],
    test: Any,
) -> None:
    """Tell one test fold under every condition."""
    for slot, condition, logits in experts.told(test):
        fixed, fused = heads[slot]
        labels = materials[slot].labels
        pooled = {
            kind: sum(log_softmax(logits[name], axis=1) for name in names) for kind, names in PRODUCTS.items()
        }
        kinds = logits | pooled
        kinds["averaged logits"] = sum(logits[name] for name in PAIR)
        kinds[FIXED] = answers(fixed, told_by(logits, PAIR))
        kinds[FUSED] = answers(fused, told_by(logits, BRANCHES))
        for kind, values in kinds.items():
            right = hits[slot][condition].setdefault(kind, np.zeros(len(labels), bool))
            right[test] = values.argmax(axis=1) == labels[test]


def cross_validate(
    materials: Mapping[str, Material], course: Course, seed: int, advance: Advance
) -> tuple[dict[str, Hits], dict[str, ModelFusion]]:
    """Return what was told rightly of every clip, by slot, each clip being tested once; the last heads."""
    hits: dict[str, Hits] = {slot: defaultdict(dict) for slot in SCORED}
    strata = materials[SCORED[0]].labels
    splitter = StratifiedKFold(OUTER, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(splitter.split(strata, strata)):
        inner = StratifiedKFold(INNER, shuffle=True, random_state=seed).split(train, strata[train])
        parts = [(Experts(course, materials, train[fitted], SCORED), train[held]) for fitted, held in inner]
        heads = fit_heads(parts, materials)
        score(hits, materials, Experts(course, materials, train, SCORED), heads, test)
        advance(note=f"fold {number + 1} of {OUTER}")
        _LOG.info("fold %d of %d done", number + 1, OUTER)
    return hits, {slot: fused for slot, (_, fused) in heads.items()}


def run(data: Path, out: Path, seeds: int = 1, advance: Advance = nothing, workers: int = 1) -> Figures:
    """Score both slots; write `grid.json`, `.md`, `.html` and a head per slot; return accuracies.

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
            for (snr_db, offset_s), kinds in hits.items():
                for kind, right in kinds.items():
                    figures.add(table_of(slot, offset_s), kind, _label(snr_db), right.mean())
            verdicts(figures, slot, hits)
    for slot, head in heads.items():
        head.save_pretrained(out / f"grid-{slot}")
    plots = {"Accuracy over noise and over the offset of the video": plot(figures)}
    about = {"clips": len(clips), "seeds": seeds, "first split seed": SPLIT_SEED}
    figures.save(out, "grid", about, plots)
    return figures


def table_of(name: str, offset_s: float) -> str:
    """Return the name of the table of one slot and offset."""
    return f"{name}, offset {offset_s:+.1f} s"


def _label(snr_db: float) -> str:
    return "clean" if np.isinf(snr_db) else f"{snr_db:g} dB"


def verdicts(figures: Figures, name: str, hits: Hits) -> None:
    """Add by how much fusion is better than the best single modality, per condition, with 95 % bounds.

    And at how many conditions it is below that, and below the better product of experts.
    """
    for (snr_db, offset_s), kinds in hits.items():
        row, column = f"{offset_s:+.1f} s", _label(snr_db)
        best = best_of(kinds, SINGLES)
        for kind in (FUSED, FIXED, PRODUCT):
            gain, low, high = paired_gain(kinds[kind], best)
            figures.add(f"{name}, gain of {kind}", row, column, gain)
            if kind == FUSED:
                figures.add(f"{name}, gain of {kind}, 2.5 %", row, column, low)
                figures.add(f"{name}, gain of {kind}, 97.5 %", row, column, high)
    for kind in (FUSED, FIXED, *PRODUCTS):
        for against, names in {"best single": SINGLES, "best product": tuple(PRODUCTS)}.items():
            below = [kinds[kind].mean() < best_of(kinds, names).mean() for kinds in hits.values()]
            figures.add(f"{name}, {MISSED}", kind, against, float(sum(below)))


def best_of(kinds: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return what the best of these told rightly, (N,) bool."""
    return max((kinds[name] for name in names), key=lambda right: right.mean())


def paired_gain(first: Any, second: Any) -> tuple[float, float, float]:
    """Return the accuracy gained by `first` over `second`, (N,) bool each, with its bootstrap interval."""
    gain = first.astype(float) - second
    picks = np.random.default_rng(0).integers(0, len(gain), (DRAWS, len(gain)))
    low, high = np.quantile(gain[picks].mean(axis=1), (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


SHOWN: Final = (*PAIR, PRODUCT, FIXED, FUSED)


def plot(figures: Figures) -> Figure:
    """Draw accuracy over SNR without offset, and over offset at 0 dB, for each slot."""
    figure = Figure((11, 7), layout="constrained")
    for row, name in zip(figure.subplots(len(SCORED), 2), SCORED, strict=True):
        for kind in SHOWN:
            over_snr = [figures.mean(table_of(name, 0.0), kind, _label(snr_db)) for snr_db in SNRS_DB]
            row[0].plot([_label(snr_db) for snr_db in SNRS_DB], over_snr, marker="o", label=kind)
            over_offset = [figures.mean(table_of(name, at), kind, "0 dB") for at in OFFSETS_S]
            row[1].plot(OFFSETS_S, over_offset, marker="o", label=kind)
        row[0].set(title=f"{name}, no offset", xlabel="noise", ylabel="accuracy", ylim=(0, 1.02))
        row[1].set(title=f"{name}, noise at 0 dB", xlabel="video late by s", ylim=(0, 1.02))
    row[0].legend()
    return figure
