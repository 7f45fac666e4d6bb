"""Samples as whole numbers, for what plays nothing else."""

from typing import Any

import numpy as np
import numpy.typing as npt


def as_s16(samples: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Return float samples of -1 to 1 as 16 bits: what is louder is clipped, what is no number is silence."""
    known = np.nan_to_num(samples, posinf=1.0, neginf=-1.0)
    whole: npt.NDArray[np.int16] = np.clip(np.rint(known * 32768.0), -32768, 32767).astype("<i2")
    return whole
