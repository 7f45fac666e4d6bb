"""GRID: spoken commands seen and heard; does fusion hold when the sound is noisy or the video late?

Two slots, the digit and the command word, in windows of the given word times. Five folds by clip. One
classifier per modality; the pool that fuses them is fitted on training clips which its classifiers were
not trained on, under every disturbance. No published equivalent: one speaker, our own task.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import log_softmax, logsumexp
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold

from perception.features.logmel import log_mel
from perception.models.pooling import LogLinearPool, ReliabilityPool
from perception.training.augment import with_noise
from perception.training.benchmarks.grid_data import FRAME_RATE_HZ, Clip, load
from perception.training.benchmarks.results import Figures

SLOTS: Final = {"digit": 4, "command": 0}
SNRS_DB: Final = (np.inf, 20.0, 15.0, 10.0, 5.0, 0.0, -5.0, -10.0)
OFFSETS_S: Final = tuple(round(-0.4 + 0.1 * step, 1) for step in range(9))
MARGIN_S: Final = 0.06
"""Before and after the word."""
STEPS: Final = 10
PICTURE: Final = (32, 20)
COMPONENTS: Final = 80
SOFTNESS: Final = 4.0
"""Components are not as independent as Gaussian classes have it; likelihoods are flattened by this."""
OUTER, INNER = 5, 4
_LOG: Final = logging.getLogger(__name__)


def heard(clip: Clip, slot: int, snr_db: float, seed: int) -> Any:
    """Return log-mel bands at STEPS moments of the word, then the clip's noise floor per band."""
    wave = torch.from_numpy(clip.waveform)[None]
    if np.isfinite(snr_db):
        generator = torch.Generator().manual_seed(seed)
        wave = with_noise(wave, torch.tensor([snr_db]), generator)
    frames = log_mel(wave[0].numpy())
    start_s, end_s = _word(clip, slot)
    at = np.linspace(start_s - MARGIN_S, end_s + MARGIN_S, STEPS) * 100 - 1.25
    floor = np.quantile(frames, 0.1, axis=0).mean(keepdims=True)
    return np.concatenate([_interpolated(frames, at).ravel(), floor]).astype(np.float32)


def pictures_of(clip: Clip) -> Any:
    """Return small pictures of the mouth without their brightness and contrast, (frames, 20, 32)."""
    pictures = clip.mouth.astype(np.float32)
    pictures = (pictures - pictures.mean(axis=(1, 2), keepdims=True)) / pictures.std()
    return np.stack([cv2.resize(p, PICTURE, interpolation=cv2.INTER_AREA) for p in pictures])


def seen(clip: Clip, small: Any, slot: int, offset_s: float) -> Any:
    """Return the mouth at STEPS moments of the word, with video `offset_s` late against the sound."""
    start_s, end_s = _word(clip, slot)
    at = np.linspace(start_s - MARGIN_S, end_s + MARGIN_S, STEPS) - offset_s
    return _interpolated(small, at * FRAME_RATE_HZ - 0.5).reshape(-1).astype(np.float32)


def _word(clip: Clip, slot: int) -> tuple[float, float]:
    start_s, end_s, _ = [word for word in clip.words if word[2] not in ("sil", "sp")][slot]
    return start_s, end_s


def _interpolated(values: Any, at: Any) -> Any:
    at = at.clip(0, len(values) - 1.001)
    whole = at.astype(int)
    part = (at - whole).reshape(-1, *(1,) * (values.ndim - 1))
    return values[whole] * (1 - part) + values[whole + 1] * part


