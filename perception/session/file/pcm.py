"""Samples as whole numbers, for what plays nothing else."""

from typing import Any

import numpy as np
import numpy.typing as npt


def as_s16(samples: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return float samples of -1 to 1 as 16 bits: what is louder is clipped, what is no number is silence."""
    scaled = np.rint(samples * 32768.0)
    if np.isnan(scaled).any():
        scaled = np.nan_to_num(scaled)
    whole: npt.NDArray[np.int16] = np.minimum(np.maximum(scaled, -32768), 32767).astype("<i2")
    return whole
