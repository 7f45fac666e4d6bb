"""Judges the sound of a microphone: keeps the newest seconds, examines them four times a second. Pure."""

from collections.abc import Callable
from typing import Final

import numpy as np

from perception.devices.device import CapturedBlock
from perception.devices.signal import content, shape
from perception.devices.signal.excerpt import FULL_SCALE, Excerpt
from perception.messages import ConditionName
from perception.profile.signal import MicrophoneSignal
from perception.units import SECOND_NS
from perception.units.arrays import RawSamples

TESTS: Final[tuple[tuple[ConditionName, Callable[[Excerpt], str], bool], ...]] = (
    ("silent", content.silent, True),
    ("stuck", content.stuck, False),
    ("wrong rate", shape.wrong_rate, False),
    ("DC", content.dc, True),
    ("torn", shape.torn, True),
    ("dead channel", content.dead_channel, True),
    ("hum", content.hum, False),
    ("clipped", shape.clipped, True),
    ("noise", content.noise, False),
)
"""Conditions, the most serious first: the function that returns its reason, and whether it is short."""
_PERIOD_S: Final = 0.25
_FLOOR_DBFS: Final = -120.0


class BlockJudge:
    """Judges a microphone's blocks by the statistics of the newest seconds, any block length.

    Before the first seconds are complete the condition is `ok`: nothing is wrong that can be known.

    Args:
        thresholds: the section `[microphone.NAME.signal]` of the profile.
        rate_hz: nominal sample rate.
    """

    def __init__(self, thresholds: MicrophoneSignal, rate_hz: int) -> None:
        self.condition: ConditionName = "ok"
        self.reason = ""
        self.facts: dict[str, str | float] = {}
        self._limits = thresholds
        self._rate_hz = rate_hz
        self._size = round(thresholds.hold_s * rate_hz)
        self._period = max(round(_PERIOD_S * rate_hz), 1)
        self._kept: RawSamples | None = None
        """The newest samples, twice as many as are judged, so that they move only once in a while."""
        self._end = 0
        """How many of `_kept` are filled."""
        self._due = self._period
        """Samples until the next examination."""
        self._began = (0, 0)
        """Sample index and stamp where the rate was last measured."""
        self._last = (0, 0)
        """Sample index and stamp of the newest block."""
        self._long = False
        """Whether the last examination included the tests that take long."""
        self._reasons: dict[ConditionName, str] = {}
        """What the last examination found."""

    def update(self, block: CapturedBlock) -> None:
        """Judge one block; the condition changes at most four times a second. NaN or infinity is left out."""
        if block.samples.dtype != np.int16 and not np.isfinite(block.samples).all():
            return
        kept = self._kept
        if kept is None or kept.dtype != block.samples.dtype or kept.shape[1] != block.samples.shape[1]:
            kept = self._restart(block)
        if block.gap > self._rate_hz or block.sample_index < self._last[0]:
            kept = self._restart(block)
        self._last = (block.sample_index, block.stamp_ns)
        samples = block.samples[-self._size :]
        if self._end + len(samples) > len(kept):
            rest = min(self._size, self._end)
            kept[:rest] = kept[self._end - rest : self._end].copy()
            self._end = rest
        kept[self._end : self._end + len(samples)] = samples
        self._end += len(samples)
        self._due -= len(samples)
        if self._due <= 0:
            self._due = self._period
            self._examine(kept)

    def _restart(self, block: CapturedBlock) -> RawSamples:
        self._kept = np.zeros((2 * self._size + self._rate_hz, block.samples.shape[1]), block.samples.dtype)
        self._end, self._due = 0, self._period
        self._began = (block.sample_index, block.stamp_ns)
        self.condition, self.reason = "ok", ""
        return self._kept

    def _examine(self, kept: RawSamples) -> None:
        newest = kept[max(self._end - self._period, 0) : self._end]
        self.facts["level_dbfs"] = round(_dbfs(newest), 1)
        self.condition, self.reason = "ok", self._rate_error()
        if self.reason:
            self.condition = "wrong rate"
        elif self._end >= self._size:
            self._test(Excerpt(kept[self._end - self._size : self._end], self._rate_hz, self._limits))

    def _test(self, sound: Excerpt) -> None:
        """Set the most serious condition that holds; take a long test's result from last time in between."""
        reasons: dict[ConditionName, str] = {}
        self._long = not self._long
        for condition, test, short in TESTS:
            reason = test(sound) if short or self._long else self._reasons.get(condition, "")
            if reason:
                reasons[condition] = self.reason = reason
                self.condition = condition
                break
        self._reasons = reasons

    def _rate_error(self) -> str:
        """Return how far stamps contradict the nominal rate; measure over the newest `hold_s` at least."""
        samples, passed_ns = self._last[0] - self._began[0], self._last[1] - self._began[1]
        if passed_ns < 0.75 * self._limits.hold_s * SECOND_NS:
            return ""
        rate_hz = samples * SECOND_NS / passed_ns
        if passed_ns >= self._limits.hold_s * SECOND_NS:
            self._began = self._last
        if abs(rate_hz / self._rate_hz - 1) <= self._limits.rate_tolerance:
            return ""
        return f"{rate_hz:.0f} samples a second by their stamps, not {self._rate_hz}"


def _dbfs(samples: RawSamples) -> float:
    levels = samples.astype(np.float32)
    power = float(np.mean(np.square(levels)))
    full = FULL_SCALE if samples.dtype == np.int16 else 1.0
    return max(10 * float(np.log10(power / full**2)), _FLOOR_DBFS) if power > 0 else _FLOOR_DBFS
