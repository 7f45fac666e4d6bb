"""Pictures and sounds of avMNIST, the rebuild of SMIL's set (Ma et al. 2021): 1,500 pairs of a digit.

1,050 pairs are for training, 450 for the test; spoken digits with an index under 15 are in the test. Pictures
of both parts are from the training part of MNIST, disjoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.nn.functional as F

from perception.errors import PerceptionError
from perception.training import augment
from perception.training.examples import Examples
from perception.units.arrays import Samples

CLASSES: Final = tuple(str(digit) for digit in range(10))
SPEAKERS: Final = ("jackson", "nicolas", "theo")
TEST_BELOW: Final = 15
TRAIN_PICTURES, TEST_PICTURES, VALIDATION_PER_CLASS = 105, 45, 10
RATE_HZ: Final = 8000
SAMPLES: Final = 7808
"""Samples per utterance, cut or padded; 96 log-mel frames at 16 kHz."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures and sounds of one part."""

    images: torch.Tensor
    """(N, 1, 28, 28) in [0, 1]."""
    waveforms: torch.Tensor
    """(N, SAMPLES) at 8 kHz."""
    labels: torch.Tensor
    """(N,) int64, the digit."""


def load(data: Path, seed: int) -> tuple[Pairs, Pairs]:
    """Return training and test pairs; the seed decides which picture goes with which sound.

    Args:
        data: holds `mnist/mnist-train.npz` and `fsdd/DIGIT_SPEAKER_INDEX.wav`.
        seed: of the pairing.

    Raises:
        PerceptionError: the data cannot be read.
    """
    try:
        with np.load(data / "mnist" / "mnist-train.npz") as archive:
            pictures, digits = archive["train_x"], archive["train_y"]
        sounds = [_sounds(data / "fsdd", numbers) for numbers in (range(TEST_BELOW, 50), range(TEST_BELOW))]
    except (OSError, KeyError, soundfile.LibsndfileError) as error:
        raise PerceptionError(f"{data}: no avmnist data there: {error}") from error
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(digits == digit) for digit in range(10)]
    train = np.concatenate([rng.permutation(own[:TRAIN_PICTURES]) for own in rows])
    test = np.concatenate([rng.permutation(own[-TEST_PICTURES:]) for own in rows])
    return _paired(pictures[train], sounds[0]), _paired(pictures[test], sounds[1])


def _sounds(folder: Path, numbers: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the utterances of some numbers by every speaker, (N, SAMPLES), digit by digit."""
    names = [(digit, speaker, number) for digit in range(10) for speaker in SPEAKERS for number in numbers]
    return np.stack([_utterance(folder / f"{digit}_{speaker}_{n}.wav") for digit, speaker, n in names])


def _paired(pictures: npt.NDArray[np.uint8], sounds: npt.NDArray[np.float32]) -> Pairs:
    """Return pairs of pictures (N, 28, 28) and sounds (N, SAMPLES), as many of each digit, in their order."""
    images = torch.from_numpy(pictures).float()[:, None] / 255
    return Pairs(images, torch.from_numpy(sounds), torch.arange(10).repeat_interleave(len(pictures) // 10))


def _utterance(path: Path) -> Samples:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != RATE_HZ:
        raise PerceptionError(f"{path}: {rate_hz} Hz, expected {RATE_HZ}")
    padded: Samples = np.pad(samples[:SAMPLES], (0, max(0, SAMPLES - len(samples))))
    return padded


def noises(pairs: Pairs) -> dict[str, Pairs]:
    """Return the pairs under each disturbance."""
    generator = torch.Generator().manual_seed(0)
    images, waves = pairs.images, pairs.waveforms
    disturbed = {
        f"white {snr_db} dB": replace(
            pairs,
            waveforms=augment.with_noise(waves, torch.full((len(waves),), float(snr_db)), generator),
        )
        for snr_db in (20, 10, 5, 0, -5)
    }
    gaussian = (images + 0.5 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    disturbed |= {
        "gaussian 0.5": replace(pairs, images=gaussian),
        "blur 5x5": replace(pairs, images=F.avg_pool2d(images, 5, 1, 2)),
        "occlusion 0.5": replace(pairs, images=augment.occluded(images, generator, 0.5, 1.0)),
        "darkness 0.3": replace(pairs, images=images * 0.3),
    }
    return disturbed


def split(data: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return training and validation pairs, 10 per class for validation."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data), generator=generator)
    chosen = torch.cat([order[data.labels[order] == digit][:VALIDATION_PER_CLASS] for digit in range(10)])
    mask = torch.zeros(len(data), dtype=torch.bool)
    mask[chosen] = True
    return data.rows(~mask), data.rows(mask)


def thinned(data: Examples, branch: str, rate: float, seed: int) -> Examples:
    """Return the pairs with one branch present in a share of the pairs of each class."""
    generator = torch.Generator().manual_seed(seed)
    present = data.present.clone()
    for digit in range(10):
        rows = torch.nonzero(data.labels == digit).squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        present[rows[max(1, round(rate * len(rows))) :], data.branches.index(branch)] = False
    return replace(data, present=present)
