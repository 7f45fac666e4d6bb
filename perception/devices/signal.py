"""Detects bad signals that arrive on time: black, frozen, silent or clipped. Pure."""

import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedBlock, CapturedFrame
from perception.messages import ConditionName

HOLD_NS: Final = 2_000_000_000
_THINNING: Final = 8  # every eighth row and column is enough to detect a change
_BLACK_BELOW: Final = 16  # of 255: video black is 16 in the range of many cameras; noise is below it too
_CLIPPED_SHARE: Final = 0.01
_SMOOTHING: Final = 0.05
_FLOOR_DBFS: Final = -120.0


class Lasting:
    """Detects that a condition has held for two seconds of the signal's time."""

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def update(self, holds: bool, stamp_ns: int) -> bool:
        """Record whether it holds at `stamp_ns`; return whether it has held for two seconds."""
        if not holds:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = stamp_ns
        return stamp_ns - self._since_ns >= HOLD_NS


class FrameCheck:
    """Checks a camera's frames.

    The noise of a real sensor changes every frame. Lossy coding removes it, so live pictures of a still room
    may be equal bit for bit: only raw frames are reported as frozen.
    """

    def __init__(self) -> None:
        self._thumbnail: npt.NDArray[np.uint8] | None = None
        self._digest: int | None = None
        self._black = Lasting()
        self._frozen = Lasting()
        self.condition: ConditionName = "ok"
        self.reason = ""
        self.facts: dict[str, str | float] = {}

    def update(self, frame: CapturedFrame) -> None:
        """Check one frame."""
        thumbnail = frame.image[::_THINNING, ::_THINNING].copy()
        frozen = self._frozen.update(frame.raw and self._is_same(frame.image, thumbnail), frame.stamp_ns)
        self._thumbnail = thumbnail
        black = self._black.update(bool(thumbnail.max() < _BLACK_BELOW), frame.stamp_ns)
        self.facts["brightness"] = round(float(thumbnail.mean()), 1)
        self.condition = "black" if black else "frozen" if frozen else "ok"
        self.reason = f"the picture is {self.condition}" if black or frozen else ""

    def _is_same(self, image: npt.NDArray[np.uint8], thumbnail: npt.NDArray[np.uint8]) -> bool:
        """Return whether the frame equals the previous one; read all of it only if thumbnails are equal."""
        if self._thumbnail is None or not np.array_equal(thumbnail, self._thumbnail):
            self._digest = None
            return False
        before, self._digest = self._digest, zlib.crc32(np.ascontiguousarray(image).data)
        return before == self._digest


class BlockCheck:
    """Checks a microphone's blocks. A real converter never returns only zeros, except when it is muted."""

    def __init__(self) -> None:
        self._silent = Lasting()
        self._frozen = Lasting()
        self._previous: npt.NDArray[np.int16] | npt.NDArray[np.float32] | None = None
        self._clipped = 0.0
        self.condition: ConditionName = "ok"
        self.reason = ""
        self.facts: dict[str, str | float] = {}

    def update(self, block: CapturedBlock) -> None:
        """Check one block."""
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
            self.condition = "silent"
            self.reason = "every sample is zero: the microphone is muted or not connected"
        elif frozen:
            self.condition = "stuck"
            self.reason = "the same block comes again and again"
        elif self._clipped > _CLIPPED_SHARE:
            self.condition = "clipped"
            self.reason = "the sound is clipped: turn the gain down"
        else:
            self.condition, self.reason = "ok", ""


def _dbfs(levels: npt.NDArray[np.float64]) -> float:
    power = float(np.mean(np.square(levels)))
    return max(10 * np.log10(power), _FLOOR_DBFS) if power > 0 else _FLOOR_DBFS
