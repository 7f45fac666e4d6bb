"""MFCC are the orthonormal DCT of log-mel frames, as everywhere."""

import numpy as np
import pytest
import torch
import torchaudio

from perception.features.logmel import LogMelConfig, log_mel
from perception.features.mfcc import mfcc

SAMPLES = np.random.default_rng(3).standard_normal(8000).astype(np.float32) * 0.1


def test_it_equals_torchaudios_dct() -> None:
    frames = log_mel(SAMPLES)
    expected = frames @ torchaudio.functional.create_dct(20, 64, norm="ortho").numpy()
    np.testing.assert_allclose(mfcc(frames, 20), expected, atol=1e-4)


def test_it_equals_torchaudios_mfcc_on_a_matching_configuration() -> None:
    # torchaudio's log_mels adds 1e-6 to the power spectrum's bands before the natural logarithm
    config = LogMelConfig(16000, 512, 160, 512, 40, 0.0, 8000.0, triangles="hz", power=2, log_offset=1e-6)
    reference = torchaudio.transforms.MFCC(
        16000,
        n_mfcc=13,
        log_mels=True,
        melkwargs={"n_fft": 512, "hop_length": 160, "n_mels": 40, "center": False},
    )
    expected = reference(torch.from_numpy(SAMPLES)).numpy().T
    np.testing.assert_allclose(mfcc(log_mel(SAMPLES, config), 13), expected, atol=1e-3)


def test_all_coefficients_keep_the_energy() -> None:
    frames = log_mel(SAMPLES)
    energy = np.square(frames).sum(axis=1)
    np.testing.assert_allclose(np.square(mfcc(frames, 64)).sum(axis=1), energy, rtol=1e-5)


@pytest.mark.parametrize("coefficients", [0, 65])
def test_more_coefficients_than_bands_are_refused(coefficients: int) -> None:
    with pytest.raises(ValueError, match="coefficients"):
        mfcc(np.zeros((2, 64), np.float32), coefficients)
