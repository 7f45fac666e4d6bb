"""Features of the GRID benchmark: sound and mouth of one word, and of a whole command, under disturbances."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import cv2
import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from perception.features.logmel import Frames, log_mel
from perception.reproduce.arrays import Floats, Rows
from perception.reproduce.grid_data import FRAME_RATE_HZ, Clip
from perception.training.augment import with_noise
from perception.training.scores import Labels

SLOTS: Final = ("command", "colour", "preposition", "letter", "digit", "adverb")
"""The slots of the words of a command, in order."""
SNRS_DB: Final = (np.inf, 20.0, 15.0, 10.0, 5.0, 0.0, -5.0, -10.0)
OFFSETS_S: Final = tuple(round(-0.4 + 0.1 * step, 1) for step in range(9))
LAGS_S: Final = tuple(round(-0.8 + 0.1 * step, 1) for step in range(17))
"""Every sum of two offsets: that of the video, and that by which it is moved to find the word."""
TRAINING_NOISE: Final = (0, 2, 3)
"""Seeds of the training noise of experts: with one seed, few clips make experts overconfident."""
TEST_NOISE: Final = 1
"""Seed of the noise in which the pool is fitted and tested."""
MOVED_S: Final = (0.0, -0.04, 0.04)
"""Shifts of the given time of a word, which is wrong by about a frame of the video. Sound is searched for the
word at them, video is trained on them. Training sound on moved words, or searching video, lost digits."""
MARGIN_S: Final = 0.06
"""Before and after the word."""
STEPS: Final = 10
PICTURE: Final = (32, 20)
SMOOTHED: Final = 5
"""Frames of 10 ms over which energy is averaged: it reduces noise, and STEPS times cover more of the word."""
CONTEXT: Final = np.arange(-20, 21, 5)
"""Frames of sound around each picture that predict its mouth, 0.2 s to both sides."""
BANDS: Final = 16
AROUND_S: Final = 0.15
"""Time of the whole command before its first and after its last word."""


Noise = tuple[float, int]
"""SNR in dB, and seed."""


@dataclass(frozen=True, slots=True)
class Material:
    """Features of one slot of all clips, under every disturbance."""

    audio: Mapping[Noise, Frames]
    """(N, MOVED_S, D), the word; the last column is the noise floor."""
    labels: Labels
    """(N,) numbers of classes."""
    classes: tuple[str, ...]
    pictures: Sequence[Frames]
    """Per clip: (frames, 20, 32), the mouth."""
    times_s: Sequence[Floats]
    """Per clip: (STEPS,), of the word."""

    def video(self, rows: Rows, lag_s: float) -> Frames:
        """Return the mouth during the word, (rows, D), with video `lag_s` late against the sound."""
        at = [(self.times_s[row] - lag_s) * FRAME_RATE_HZ - 0.5 for row in rows]
        mouths = [
            interpolated(self.pictures[row], frames).ravel() for row, frames in zip(rows, at, strict=True)
        ]
        return np.stack(mouths).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Course:
    """Sound and mouth over a whole command, 25 times per second, from which their offset is estimated."""

    sound: Mapping[Noise, Sequence[Frames]]
    """Per clip: (times, D)."""
    mouth: Sequence[Frames]
    """Per clip: (frames, 640), the clip's mean removed."""
    times_s: Sequence[Floats]
    """Per clip: (times,)."""


