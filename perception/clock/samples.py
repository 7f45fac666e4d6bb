"""Event time of sampled sound: maps a device's sample counter and clock to the host clock.

Pure: all times are arguments. The host clock counts UNIX nanoseconds and never steps.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

_BIN_S: Final = 1.0
# Two minutes: long enough to measure drift to a few ppm, short enough to follow a crystal that warms up.
_BINS: Final = 128
# With fewer points the fitted slope is less exact than the nominal rate, which is used instead.
_MIN_BINS: Final = 8
# A callback can only run late, so the true time is the lower edge of the residuals. The tenth percentile
# instead of the minimum: up to a tenth of the observations may be too early.
_EDGE: Final = 0.10
_SLEW_TIME_S: Final = 1.0
_MAX_SLEW: Final = 0.02
_STEP_NS: Final = 20e6
_STEP_BINS: Final = 3


def device_to_host_ns(device_time_s: float, device_now_s: float, host_now_ns: int) -> int:
    """Return the host time in ns of a time on a device's clock.

    Both clocks are read together for each call, so steps of the device clock between calls have no effect.

    Args:
        device_time_s: time to map, on the device's clock.
        device_now_s: the device's clock now.
        host_now_ns: the host clock now.
    """
    return host_now_ns - round((device_now_s - device_time_s) * 1e9)


class SampleClock:
    """Maps a sample counter to host time by a robust line fit.

    Residuals to the nominal rate are collected in bins of one second, each reduced to its lower edge.
    A Theil-Sen line through the last two minutes of bins gives offset and drift (Theil 1950, Sen 1968).
    Stamps follow that line by slewing, at most 2 %, so they never step and strictly increase.

    Args:
        rate_hz: nominal sample rate; used for the slope until eight seconds have been observed.
    """

    def __init__(self, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self._period_ns = 1e9 / rate_hz
        self._anchor_index = 0
        self._anchor_ns = 0
        self._step_ns = self._period_ns
        self._stamped = False
        self.restart()

    def restart(self) -> None:
        """Drop all observations, after the device was reopened; stamps continue to increase."""
        self._origin: tuple[int, int] | None = None
        self._bins: deque[tuple[float, float]] = deque(maxlen=_BINS)
        self._open_bin: list[float] = []
        self._bin_start = 0
        self._slope = 0.0
        self._pivot = (0.0, 0.0)

    @property
    def drift_ppm(self) -> float:
        """Real rate / nominal rate - 1, in ppm: positive when the device runs fast."""
        return -self._slope * 1e6

    def observe(self, sample_index: int, host_ns: int) -> None:
        """Record that `sample_index` was converted at about `host_ns`; indices must increase."""
        if self._origin is None:
            self._begin(sample_index, host_ns)
        elif sample_index - self._bin_start >= _BIN_S * self.rate_hz:
            self._close_bin(sample_index)
        self._open_bin.append(self._residual_ns(sample_index, host_ns))
        if not self._bins:
            self._pivot = (self._seconds(sample_index), _edge(self._open_bin))
        self._steer(sample_index)

    def stamp_ns(self, sample_index: int) -> int:
        """Return the host time at which a sample, the newest observed one or a later one, was converted."""
        self._stamped = True
        return self._anchor_ns + round((sample_index - self._anchor_index) * self._step_ns)

    def late_ns(self, sample_index: int, host_ns: int) -> float:
        """Return by how many ns `host_ns` is later than the fitted line: a late callback or lost samples."""
        return self._residual_ns(sample_index, host_ns) - self._fitted_ns(self._seconds(sample_index))

    def _begin(self, sample_index: int, host_ns: int) -> None:
        if self._stamped:
            host_ns = max(host_ns, self.stamp_ns(sample_index), self._anchor_ns + 1)
        self._origin = (sample_index, host_ns)
        self._anchor_index, self._anchor_ns, self._step_ns = sample_index, host_ns, self._period_ns
        self._bin_start = sample_index

    def _seconds(self, sample_index: int) -> float:
        assert self._origin is not None
        return (sample_index - self._origin[0]) / self.rate_hz

    def _residual_ns(self, sample_index: int, host_ns: int) -> float:
        assert self._origin is not None
        return host_ns - self._origin[1] - (sample_index - self._origin[0]) * self._period_ns

    def _fitted_ns(self, seconds: float) -> float:
        pivot_seconds, residual_ns = self._pivot
        return residual_ns + self._slope * 1e9 * (seconds - pivot_seconds)

    def _close_bin(self, sample_index: int) -> None:
        middle = (self._bin_start + sample_index) // 2
        self._bins.append((self._seconds(middle), _edge(self._open_bin)))
        self._open_bin, self._bin_start = [], sample_index
        newest = list(self._bins)[-_STEP_BINS:]
        errors = [residual - self._fitted_ns(seconds) for seconds, residual in newest]
        if len(errors) == _STEP_BINS and (min(errors) > _STEP_NS or max(errors) < -_STEP_NS):
            # The line has stepped: older bins are no longer valid.
            self._bins = deque(newest, maxlen=_BINS)
        self._fit()

    def _fit(self) -> None:
        seconds, residuals = np.array(self._bins).T
        if len(seconds) >= _MIN_BINS:
            later, earlier = np.tril_indices(len(seconds), -1)
            slopes = (residuals[later] - residuals[earlier]) / (seconds[later] - seconds[earlier])
            self._slope = float(np.median(slopes)) / 1e9
        offsets = residuals - self._slope * 1e9 * (seconds - seconds[-1])
        self._pivot = (float(seconds[-1]), float(np.median(offsets)))

    def _steer(self, sample_index: int) -> None:
        assert self._origin is not None
        index, origin_ns = self._origin
        fitted_ns = self._fitted_ns(self._seconds(sample_index))
        target_ns = origin_ns + round((sample_index - index) * self._period_ns + fitted_ns)
        here_ns = self.stamp_ns(sample_index) if self._stamped else target_ns
        slew = (target_ns - here_ns) / (_SLEW_TIME_S * 1e9)
        self._anchor_index, self._anchor_ns = sample_index, here_ns
        self._step_ns = self._period_ns * (1 + self._slope + min(max(slew, -_MAX_SLEW), _MAX_SLEW))


class LossDetector:
    """Distinguishes lost samples from late callbacks.

    After a late callback the next ones are on time; after a loss every later block stays behind the line.

    Args:
        rate_hz: nominal sample rate.
    """

    THRESHOLD_NS: Final = 20e6
    CONFIRM_BLOCKS: Final = 8

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._lateness: deque[float] = deque(maxlen=self.CONFIRM_BLOCKS)

    def lost(self, late_ns: float, *, overflow: bool) -> int:
        """Return the number of samples lost before a block that is `late_ns` behind its clock.

        An overflow that the device reports counts at once, as at least one sample.
        """
        self._lateness.append(late_ns)
        confirmed = len(self._lateness) == self.CONFIRM_BLOCKS and min(self._lateness) > self.THRESHOLD_NS
        if not (overflow or confirmed):
            return 0
        behind_ns = late_ns if overflow else min(self._lateness)
        self._lateness.clear()
        return max(round(behind_ns * self._rate_hz / 1e9), 1)


def _edge(residuals: Sequence[float]) -> float:
    return sorted(residuals)[int(len(residuals) * _EDGE)]
