"""Checks of inputs for all image encoders, and grey levels for those that use no colour."""

import math

import cv2
import numpy as np

from perception.models.encoder import ImageInput
from perception.units.arrays import Image


def check_bgr(image: Image) -> Image:
    """Return the image; raise ValueError, with its shape and type, unless it is (height, width, 3) uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"not a BGR image: {image.shape} {image.dtype}, expected (height, width, 3) uint8")
    return image


def shrunk_grey(data: ImageInput, width: int) -> tuple[Image, int]:
    """Return the frame in grey levels, (height, width) uint8, shrunk to at most `width`, and by which factor.

    The factor is an integer, as others take longer. Encoders of one frame share the result.

    Raises:
        ValueError: it is no BGR image.
    """
    image = check_bgr(data.image)
    factor = min(math.ceil(image.shape[1] / width), image.shape[0])
    return data.shared(("grey", factor), lambda: _shrunk(_grey(data), factor)), factor


def _grey(data: ImageInput) -> Image:
    return data.shared(
        "grey", lambda: cv2.cvtColor(data.image, cv2.COLOR_BGR2GRAY).astype(np.uint8, copy=False)
    )


def _shrunk(grey: Image, factor: int) -> Image:
    if factor == 1:
        return grey
    small = cv2.resize(grey, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    return small.astype(np.uint8, copy=False)