class Expert:
    """Principal components, then Gaussian classes with a shared, shrunken covariance."""

    def fit(self, x: Any, labels: Any) -> "Expert":
        """Fit rows (N, D)."""
        self._pca = PCA(min(COMPONENTS, len(x) // 2), svd_solver="randomized", random_state=0).fit(x)
        z = self._pca.transform(x)
        self._lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(z, labels)
        self._whiten = np.linalg.cholesky(np.linalg.inv(self._lda.covariance_))
        return self

    def __call__(self, x: Any) -> tuple[Any, Any]:
        """Return logits (N, C), and how far each row is from its nearest class and from the PCA's space."""
        z = self._pca.transform(x)
        gaps = (z[:, None] - self._lda.means_[None]) @ self._whiten
        nearest = np.sqrt(np.square(gaps).sum(axis=2)).min(axis=1)
        residual = np.sqrt(np.square(x - self._pca.inverse_transform(z)).mean(axis=1))
        return self._lda.decision_function(z), np.stack([nearest, residual], axis=1)

    def likelihoods(self, x: Any) -> Any:
        """Return what each class says of each row, (N, C), up to a constant; comparable between windows."""
        gaps = (self._pca.transform(x)[:, None] - self._lda.means_[None]) @ self._whiten
        return -np.square(gaps).sum(axis=2) / (2 * SOFTNESS)


@dataclass(frozen=True, slots=True)
class Material:
    """Features of one slot of all clips, under every disturbance."""

    audio: Mapping[tuple[float, int], Any]
    """By SNR in dB and noise seed: (N, D)."""
    video: Mapping[float, Any]
    """By offset in s: (N, D)."""
    labels: Any
    classes: tuple[str, ...]


def material(clips: Sequence[Clip], slot: int) -> Material:
    """Compute all features; noise of seed 0 is for training, of seed 1 for testing."""
    words = [[word for _, _, word in clip.words if word not in ("sil", "sp")][slot] for clip in clips]
    classes, labels = np.unique(words, return_inverse=True)
    audio = {
        (snr_db, seed): np.stack(
            [heard(clip, slot, snr_db, 1000 * seed + number) for number, clip in enumerate(clips)]
        )
        for snr_db in SNRS_DB
        for seed in (0, 1)
    }
    small = [pictures_of(clip) for clip in clips]
    video = {
        offset_s: np.stack(
            [seen(clip, pictures, slot, offset_s) for clip, pictures in zip(clips, small, strict=True)]
        )
        for offset_s in sorted({round(first + second, 1) for first in OFFSETS_S for second in OFFSETS_S})
    }
    return Material(audio, video, labels, tuple(classes))


class Experts:
    """One classifier per modality, and the audio one that never heard noise, for comparison."""

    def __init__(self, data: Material, rows: Any) -> None:
        labels = data.labels[rows]
        noisy = np.concatenate([data.audio[snr_db, 0][rows] for snr_db in SNRS_DB])
        self.audio = Expert().fit(noisy, np.tile(labels, len(SNRS_DB)))
        self.clean_audio = Expert().fit(data.audio[np.inf, 0][rows], labels)
        self.video = Expert().fit(data.video[0.0][rows], labels)

    def told(self, data: Material, rows: Any, snr_db: float, offset_s: float, seed: int) -> tuple[Any, Any]:
        """Return logits (N, 4, C) of BRANCHES and quality figures (N, Q)."""
        sound, picture = data.audio[snr_db, seed][rows], data.video[offset_s][rows]
        (audio, audio_far), (clean, clean_far) = self.audio(sound), self.clean_audio(sound)
        video, video_far = self.video(picture)
        shifted, moved = self._realigned(data, rows, offset_s)
        logits = np.stack([audio, clean, video, shifted], axis=1)
        sure = [_sureness(part) for part in (audio, clean, video, shifted)]
        quality = [audio_far, clean_far, sound[:, -1:], video_far, moved, *sure]
        return logits, np.concatenate(quality, axis=1)

    def _realigned(self, data: Material, rows: Any, offset_s: float) -> tuple[Any, Any]:
        """Return logits over all shifts of the video, and how much better the best one fits than none."""
        shifts = [self.video.likelihoods(data.video[round(offset_s + s, 1)][rows]) for s in OFFSETS_S]
        likelihoods = np.stack(shifts, axis=1)  # (N, shifts, C)
        best = likelihoods.max(axis=2)
        gain = best.max(axis=1) - best[:, OFFSETS_S.index(0.0)]
        distance = np.abs(np.asarray(OFFSETS_S))[best.argmax(axis=1)]
        return logsumexp(likelihoods, axis=1), np.stack([np.log1p(gain), distance], axis=1)


PAIR: Final = [0, 2]
"""One branch of each modality."""
BRANCHES: Final = ("audio", "audio, trained without noise", "video", "video, realigned")


def _sureness(logits: Any) -> Any:
    """Return entropy and the gap between the two best classes, (N, 2)."""
    log_p = log_softmax(logits, axis=1)
    top = np.sort(log_p, axis=1)
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    return np.stack([entropy, np.log1p(top[:, -1] - top[:, -2])], axis=1)


def fit_pools(data: Material, rows: Any) -> tuple[LogLinearPool, ReliabilityPool]:
    """Fit both pools on training clips, each told by experts that were not trained on it.

    The fixed pool sees undisturbed windows, as a user without disturbed ones would have it; the other
    one every SNR and every offset, each with the other modality undisturbed and with one of the rest.
    """
    plain: list[tuple[Any, Any]] = []
    mixed: list[tuple[Any, Any, Any]] = []
    splitter = StratifiedKFold(INNER, shuffle=True, random_state=1)
    rng = np.random.default_rng(0)
    for fitted, held in splitter.split(rows, data.labels[rows]):
        experts, out = Experts(data, rows[fitted]), rows[held]
        conditions = [(snr_db, 0.0) for snr_db in SNRS_DB] * 2 + [(np.inf, offset) for offset in OFFSETS_S]
        conditions += [
            (SNRS_DB[rng.integers(len(SNRS_DB))], OFFSETS_S[rng.integers(len(OFFSETS_S))])
            for _ in range(len(conditions))
        ]
        plain.append((experts.told(data, out, np.inf, 0.0, 1)[0][:, PAIR], data.labels[out]))
        mixed += [(*experts.told(data, out, *condition, 1), data.labels[out]) for condition in conditions]
    logits, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*plain, strict=True))
    present = torch.ones(len(labels), 2, dtype=torch.bool)
    fixed = LogLinearPool(2, len(data.classes))
    fixed.fit_temperatures(logits, present, labels)
    fixed.fit_weights(logits, present, labels)
    logits, quality, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*mixed, strict=True))
    gated = ReliabilityPool(len(BRANCHES), quality.shape[1], len(data.classes))
    gated.fit(logits, torch.ones(len(labels), len(BRANCHES), dtype=torch.bool), quality, labels, len(rows))
    return fixed, gated


