"""Samples as 16-bit integers, for formats that have no floats."""

from typing import Any

import numpy as np
import numpy.typing as npt


def as_s16(samples: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return float samples of -1 to 1 as 16-bit integers; larger values are clipped, NaN becomes 0."""
    scaled = np.rint(samples * 32768.0)
    if np.isnan(scaled).any():
        scaled = np.nan_to_num(scaled)
    whole: npt.NDArray[np.int16] = np.minimum(np.maximum(scaled, -32768), 32767).astype("<i2")
    return whole
