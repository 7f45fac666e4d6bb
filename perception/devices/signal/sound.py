"""Judges blocks of sound: silent, stuck or clipped. Pure."""

from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedBlock
from perception.devices.signal.lasting import Lasting
from perception.messages import ConditionName

_CLIPPED_SHARE: Final = 0.01
_SMOOTHING: Final = 0.05
_FLOOR_DBFS: Final = -120.0


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
