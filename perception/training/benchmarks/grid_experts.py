"""One classifier per modality for the GRID benchmark, and one that tells how late the video is."""

import warnings
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from perception.training.benchmarks.grid_data import FRAME_RATE_HZ
from perception.training.benchmarks.grid_features import (
    LAGS_S,
    OFFSETS_S,
    SNRS_DB,
    Course,
    Material,
    interpolated,
)

COMPONENTS: Final = 80
SOFTNESS: Final = 2.0
"""Components are not as independent as Gaussian classes have it; likelihoods are flattened by this."""
MOUTH_COMPONENTS: Final = 6
NOISES_PER_CLIP: Final = 3
EPOCHS: Final = 30
MOMENT_SOFTNESS: Final = 6.0
"""Neighbouring moments tell much the same; their likelihoods are flattened by this."""
IN_STEP: Final = 0.9
"""Prior probability that video and sound are in step; the other offsets share the rest."""
BRANCHES: Final = ("audio", "audio, trained without noise", "video, aligned by sound")
SINGLES: Final = ("audio", "audio, trained without noise", "video", "video, aligned by itself")
"""What one modality can do alone, searching for the word in the video included."""
_AT_ZERO: Final = OFFSETS_S.index(0.0)


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
        nearest = np.sqrt(self._squares(z).min(axis=1))
        residual = np.sqrt(np.square(x - self._pca.inverse_transform(z)).mean(axis=1))
        return self._lda.decision_function(z), np.stack([nearest, residual], axis=1)

    def likelihoods(self, x: Any) -> Any:
        """Return what each class says of each row, (N, C), up to a constant; comparable between windows."""
        return -self._squares(self._pca.transform(x)) / (2 * SOFTNESS)

    def _squares(self, z: Any) -> Any:
        return np.square((z[:, None] - self._lda.means_[None]) @ self._whiten).sum(axis=2)


class Synchroniser:
    """Predicts the mouth from the sound, in any noise; the lag at which it fits best is the offset."""

    def fit(self, course: Course, rows: Any) -> "Synchroniser":
        """Fit on clips in step."""
        self._pca = PCA(MOUTH_COMPONENTS, whiten=True, svd_solver="randomized", random_state=0)
        self._pca.fit(np.concatenate([course.mouth[row] for row in rows]))
        rng = np.random.default_rng(0)
        sounds, mouths = [], []
        for row in rows:
            for snr in rng.choice(len(SNRS_DB), NOISES_PER_CLIP, replace=False):
                sounds.append(course.sound[SNRS_DB[snr], 0][row])
                mouths.append(self._mouth(course, row, np.zeros(1))[0])
        network = MLPRegressor(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            batch_size=512,
            learning_rate_init=2e-3,
            max_iter=EPOCHS,
            random_state=0,
        )
        x, y = np.concatenate(sounds), np.concatenate(mouths)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # EPOCHS are enough
            self._network = make_pipeline(StandardScaler(), network).fit(x, y)
        self._precision = np.linalg.inv(np.cov((y - self._network.predict(x)).T))
        return self

    def __call__(self, course: Course, rows: Any, snr_db: float, seed: int) -> Any:
        """Return how well the mouth fits the sound at every lag, (N, LAGS_S), log-likelihoods."""
        fits = []
        for row in rows:
            missed = self._mouth(course, row, np.asarray(LAGS_S))
            missed -= self._network.predict(course.sound[snr_db, seed][row])
            fits.append(np.einsum("ltc,cd,ltd->l", missed, self._precision, missed))
        return np.stack(fits) / (-2 * MOMENT_SOFTNESS)

    def _mouth(self, course: Course, row: int, lags_s: Any) -> Any:
        at = course.moments_s[row] - lags_s[:, None]
        return interpolated(self._pca.transform(course.mouth[row]), at * FRAME_RATE_HZ - 0.5)


class Experts:
    """All of them, fitted on the same clips."""

    def __init__(self, data: Material, course: Course, rows: Any, synchroniser: Synchroniser) -> None:
        labels = data.labels[rows]
        noisy = np.concatenate([data.audio[snr_db, 0][rows] for snr_db in SNRS_DB])
        self._data, self._course, self._synchroniser = data, course, synchroniser
        self._audio = Expert().fit(noisy, np.tile(labels, len(SNRS_DB)))
        self._clean_audio = Expert().fit(data.audio[np.inf, 0][rows], labels)
        self._video = Expert().fit(data.video[0.0][rows], labels)

    def told(self, rows: Any, snr_db: float, seed: int) -> Iterator[tuple[float, dict[str, Any], Any]]:
        """Yield each offset with logits (N, C) by name, and quality figures (N, Q)."""
        sound = self._data.audio[snr_db, seed][rows]
        (audio, audio_far), (clean, clean_far) = self._audio(sound), self._clean_audio(sound)
        fits = self._synchroniser(self._course, rows, snr_db, seed)
        by_lag = np.stack([self._video.likelihoods(self._data.video[lag][rows]) for lag in LAGS_S], axis=1)
        prior = np.log(np.where(np.arange(len(OFFSETS_S)) == _AT_ZERO, IN_STEP, (1 - IN_STEP) / 8))
        for offset_s in OFFSETS_S:
            lags = [LAGS_S.index(round(offset_s + shift, 1)) for shift in OFFSETS_S]
            shift = log_softmax(fits[:, lags] + prior, axis=1)
            aligned = logsumexp(shift[:, :, None] + by_lag[:, lags], axis=1)
            logits = {
                "audio": audio,
                "audio, trained without noise": clean,
                "video": self._video(self._data.video[offset_s][rows])[0],
                "video, aligned by itself": logsumexp(by_lag[:, lags], axis=1),
                "video, aligned by sound": aligned,
            }
            unsure = -(np.exp(shift) * shift).sum(axis=1, keepdims=True)
            sure = [_sureness(logits[name]) for name in BRANCHES]
            yield (
                offset_s,
                logits,
                np.concatenate([sound[:, -1:], audio_far, clean_far, unsure, *sure], axis=1),
            )


def _sureness(logits: Any) -> Any:
    """Return entropy and the gap between the two best classes, (N, 2)."""
    log_p = log_softmax(logits, axis=1)
    top = np.sort(log_p, axis=1)
    entropy = -(np.exp(log_p) * log_p).sum(axis=1)
    return np.stack([entropy, np.log1p(top[:, -1] - top[:, -2])], axis=1)
