"""What every image encoder asks of its input."""

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def check_bgr(image: Image) -> Image:
    """Return the image; ValueError says what it is if not (height, width, 3) uint8, or empty."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"not a BGR image: {image.shape} {image.dtype}, expected (height, width, 3) uint8")
    return image
