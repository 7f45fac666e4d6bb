"""What is wrong with a signal that arrives on time: black, frozen, silent or clipped. Pure."""

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedBlock, CapturedFrame

PATIENCE_NS: Final = 2_000_000_000
_THINNING: Final = 8  # every eighth row and column tells a change as well
_BLACK_BELOW: Final = 16  # of 255: video black is 16 in many cameras' range, noise stays below too
_CLIPPED_SHARE: Final = 0.01
_SMOOTHING: Final = 0.05
_FLOOR_DBFS: Final = -120.0


class Lasting:
    """Tells whether a condition has held for two seconds of the signal's own time."""

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def update(self, holds: bool, stamp_ns: int) -> bool:
        """Take in whether it holds at `stamp_ns`; return whether it has held long enough to say so."""
        if not holds:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = stamp_ns
        return stamp_ns - self._since_ns >= PATIENCE_NS


class FrameCheck:
    """Watches a camera's frames.

    A real sensor is never exactly still: its noise changes every frame. Coding takes that noise away, and a
    live picture of a still room comes out bit for bit the same: only raw frames are called frozen.
    """

    def __init__(self) -> None:
        self._thumbnail: npt.NDArray[np.uint8] | None = None
        self._digest: int | None = None
        self._black = Lasting()
        self._frozen = Lasting()
        self.reason = ""
        self.facts: dict[str, str | float] = {}

    def update(self, frame: CapturedFrame) -> None:
        """Take in one frame."""
        thumbnail = frame.image[::_THINNING, ::_THINNING].copy()
        frozen = self._frozen.update(frame.raw and self._is_same(frame.image, thumbnail), frame.stamp_ns)
        self._thumbnail = thumbnail
        black = self._black.update(bool(thumbnail.max() < _BLACK_BELOW), frame.stamp_ns)
        self.facts["brightness"] = round(float(thumbnail.mean()), 1)
        self.reason = "the picture is black" if black else "the picture is frozen" if frozen else ""

    def _is_same(self, image: npt.NDArray[np.uint8], thumbnail: npt.NDArray[np.uint8]) -> bool:
        """Return whether every bit is as in the frame before; the whole is read only if a part is."""
        if self._thumbnail is None or not np.array_equal(thumbnail, self._thumbnail):
            self._digest = None
            return False
        before, self._digest = self._digest, zlib.crc32(np.ascontiguousarray(image).data)
        return before == self._digest


class BlockCheck:
    """Watches a microphone's blocks. A real converter is never exactly zero, except when it is muted."""

    def __init__(self) -> None:
        self._silent = Lasting()
        self._frozen = Lasting()
        self._previous: npt.NDArray[np.int16] | npt.NDArray[np.float32] | None = None
        self._clipped = 0.0
        self.reason = ""
        self.facts: dict[str, str | float] = {}

    def update(self, block: CapturedBlock) -> None:
        """Take in one block."""
        samples = block.samples
        full_scale = 32767.0 if samples.dtype == np.int16 else 1.0
        levels = np.abs(samples.astype(np.float64)) / full_scale
        still = self._previous is not None and np.array_equal(samples, self._previous)
        self._previous = samples
        self._clipped += _SMOOTHING * (float(np.mean(levels >= 1.0)) - self._clipped)
        silent = self._silent.update(not levels.any(), block.stamp_ns)
        frozen = self._frozen.update(still, block.stamp_ns)
        self.facts["level_dbfs"] = round(_dbfs(levels), 1)
        self.facts["clipped"] = round(self._clipped, 4)
        if silent:
            self.reason = "every sample is zero: the microphone is muted or not connected"
        elif frozen:
            self.reason = "the same block comes again and again"
        elif self._clipped > _CLIPPED_SHARE:
            self.reason = "the sound is clipped: turn the gain down"
        else:
            self.reason = ""


def _dbfs(levels: npt.NDArray[np.float64]) -> float:
    power = float(np.mean(np.square(levels)))
    return max(10 * np.log10(power), _FLOOR_DBFS) if power > 0 else _FLOOR_DBFS
