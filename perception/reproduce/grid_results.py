"""Tables and plot of the GRID benchmark: accuracy under every condition."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from perception.reproduce.arrays import Right
from perception.reproduce.grid_experts import SINGLES, Condition
from perception.reproduce.grid_features import OFFSETS_S, SNRS_DB
from perception.reproduce.results import Figures
from perception.training.scores import gained

PAIR: Final = ("audio", "video")
PRODUCT: Final = "product of experts, trained without noise"
PRODUCTS: Final = {
    PRODUCT: ("audio, trained without noise", "video"),
    "product of experts": PAIR,
    "product of experts, by noise level": ("audio, by noise level", "video"),
}
FIXED: Final = "pool, fitted without disturbance"
FUSED: Final = "pool, fitted under every disturbance"
SHOWN: Final = (*PAIR, PRODUCT, FIXED, FUSED)
MISSED: Final = f"conditions of {len(SNRS_DB) * len(OFFSETS_S)} at which it is below"
Hits = dict[Condition, dict[str, Right]]
"""By condition and kind: which clips were inferred correctly."""


def add(figures: Figures, slot: str, hits: Hits) -> None:
    """Add the accuracies of one slot and their comparison."""
    for (snr_db, offset_s), kinds in hits.items():
        for kind, right in kinds.items():
            figures.add(_table(slot, offset_s), kind, _label(snr_db), right.mean())
    _compare(figures, slot, hits)


def _compare(figures: Figures, slot: str, hits: Hits) -> None:
    """Add the gain of fusion over the best single modality, per condition, with 95 % bounds.

    Also add the number of conditions at which fusion is below it, and below the better product of experts.
    """
    for (snr_db, offset_s), kinds in hits.items():
        row, column = f"{offset_s:+.1f} s", _label(snr_db)
        best = _best(kinds, SINGLES)
        for kind in (FUSED, FIXED, PRODUCT):
            gain, low, high = gained(kinds[kind], best, np.arange(len(best)))
            figures.add(f"{slot}, gain of {kind}", row, column, gain)
            if kind == FUSED:
                figures.add(f"{slot}, gain of {kind}, 2.5 %", row, column, low)
                figures.add(f"{slot}, gain of {kind}, 97.5 %", row, column, high)
    for kind in (FUSED, FIXED, *PRODUCTS):
        for against, names in {"best single": SINGLES, "best product": tuple(PRODUCTS)}.items():
            below = [kinds[kind].mean() < _best(kinds, names).mean() for kinds in hits.values()]
            figures.add(f"{slot}, {MISSED}", kind, against, float(sum(below)))


def _best(kinds: Mapping[str, Right], names: Sequence[str]) -> Right:
    """Return the kind with the best accuracy."""
    return max((kinds[name] for name in names), key=lambda right: float(right.mean()))


def _table(slot: str, offset_s: float) -> str:
    return f"{slot}, offset {offset_s:+.1f} s"


def _label(snr_db: float) -> str:
    return "clean" if np.isinf(snr_db) else f"{snr_db:g} dB"


def plot(figures: Figures, slots: Sequence[str]) -> Figure:
    """Draw accuracy over SNR without offset, and over offset at 0 dB, for each slot."""
    figure = Figure((11, 7), layout="constrained")
    for row, slot in zip(figure.subplots(len(slots), 2), slots, strict=True):
        for kind in SHOWN:
            over_snr = [figures.mean(_table(slot, 0.0), kind, _label(snr_db)) for snr_db in SNRS_DB]
            row[0].plot([_label(snr_db) for snr_db in SNRS_DB], over_snr, marker="o", label=kind)
            over_offset = [figures.mean(_table(slot, at_s), kind, "0 dB") for at_s in OFFSETS_S]
            row[1].plot(OFFSETS_S, over_offset, marker="o", label=kind)
        row[0].set(title=f"{slot}, no offset", xlabel="noise", ylabel="accuracy", ylim=(0, 1.02))
        row[1].set(title=f"{slot}, noise at 0 dB", xlabel="video late by s", ylim=(0, 1.02))
    row[0].legend()
    return figure
