"""Judges the sound of a microphone: keeps the newest seconds, examines them four times a second. Pure."""

from collections import deque
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
    ("dead channel", content.dead_channel, True),
    ("DC", content.dc, True),
    ("torn", shape.torn, True),
    ("hum", content.hum, False),
    ("clipped", shape.clipped, True),
    ("noise", content.noise, False),
)
"""Conditions, the most serious first: the function that returns its reason, and whether it is short."""
_ONLY_LOUD: Final = ("wrong rate", "dead channel", "torn", "clipped")
"""Conditions that quiet sound cannot show: they are kept while the sound is quiet, for a limited time."""
_KEPT_S: Final = 10.0
_QUIET_DB: Final = 12.0
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
        self._last = (0, 0)
        """Sample index and stamp of the newest block."""
        self._ends: deque[tuple[int, int]] = deque(maxlen=round(thresholds.hold_s / _PERIOD_S) + 1)
        """The same at each of the newest examinations."""
        self._long = False
        """Whether the last examination included the tests that take long."""
        self._reasons: dict[ConditionName, str] = {}
        """What the last examination found."""
        self._found = (_FLOOR_DBFS, 0)
        """Level of the loudest sound since the condition holds, and sample index when it was last found."""

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
        self._ends.clear()
        self.condition, self.reason = "ok", ""
        return self._kept

    def _examine(self, kept: RawSamples) -> None:
        newest = kept[max(self._end - self._period, 0) : self._end]
        level_dbfs = _dbfs(newest)
        self.facts["level_dbfs"] = round(level_dbfs, 1)
        self._ends.append(self._last)
        if reason := self._rate_error():
            self.condition, self.reason = "wrong rate", reason
        elif self._end < self._size:
            self.condition, self.reason = "ok", ""
        else:
            sound = Excerpt(kept[self._end - self._size : self._end], self._rate_hz, self._limits)
            self._test(sound, level_dbfs)

    def _test(self, sound: Excerpt, newest_dbfs: float) -> None:
        """Set the most serious condition that holds; take a long test's result from last time in between."""
        self._long = not self._long
        for condition, test, short in TESTS:
            reason = test(sound) if short or self._long else self._reasons.get(condition, "")
            if reason:
                self._reasons = {condition: reason}
                loudest = max(self._found[0], newest_dbfs) if condition == self.condition else newest_dbfs
                self._found = (loudest, self._last[0])
                self.condition, self.reason = condition, reason
                return
        self._reasons = {}
        loudest_dbfs, index = self._found
        recent = self._last[0] - index < _KEPT_S * self._rate_hz
        if self.condition not in _ONLY_LOUD or not recent or newest_dbfs > loudest_dbfs - _QUIET_DB:
            self.condition, self.reason = "ok", ""

    def _rate_error(self) -> str:
        """Return how far the stamps of the newest seconds contradict the nominal rate."""
        samples, passed_ns = (end - begin for begin, end in zip(self._ends[0], self._ends[-1], strict=True))
        if passed_ns < 0.75 * self._limits.hold_s * SECOND_NS:
            return ""
        rate_hz = samples * SECOND_NS / passed_ns
        if abs(rate_hz / self._rate_hz - 1) <= self._limits.rate_tolerance:
            return ""
        return f"{rate_hz:.0f} samples a second by their stamps, not {self._rate_hz}"


def _dbfs(samples: RawSamples) -> float:
    levels = samples.astype(np.float32)
    power = float(np.mean(np.square(levels)))
    full = FULL_SCALE if samples.dtype == np.int16 else 1.0
    return max(10 * float(np.log10(power / full**2)), _FLOOR_DBFS) if power > 0 else _FLOOR_DBFS
