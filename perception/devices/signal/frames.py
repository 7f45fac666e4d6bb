"""Judges the pictures of a camera. Pure."""

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedFrame
from perception.devices.signal.lasting import Lasting
from perception.messages import ConditionName
from perception.profile.signal import CameraSignal

_THINNING: Final = 8  # every eighth row and column is enough to detect a change
_BLACK_BELOW: Final = 16  # of 255: video black is 16 in the range of many cameras; noise is below it too


class FrameJudge:
    """Judges a camera's frames by their own statistics.

    Args:
        thresholds: the section `[camera.NAME.signal]` of the profile.
    """

    def __init__(self, thresholds: CameraSignal | None = None) -> None:
        limits = thresholds or CameraSignal()
        self._thumbnail: npt.NDArray[np.uint8] | None = None
        self._digest: int | None = None
        self._black = Lasting(limits.hold_s)
        self._frozen = Lasting(limits.hold_s)
        self.condition: ConditionName = "ok"
        self.reason = ""
        self.facts: dict[str, str | float] = {}

    def update(self, frame: CapturedFrame) -> None:
        """Judge one frame."""
        thumbnail = frame.image[::_THINNING, ::_THINNING].copy()
        frozen = self._frozen.update(frame.raw and self._is_same(frame.image, thumbnail), frame.stamp_ns)
        self._thumbnail = thumbnail
        black = self._black.update(bool(thumbnail.max() < _BLACK_BELOW), frame.stamp_ns)
        self.facts["brightness"] = round(float(thumbnail.mean()), 1)
        self.condition = "black" if black else "frozen" if frozen else "ok"
        self.reason = "the picture is black" if black else "the picture is frozen" if frozen else ""

    def _is_same(self, image: npt.NDArray[np.uint8], thumbnail: npt.NDArray[np.uint8]) -> bool:
        """Return whether the frame equals the previous one; read all of it only if thumbnails are equal."""
        if self._thumbnail is None or not np.array_equal(thumbnail, self._thumbnail):
            self._digest = None
            return False
        before, self._digest = self._digest, zlib.crc32(np.ascontiguousarray(image).data)
        return before == self._digest
