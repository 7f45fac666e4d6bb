"""Detects torn pictures: a row at which two pictures meet. Pure.

At a tear each column steps from one row to the next, and shifting one row sideways makes the rows fit. The
edge of an object steps too, but no shift makes it fit; an edge of the scene was there before.
"""

from typing import Final

import cv2
import numpy as np

from perception.devices.signal.picture import Floats
from perception.messages import ConditionName
from perception.units.arrays import Image

_COLUMNS: Final = 80
_STEP: Final = np.uint8(60)
"""Larger steps from row to row count as this: an edge of few columns is no tear."""
_NEAR: Final = (3, 9)
"""Rows at this distance show how much rows differ where there is no tear."""
_MEMORY_LOOKS: Final = 20
_KNOWN_LOOKS: Final = 8
_UNUSUAL: Final = 1.4
_ROWS: Final = 3
_LEAST_SHIFT: Final = 3


class Seams:
    """Follows the steps between rows of a stream of pictures."""

    def __init__(self) -> None:
        self._usual: Floats = np.zeros(0)
        self._looks = 0

    def update(self, image: Image) -> tuple[ConditionName, str] | None:
        """Return why a picture counts as torn, None if it does not."""
        green = image[..., 1] if image.ndim == 3 else image
        if green.shape[0] < 32 or green.shape[1] < 32:
            return None
        few = np.ascontiguousarray(green[:, :: max(green.shape[1] // _COLUMNS, 1)])
        clipped = np.minimum(cv2.absdiff(few[1:], few[:-1]), _STEP)
        steps = np.asarray(cv2.reduce(clipped, 1, cv2.REDUCE_AVG, dtype=cv2.CV_64F).ravel(), float)
        ridges = _ridges(steps)
        if self._usual.shape != ridges.shape:
            self._usual, self._looks = ridges, 0
        unusual = ridges / (0.5 + self._usual)
        found = None
        if self._looks >= _KNOWN_LOOKS:
            rows = [int(row) for row in np.argsort(unusual)[::-1][:_ROWS] if unusual[row] > _UNUSUAL]
            found = next((fit for row in rows if (fit := _fits(green, row)) is not None), None)
        if found is None:
            self._looks += 1
            share = max(1 / self._looks, 1 / _MEMORY_LOOKS)
            peaks = np.maximum(ridges, np.maximum(np.roll(ridges, 1), np.roll(ridges, -1)))
            self._usual = self._usual + share * (peaks - self._usual)
        return found


def _ridges(steps: Floats) -> Floats:
    """Return the step at each row, relative to rows around it."""
    padded = np.pad(steps, _NEAR[1], mode="edge")
    total = np.concatenate(([0.0], np.cumsum(padded)))
    width = _NEAR[1] - _NEAR[0]
    means = (total[width:] - total[:-width]) / width
    count = steps.size
    above = means[:count]
    below = means[_NEAR[1] + _NEAR[0] : _NEAR[1] + _NEAR[0] + count]
    return np.asarray(steps / (1.0 + np.maximum(above, below)))


def _fits(green: Image, row: int) -> tuple[ConditionName, str] | None:
    """Return a finding if a shift makes the rows at a step fit."""
    above, below = green[row].astype(float), green[row + 1].astype(float)
    above, below = above - above.mean(), below - below.mean()
    size = float(np.sqrt((above**2).sum() * (below**2).sum()))
    if size == 0:
        return None
    alike = np.fft.irfft(np.fft.rfft(above).conj() * np.fft.rfft(below), above.size) / size
    shift = int(np.argmax(alike))
    pixels = min(shift, above.size - shift)
    if pixels < _LEAST_SHIFT or alike[shift] < 0.85 or 1 - alike[0] < 4 * (1 - alike[shift]):
        return None
    return "torn", f"the picture is torn at row {row}: below it is shifted by {pixels} pixels"
