"""One classifier per modality for the GRID benchmark, and one that tells how late the video is."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from perception.reproduce.grid_data import FRAME_RATE_HZ
from perception.reproduce.grid_features import (
    LAGS_S,
    MOVED_S,
    OFFSETS_S,
    SNRS_DB,
    TEST_NOISE,
    TRAINING_NOISE,
    Course,
    Material,
    interpolated,
)

COMPONENTS: Final = 80
TIME_DEVIATION_S: Final = 0.02
"""Prior deviation of a word's time from the given one, half a frame of the video: where noise hides the word,
what is heard at a wrong time counts little."""
SOFTNESS: Final = 2.0
"""Components are not as independent as Gaussian classes have it; likelihoods are flattened by this."""
MOUTH_COMPONENTS: Final = 6
NOISES_PER_CLIP: Final = 3
EPOCHS: Final = 30
MOMENT_SOFTNESS: Final = 6.0
"""Neighbouring moments tell much the same; their likelihoods are flattened by this."""
SYNCHRONISER_WEIGHT: Final = 0.5
WORD_WEIGHT: Final = 0.1
"""What a word and the synchroniser each say of the lag is flattened by these, found on inner folds."""
LEVEL_SOFTNESS: Final = 4.0
"""Softens the choice among noise levels: the one that explains the sound best is often a neighbour's."""
IN_STEP: Final = 0.97
"""Prior probability that video and sound are in step; the other offsets share the rest."""
BRANCHES: Final = ("audio, by noise level", "video, aligned by sound")
SINGLES: Final = (
    "audio",
    "audio, by noise level",
    "audio, trained without noise",
    "video",
    "video, aligned by itself",
)
"""What one modality can do alone, searching for the word in the video included."""
_MOVED_PRIOR: Final = log_softmax(-np.square(np.array(MOVED_S) / TIME_DEVIATION_S) / 2)
_SHIFT_PRIOR: Final = np.log([IN_STEP if shift_s == 0 else (1 - IN_STEP) / 8 for shift_s in OFFSETS_S])
Condition = tuple[float, float]
"""SNR in dB, offset in s."""


