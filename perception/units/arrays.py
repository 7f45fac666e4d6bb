"""Arrays that every part of the package shares."""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]
"""Pixels, (height, width, 3) BGR or (height, width) grey."""
Samples: TypeAlias = npt.NDArray[np.float32]
"""One channel of sound, (count,), in [-1, 1]."""
RawSamples: TypeAlias = npt.NDArray[np.int16] | npt.NDArray[np.float32]
"""Sound as published, (count,) or (count, channels): 16-bit integers, or floats as in `Samples`."""
SAMPLE_TYPES: Final[dict[str, np.dtype[Any]]] = {"s16": np.dtype("<i2"), "f32": np.dtype("<f4")}
"""Type of the samples in a payload, by `AudioBlock.format`."""