@torch.no_grad()
def score(figures: Figures, name: str, data: Material, train: Any, test: Any) -> None:
    """Score everything on one test fold, at every SNR and offset."""
    experts, (fixed, gated) = Experts(data, train), fit_pools(data, train)
    truth = data.labels[test]
    present = torch.ones(len(test), len(BRANCHES), dtype=torch.bool)
    for snr_db in SNRS_DB:
        for offset_s in OFFSETS_S:
            logits, quality = experts.told(data, test, snr_db, offset_s, 1)
            both, given = torch.from_numpy(logits), torch.from_numpy(quality).double()
            told = dict(zip(BRANCHES, logits.swapaxes(0, 1), strict=True)) | {
                "product of experts, trained without noise": log_softmax(logits[:, 1:3], axis=2).sum(axis=1),
                "product of experts": log_softmax(logits[:, PAIR], axis=2).sum(axis=1),
                "averaged logits": logits[:, PAIR].mean(axis=1),
                "pool, fixed weights": fixed(both[:, PAIR], present[:, PAIR]).numpy(),
                "pool, weights by reliability": gated.double()(both, present, given).numpy(),
            }
            for kind, values in told.items():
                right = float((values.argmax(axis=1) == truth).sum())
                figures.add(f"{name}, offset {offset_s:+.1f} s", kind, _label(snr_db), right)


def _label(snr_db: float) -> str:
    return "clean" if np.isinf(snr_db) else f"{snr_db:g} dB"


def run(data: Path, out: Path, seeds: int = 1, workers: int = 1) -> Figures:
    """Score both slots; write `grid.json` and `.md`; return accuracies over all test folds."""
    clips = load(data, workers)
    figures = Figures()
    for name, slot in SLOTS.items():
        features = material(clips, slot)
        _LOG.info("%s: features of %d clips", name, len(clips))
        for seed in range(seeds):
            folds = StratifiedKFold(OUTER, shuffle=True, random_state=seed)
            right = Figures()
            for train, test in folds.split(features.labels, features.labels):
                score(right, name, features, train, test)
                _LOG.info("%s: a fold done", name)
            for table, rows in right.as_json().items():
                for row, columns in rows.items():
                    for column, values in columns.items():
                        figures.add(table, row, column, sum(values["values"]) / len(clips))
    verdicts(figures)
    plot(figures, out / "grid.svg")
    figures.save(out, "grid", {"clips": len(clips), "seeds": seeds})
    return figures


SINGLES: Final = BRANCHES
FUSED: Final = "pool, weights by reliability"


def verdicts(figures: Figures) -> None:
    """Add by how much fusion is better than the best single modality, per condition."""
    for name in SLOTS:
        for offset_s in OFFSETS_S:
            table = f"{name}, offset {offset_s:+.1f} s"
            for snr_db in SNRS_DB:
                column = _label(snr_db)
                best = max(figures.mean(table, single, column) for single in SINGLES)
                for kind in (FUSED, "product of experts, trained without noise", "pool, fixed weights"):
                    gain = figures.mean(table, kind, column) - best
                    figures.add(f"{name}, gain of {kind}", f"{offset_s:+.1f} s", column, gain)


SHOWN: Final = ("audio", "video", "product of experts, trained without noise", "pool, fixed weights", FUSED)


def plot(figures: Figures, file: Path) -> None:
    """Draw accuracy over SNR without offset, and over offset at 0 dB, for each slot."""
    figure = Figure((11, 7), layout="constrained")
    for row, name in zip(figure.subplots(len(SLOTS), 2), SLOTS, strict=True):
        for kind in SHOWN:
            over_snr = [figures.mean(f"{name}, offset +0.0 s", kind, _label(snr_db)) for snr_db in SNRS_DB]
            row[0].plot([_label(snr_db) for snr_db in SNRS_DB], over_snr, marker="o", label=kind)
            over_offset = [figures.mean(f"{name}, offset {at:+.1f} s", kind, "0 dB") for at in OFFSETS_S]
            row[1].plot(OFFSETS_S, over_offset, marker="o", label=kind)
        row[0].set(title=f"{name}, no offset", xlabel="noise", ylabel="accuracy", ylim=(0, 1.02))
        row[1].set(title=f"{name}, noise at 0 dB", xlabel="video late by s", ylim=(0, 1.02))
    row[0].legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