def features(clips: Sequence[Clip]) -> tuple[Course, dict[str, Material]]:
    """Return the features of all clips; materials by slot."""
    times_s = [_command_times_s(clip) for clip in clips]
    sound: dict[Noise, list[Frames]] = {}
    audio: dict[str, dict[Noise, Frames]] = {name: {} for name in SLOTS}
    for snr_db, seed in product(SNRS_DB, (*TRAINING_NOISE, TEST_NOISE)):
        frames = [bands_of(clip, snr_db, 1000 * seed + number) for number, clip in enumerate(clips)]
        sound[snr_db, seed] = [context(f, at_s) for f, at_s in zip(frames, times_s, strict=True)]
        for slot, name in enumerate(SLOTS):
            words = [word_sound(f, clip, slot) for f, clip in zip(frames, clips, strict=True)]
            audio[name][snr_db, seed] = np.stack(words)
    pictures = [pictures_of(clip) for clip in clips]
    mouths = [(p - p.mean(axis=0)).reshape(len(p), -1).astype(np.float32) for p in pictures]
    materials = {}
    for slot, name in enumerate(SLOTS):
        classes, labels = np.unique([clip.spoken[slot][2] for clip in clips], return_inverse=True)
        words_s = [_word_times_s(clip, slot) for clip in clips]
        materials[name] = Material(audio[name], labels, tuple(classes), pictures, words_s)
    return Course(sound, mouths, times_s), materials


def bands_of(clip: Clip, snr_db: float, seed: int) -> Frames:
    """Return the clip's smoothed log-mel frames (frames, 64), 100 per second, in white noise."""
    wave = torch.from_numpy(clip.waveform)[None]
    if np.isfinite(snr_db):
        wave = with_noise(wave, torch.tensor([snr_db]), torch.Generator().manual_seed(seed))
    energy = np.exp(log_mel(wave[0].numpy()))
    bands: Frames = np.log(uniform_filter1d(energy, SMOOTHED, axis=0))
    return bands


def word_sound(frames: Floats, clip: Clip, slot: int) -> Frames:
    """Return log-mel bands at STEPS times of the word, then the clip's noise floor, (MOVED_S, D)."""
    at = (_word_times_s(clip, slot) + np.array(MOVED_S)[:, None]) * 100 - 1.25
    floor = np.full((len(at), 1), np.quantile(frames, 0.1, axis=0).mean())
    words = interpolated(frames, at).reshape(len(at), -1)
    return np.concatenate([words, floor], axis=1).astype(np.float32)


def context(frames: Floats, times_s: Floats) -> Frames:
    """Return the sound around each time above the noise floor, then the noise floor, (times, D)."""
    floor = np.quantile(frames, 0.1, axis=0)
    above = np.maximum(frames - floor, 0).reshape(len(frames), BANDS, -1).mean(axis=2)
    at = times_s * 100 - 1.25
    around = [interpolated(above, at + step) for step in CONTEXT]
    return np.concatenate([*around, np.full((len(at), 1), floor.mean())], axis=1).astype(np.float32)


def pictures_of(clip: Clip) -> Frames:
    """Return small pictures of the mouth, normalised in brightness and contrast, (frames, 20, 32)."""
    pictures = clip.mouth.astype(np.float32)
    pictures = (pictures - pictures.mean(axis=(1, 2), keepdims=True)) / pictures.std()
    small = [cv2.resize(p, PICTURE, interpolation=cv2.INTER_AREA) for p in pictures]
    return np.stack(small).astype(np.float32)


def _word_times_s(clip: Clip, slot: int) -> Floats:
    start_s, end_s, _ = clip.spoken[slot]
    return np.linspace(start_s - MARGIN_S, end_s + MARGIN_S, STEPS)


def _command_times_s(clip: Clip) -> Floats:
    return np.arange(clip.spoken[0][0] - AROUND_S, clip.spoken[-1][1] + AROUND_S, 1 / FRAME_RATE_HZ)


def interpolated(values: Floats, at: Floats) -> Floats:
    """Return values (T, ...) interpolated at places of any shape; beyond the ends, the value at the end."""
    at = np.clip(at, 0, len(values) - 1.001)
    whole = at.astype(np.int64)
    part = (at - whole).reshape(*at.shape, *(1,) * (values.ndim - 1))
    between: Floats = values[whole] * (1 - part) + values[whole + 1] * part
    return between