class Expert:
    """Principal components, then Gaussian classes with a shared, shrunken covariance."""

    def fit(self, x: Any, labels: Any, pca: PCA | None = None) -> "Expert":
        """Fit rows (N, D), on components found elsewhere if given."""
        self.pca = pca or PCA(min(COMPONENTS, len(x) // 2), svd_solver="randomized", random_state=0).fit(x)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a letter said once in training
            self._lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
            self._lda.fit(self.pca.transform(x), labels)
        self._whiten = np.linalg.cholesky(np.linalg.inv(self._lda.covariance_))
        return self

    def __call__(self, x: Any) -> Any:
        """Return logits (N, C)."""
        return self._project(x) @ self._lda.coef_.T + self._lda.intercept_

    def likelihoods(self, x: Any) -> Any:
        """Return what each class says of each row, (N, C), up to a constant; comparable between windows."""
        return -self._squares(x) / (2 * SOFTNESS)

    def evidence(self, x: Any) -> Any:
        """Return the log-likelihood of each row, (N,), up to a constant; comparable between experts."""
        return logsumexp(-self._squares(x) / 2, axis=1) + np.log(np.diag(self._whiten)).sum()

    def _squares(self, x: Any) -> Any:
        z = self._project(x)
        return np.square((z[:, None] - self._lda.means_[None]) @ self._whiten).sum(axis=2)

    def _project(self, x: Any) -> Any:
        return (x - self.pca.mean_) @ self.pca.components_.T


class Listener:
    """Gaussian classes for each noise level, of a word whose time is known only roughly.

    How well a level explains what is heard at a time decides what the two count.
    """

    def fit(self, levels: Sequence[Any], labels: Any, pca: PCA | None = None) -> "Listener":
        """Fit rows (N, D) of each level, heard at the given time; several levels need common components."""
        self._levels = [Expert().fit(x, labels, pca) for x in levels]
        self.pca = self._levels[0].pca
        return self

    def __call__(self, x: Any) -> Any:
        """Return log-probabilities (N, C) of words heard around their given times, (N, MOVED_S, D)."""
        looks = [(level, at) for level in self._levels for at in range(len(MOVED_S))]
        explained = [level.evidence(x[:, at]) / LEVEL_SOFTNESS + _MOVED_PRIOR[at] for level, at in looks]
        told = np.stack([log_softmax(level(x[:, at]), axis=1) for level, at in looks], axis=1)
        return logsumexp(log_softmax(np.stack(explained, axis=1), axis=1)[:, :, None] + told, axis=1)


class Synchroniser:
    """Predicts the mouth from the sound, in any noise; the lag at which it fits best is the offset."""

    def fit(self, course: Course, rows: Any) -> "Synchroniser":
        """Fit on clips in step."""
        self._pca = PCA(MOUTH_COMPONENTS, whiten=True, svd_solver="randomized", random_state=0)
        self._pca.fit(np.concatenate([course.mouth[row] for row in rows]))
        rng = np.random.default_rng(0)
        sounds, mouths = [], []
        for row in rows:
            for snr_db in rng.choice(SNRS_DB, NOISES_PER_CLIP, replace=False):
                sounds.append(course.sound[snr_db, TRAINING_NOISE[0]][row])
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

    def __call__(self, course: Course, rows: Any, snr_db: float) -> Any:
        """Return how well the mouth fits the sound at every lag, (N, LAGS_S), log-likelihoods."""
        fits = []
        for row in rows:
            missed = self._mouth(course, row, np.asarray(LAGS_S))
            missed -= self._network.predict(course.sound[snr_db, TEST_NOISE][row])
            fits.append(np.einsum("ltc,cd,ltd->l", missed, self._precision, missed))
        return np.stack(fits) / (-2 * MOMENT_SOFTNESS)

    def _mouth(self, course: Course, row: int, lags_s: Any) -> Any:
        at = course.moments_s[row] - lags_s[:, None]
        return interpolated(self._pca.transform(course.mouth[row]), at * FRAME_RATE_HZ - 0.5)


class Experts:
    """All of them, fitted on the same clips, for some slots; of the other words those that tell the lag.

    Args:
        course: whole commands.
        materials: every word of them, by slot.
        rows: the clips.
        slots: what is to be told.
    """

    def __init__(
        self, course: Course, materials: Mapping[str, Material], rows: Any, slots: Sequence[str]
    ) -> None:
        self._course, self._materials, self._slots = course, materials, slots
        self._clean, self._audio, self._levels, self._video = {}, {}, {}, {}
        for slot, data in materials.items():
            labels = data.labels[rows]
            heard = [
                np.concatenate([data.audio[snr_db, seed][rows, 0] for seed in TRAINING_NOISE])
                for snr_db in SNRS_DB
            ]
            every = np.tile(labels, len(TRAINING_NOISE))
            self._audio[slot] = Listener().fit([np.concatenate(heard)], np.tile(every, len(SNRS_DB)))
            seen = [data.video(rows, moved_s) for moved_s in MOVED_S]
            self._video[slot] = Expert().fit(np.concatenate(seen), np.tile(labels, len(MOVED_S)))
            if slot in slots:
                self._levels[slot] = Listener().fit(heard, every, self._audio[slot].pca)
                self._clean[slot] = Listener().fit([data.audio[np.inf, TEST_NOISE][rows, 0]], labels)
        self._synchroniser = Synchroniser().fit(course, rows)

    def told(self, rows: Any) -> Iterator[tuple[str, Condition, dict[str, Any]]]:
        """Yield slot, condition and logits (N, C) by name."""
        seen = {slot: self._seen(slot, rows) for slot in self._materials}
        videos = {slot: self._unmoved(slot, rows) for slot in self._slots}
        alone = {slot: logsumexp(words, axis=2) for slot, words in seen.items()}
        for snr_db in SNRS_DB:
            sounds = {slot: data.audio[snr_db, TEST_NOISE][rows] for slot, data in self._materials.items()}
            audio = {slot: self._audio[slot](sound) for slot, sound in sounds.items()}
            matched = {
                slot: logsumexp(log_softmax(logits, axis=1)[:, None] + seen[slot], axis=2)
                for slot, logits in audio.items()
            }
            fits = SYNCHRONISER_WEIGHT * self._synchroniser(self._course, rows, snr_db)
            for slot, offset_s in product(self._slots, OFFSETS_S):
                yield (
                    slot,
                    (snr_db, offset_s),
                    {
                        "audio": audio[slot],
                        "audio, by noise level": self._levels[slot](sounds[slot]),
                        "audio, trained without noise": self._clean[slot](sounds[slot]),
                        "video": videos[slot][offset_s],
                        "video, aligned by itself": aligned(seen[slot], others(alone, slot), offset_s),
                        "video, aligned by sound": aligned(
                            seen[slot], fits + others(matched, slot), offset_s
                        ),
                    },
                )

    def _seen(self, slot: str, rows: Any) -> Any:
        """Return the likelihoods of the video at every lag, (N, LAGS_S, C)."""
        data, video = self._materials[slot], self._video[slot]
        return np.stack([video.likelihoods(data.video(rows, lag_s)) for lag_s in LAGS_S], axis=1)

    def _unmoved(self, slot: str, rows: Any) -> dict[float, Any]:
        """Return logits (N, C) of the video as it is, by offset."""
        data, video = self._materials[slot], self._video[slot]
        return {offset_s: video(data.video(rows, offset_s)) for offset_s in OFFSETS_S}


def others(fits: Mapping[str, Any], slot: str) -> Any:
    """Return how well the other words of the command fit at every lag, (N, LAGS_S)."""
    return WORD_WEIGHT * sum(fit for name, fit in fits.items() if name != slot)


def aligned(seen: Any, fits: Any, offset_s: float) -> Any:
    """Return logits (N, C) of video that is `offset_s` late, over all shifts that may undo it.

    Args:
        seen: (N, LAGS_S, C), log-likelihoods of the word.
        fits: (N, LAGS_S), log-likelihoods of the lag itself.
        offset_s: what the shifts start from; they reach as far as OFFSETS_S.
    """
    lags = [LAGS_S.index(round(offset_s + shift_s, 1)) for shift_s in OFFSETS_S]
    shift = log_softmax(fits[:, lags] + _SHIFT_PRIOR, axis=1)
    return logsumexp(shift[:, :, None] + seen[:, lags], axis=1)
