"""Mel-frequency cepstral coefficients of log-mel frames."""

from typing import cast

import scipy.fft

from perception.features.logmel import Frames


def mfcc(log_mel: Frames, coefficients: int) -> Frames:
    """Return the first `coefficients` of each frame's orthonormal DCT-II, (frames, coefficients).

    Coefficient 0 is the frame's level; the next ones are the coarse shape of its spectrum.

    Args:
        log_mel: (frames, bands) float32.
        coefficients: at most the number of bands.
    """
    if not 0 < coefficients <= log_mel.shape[1]:
        raise ValueError(f"{coefficients} coefficients requested from {log_mel.shape[1]} bands")
    return cast(Frames, scipy.fft.dct(log_mel, type=2, norm="ortho", axis=1)[:, :coefficients])
