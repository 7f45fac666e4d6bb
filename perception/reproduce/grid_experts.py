"""Classifiers of the GRID benchmark: of sound, of video, and of how late the video is."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Final

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from perception.reproduce.arrays import Floats, Rows, log_softmax, logsumexp
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
from perception.training.scores import Labels

COMPONENTS: Final = 80
TIME_DEVIATION_S: Final = 0.02
"""Prior deviation of the time of a word from the given one, half a frame of the video: where noise hides the
word, sound at a wrong time gets little weight."""
SOFTNESS: Final = 2.0
"""Divisor of log-likelihoods: components are less independent than in the model of Gaussian classes."""
MOUTH_COMPONENTS: Final = 6
NOISES_PER_CLIP: Final = 3
EPOCHS: Final = 30
TIME_SOFTNESS: Final = 6.0
"""Divisor of log-likelihoods over times: neighbouring times are not independent."""
SYNCHRONISER_WEIGHT: Final = 0.5
WORD_WEIGHT: Final = 0.1
"""Factors of the log-likelihoods of the lag, by synchroniser and word; found on inner folds."""
LEVEL_SOFTNESS: Final = 4.0
"""Divisor of the log-likelihoods of noise levels: the likeliest is often a neighbour of the true one."""
IN_STEP: Final = 0.97
"""Prior probability that video and sound are in step; the other offsets have the rest in equal shares."""
BRANCHES: Final = ("audio, by noise level", "video, aligned by sound")
SINGLES: Final = (
    "audio",
    "audio, by noise level",
    "audio, trained without noise",
    "video",
    "video, aligned by itself",
)
"""Classifiers of one modality, with and without a search for the word in the video."""
_MOVED_PRIOR: Final = log_softmax(-np.square(np.array(MOVED_S) / TIME_DEVIATION_S) / 2, axis=0)
_SHIFT_PRIOR: Final = np.log([IN_STEP if shift_s == 0 else (1 - IN_STEP) / 8 for shift_s in OFFSETS_S])
Condition = tuple[float, float]
"""SNR in dB, offset in s."""
Logits = dict[str, Floats]
"""(N, C) by the name of the classifier."""


class Expert:
    """Principal components, then Gaussian classes with a shared, shrunken covariance."""

    def fit(self, x: Floats, labels: Labels, pca: PCA | None = None) -> "Expert":
        """Fit rows (N, D), with the components of `pca` if given."""
        self.pca = pca or PCA(min(COMPONENTS, len(x) // 2), svd_solver="randomized", random_state=0).fit(x)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a class with a single row
            self._lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
            self._lda.fit(self.pca.transform(x), labels)
        self._whiten: Floats = np.linalg.cholesky(np.linalg.inv(self._lda.covariance_))
        return self

    def __call__(self, x: Floats) -> Floats:
        """Return logits (N, C)."""
        logits: Floats = self._project(x) @ self._lda.coef_.T + self._lda.intercept_
        return logits

    def likelihoods(self, x: Floats) -> Floats:
        """Return the log-likelihood of each row in each class, (N, C), up to a constant of the expert."""
        return -self._squares(x) / (2 * SOFTNESS)

    def evidence(self, x: Floats) -> Floats:
        """Return the log-likelihood of each row, (N,), up to a constant; comparable between experts."""
        scale = float(np.log(np.diag(self._whiten)).sum())
        return logsumexp(-self._squares(x) / 2, axis=1) + scale

    def _squares(self, x: Floats) -> Floats:
        z = self._project(x)
        squares: Floats = np.square((z[:, None] - self._lda.means_[None]) @ self._whiten).sum(axis=2)
        return squares

    def _project(self, x: Floats) -> Floats:
        z: Floats = (x - self.pca.mean_) @ self.pca.components_.T
        return z


class SoundExpert:
    """Gaussian classes for each noise level, of a word whose time is known only approximately.

    The classes of each level and time are weighed by the likelihood of the sound at that level and time.
    """

    def fit(self, levels: Sequence[Floats], labels: Labels, pca: PCA | None = None) -> "SoundExpert":
        """Fit rows (N, D) of each level, at the given time; several levels need common components."""
        self._levels = [Expert().fit(x, labels, pca) for x in levels]
        self.pca = self._levels[0].pca
        return self

    def __call__(self, x: Floats) -> Floats:
        """Return log-probabilities (N, C) of words around their given times, (N, MOVED_S, D)."""
        places = [(level, at) for level in self._levels for at in range(len(MOVED_S))]
        evidence = [level.evidence(x[:, at]) / LEVEL_SOFTNESS + _MOVED_PRIOR[at] for level, at in places]
        log_p = np.stack([log_softmax(level(x[:, at])) for level, at in places], axis=1)
        return logsumexp(log_softmax(np.stack(evidence, axis=1))[:, :, None] + log_p, axis=1)


class Synchroniser:
    """Prediction of the mouth from the sound, in any noise; the offset is the lag with the best fit."""

    def fit(self, course: Course, rows: Rows) -> "Synchroniser":
        """Fit on clips in step."""
        self._pca = PCA(MOUTH_COMPONENTS, whiten=True, svd_solver="randomized", random_state=0)
        self._pca.fit(np.concatenate([course.mouth[row] for row in rows]))
        x, y = self._training_rows(course, rows)
        network = MLPRegressor(
            hidden_layer_sizes=(64,),
            alpha=1e-2,
            batch_size=512,
            learning_rate_init=2e-3,
            max_iter=EPOCHS,
            random_state=0,
        )
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # EPOCHS are enough
            self._network = make_pipeline(StandardScaler(), network).fit(x, y)
        self._precision = np.linalg.inv(np.cov((y - self._network.predict(x)).T))
        return self

    def _training_rows(self, course: Course, rows: Rows) -> tuple[Floats, Floats]:
        """Return the sound, in some of the noises, and the mouth of every time of these clips."""
        rng = np.random.default_rng(0)
        sounds, mouths = [], []
        for row in rows:
            for snr_db in rng.choice(SNRS_DB, NOISES_PER_CLIP, replace=False):
                sounds.append(course.sound[snr_db, TRAINING_NOISE[0]][row])
                mouths.append(self._mouth(course, row, np.zeros(1))[0])
        return np.concatenate(sounds), np.concatenate(mouths)

    def __call__(self, course: Course, rows: Rows, snr_db: float) -> Floats:
        """Return log-likelihoods of the mouth given the sound at every lag, (N, LAGS_S)."""
        fits = []
        for row in rows:
            missed = self._mouth(course, row, np.asarray(LAGS_S))
            missed -= self._network.predict(course.sound[snr_db, TEST_NOISE][row])
            fits.append(np.einsum("ltc,cd,ltd->l", missed, self._precision, missed))
        likelihoods: Floats = np.stack(fits) / (-2 * TIME_SOFTNESS)
        return likelihoods

    def _mouth(self, course: Course, row: int, lags_s: Floats) -> Floats:
        """Return the components of the mouth at every lag, (lags, times, MOUTH_COMPONENTS)."""
        at = course.times_s[row] - lags_s[:, None]
        return interpolated(self._pca.transform(course.mouth[row]), at * FRAME_RATE_HZ - 0.5)


class Experts:
    """All classifiers, fitted on the same clips: of some slots; of the other words only for the lag.

    Args:
        course: whole commands.
        materials: every word of them, by slot.
        rows: the clips.
        slots: the inferred ones.
    """

    def __init__(
        self, course: Course, materials: Mapping[str, Material], rows: Rows, slots: Sequence[str]
    ) -> None:
        self._course, self._materials, self._slots = course, materials, slots
        self._clean: dict[str, SoundExpert] = {}
        self._audio: dict[str, SoundExpert] = {}
        self._levels: dict[str, SoundExpert] = {}
        self._video: dict[str, Expert] = {}
        for slot, data in materials.items():
            self._fit(slot, data, rows)
        self._synchroniser = Synchroniser().fit(course, rows)

    def _fit(self, slot: str, data: Material, rows: Rows) -> None:
        labels = data.labels[rows]
        sounds = [
            np.concatenate([data.audio[snr_db, seed][rows, 0] for seed in TRAINING_NOISE])
            for snr_db in SNRS_DB
        ]
        every = np.tile(labels, len(TRAINING_NOISE))
        self._audio[slot] = SoundExpert().fit([np.concatenate(sounds)], np.tile(every, len(SNRS_DB)))
        mouths = [data.video(rows, moved_s) for moved_s in MOVED_S]
        self._video[slot] = Expert().fit(np.concatenate(mouths), np.tile(labels, len(MOVED_S)))
        if slot in self._slots:
            self._levels[slot] = SoundExpert().fit(sounds, every, self._audio[slot].pca)
            self._clean[slot] = SoundExpert().fit([data.audio[np.inf, TEST_NOISE][rows, 0]], labels)

    def infer(self, rows: Rows) -> Iterator[tuple[str, Condition, Logits]]:
        """Yield slot, condition and logits of clips, for every slot under every condition."""
        lagged = {slot: self._lagged(slot, rows) for slot in self._materials}
        videos = {slot: self._unmoved(slot, rows) for slot in self._slots}
        alone = {slot: logsumexp(words, axis=2) for slot, words in lagged.items()}
        for snr_db in SNRS_DB:
            sounds = {slot: data.audio[snr_db, TEST_NOISE][rows] for slot, data in self._materials.items()}
            audio = {slot: self._audio[slot](sound) for slot, sound in sounds.items()}
            matched = {
                slot: logsumexp(log_softmax(logits)[:, None] + lagged[slot], axis=2)
                for slot, logits in audio.items()
            }
            fits = SYNCHRONISER_WEIGHT * self._synchroniser(self._course, rows, snr_db)
            for slot, offset_s in product(self._slots, OFFSETS_S):
                logits = self._of_sound(slot, audio[slot], sounds[slot]) | {
                    "video": videos[slot][offset_s],
                    "video, aligned by itself": aligned(lagged[slot], others(alone, slot), offset_s),
                    "video, aligned by sound": aligned(lagged[slot], fits + others(matched, slot), offset_s),
                }
                yield slot, (snr_db, offset_s), logits

    def _of_sound(self, slot: str, audio: Floats, sound: Floats) -> Logits:
        return {
            "audio": audio,
            "audio, by noise level": self._levels[slot](sound),
            "audio, trained without noise": self._clean[slot](sound),
        }

    def _lagged(self, slot: str, rows: Rows) -> Floats:
        """Return the log-likelihoods of the video at every lag, (N, LAGS_S, C)."""
        data, video = self._materials[slot], self._video[slot]
        return np.stack([video.likelihoods(data.video(rows, lag_s)) for lag_s in LAGS_S], axis=1)

    def _unmoved(self, slot: str, rows: Rows) -> dict[float, Floats]:
        """Return logits (N, C) of the unmoved video, by offset."""
        data, video = self._materials[slot], self._video[slot]
        return {offset_s: video(data.video(rows, offset_s)) for offset_s in OFFSETS_S}


def others(fits: Mapping[str, Floats], slot: str) -> Floats:
    """Return log-likelihoods of the other words of the command at every lag, (N, LAGS_S)."""
    total: Floats = np.sum([fit for name, fit in fits.items() if name != slot], axis=0)
    return WORD_WEIGHT * total


def aligned(lagged: Floats, fits: Floats, offset_s: float) -> Floats:
    """Return logits (N, C) of video that is `offset_s` late, summed over all shifts.

    Args:
        lagged: (N, LAGS_S, C), log-likelihoods of the word.
        fits: (N, LAGS_S), log-likelihoods of the lag itself.
        offset_s: to which the shifts, those of OFFSETS_S, are added.
    """
    lags = [LAGS_S.index(round(offset_s + shift_s, 1)) for shift_s in OFFSETS_S]
    shift = log_softmax(fits[:, lags] + _SHIFT_PRIOR)
    return logsumexp(shift[:, :, None] + lagged[:, lags], axis=1)
