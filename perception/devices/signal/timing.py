"""Judges when the items of a stream arrive: too seldom, irregularly, ever later, or not at all. Pure.

Rules. One thread calls all methods, with times of one clock that never steps: `update` with each item, `idle`
several times a second while none arrives. Data carries the condition after `update`; only health can carry
`lost` and `reconnecting`.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from perception.messages import ConditionName
from perception.profile import CameraConfig
from perception.profile.signal import StreamSignal
from perception.units import SECOND_NS

_PERIOD_NS: Final = SECOND_NS // 4
_SPAN_NS: Final = 2 * SECOND_NS
_ITEMS: Final = 8
"""Fewer items say nothing about a rate: a slow stream is judged over a longer time."""
_MOST_ITEMS: Final = 4096
_STARTING_NS: Final = SECOND_NS
_SLOW_PERIODS: Final = 4

_CLEAN: Final = 4
"""So many examinations in a row have to find nothing wrong, a second, before a fault is over."""
ABSENT: Final = ("lost", "reconnecting")
"""Conditions in which nothing arrives."""
FAULTS: Final = ("slow", "jittery", "lagging")


class StreamJudge:
    """Judges one stream by the stamps and arrivals of its newest two seconds, or its newest eight items.

    Args:
        thresholds: the device's section `signal` of the profile.
        rate_hz: nominal items a second; None: the highest rate that the stream had over two seconds.
        opened_ns: when the device was opened.
    """

    def __init__(self, thresholds: StreamSignal, rate_hz: float | None, opened_ns: int) -> None:
        self.condition: ConditionName = "starting"
        self.reason = ""
        self.facts: dict[str, str | float] = {}
        self._limits = thresholds
        self._rate_hz = rate_hz
        self._fastest_hz = 0.0
        self._items: deque[tuple[int, int]] = deque(maxlen=_MOST_ITEMS)
        """Stamps and arrivals of the newest items."""
        self._began_ns = self._last_ns = opened_ns
        """Arrivals of the first item since the last break, and of the newest."""
        self._due_ns = 0
        self._clean = 0
        """Examinations in a row that found nothing wrong."""
        self._least_ns: float | None = None
        """Least arrival minus stamp: what the way takes when nothing delays it."""

    def update(self, stamp_ns: int, arrival_ns: int) -> None:
        """Judge the arrival of an item; the condition changes at most four times a second."""
        if not self._items:
            self._began_ns = arrival_ns
        if self._items and stamp_ns <= self._items[-1][0]:
            return
        self._items.append((stamp_ns, arrival_ns))
        self._last_ns = arrival_ns
        if arrival_ns < self._due_ns and self.condition not in ABSENT:
            return
        self._due_ns = arrival_ns + _PERIOD_NS
        while len(self._items) > _ITEMS and arrival_ns - self._items[0][1] > _SPAN_NS:
            self._items.popleft()
        condition, reason = self._verdict(arrival_ns)
        self._clean = 0 if reason else self._clean + 1
        if reason or self._clean >= _CLEAN or self.condition not in FAULTS:
            self.condition, self.reason = condition, reason

    def idle(self, now_ns: int, reconnecting: str = "") -> None:
        """Judge that no item arrived until now; `reconnecting`: why its device is being opened again."""
        if reconnecting:
            self._break("reconnecting", reconnecting)
        elif now_ns - self._last_ns > self._patience_ns():
            self._break("lost", "the device delivers nothing")

    def _break(self, condition: ConditionName, reason: str) -> None:
        self.condition, self.reason = condition, reason
        self._items.clear()
        self._least_ns = None

    def _patience_ns(self) -> float:
        if not self._items and self.condition == "starting":
            return self._limits.start_within_s * SECOND_NS
        rate_hz = self._rate_hz or self._fastest_hz
        periods_ns = _SLOW_PERIODS * SECOND_NS / rate_hz if rate_hz else 0.0
        return max(self._limits.lost_after_s * SECOND_NS, periods_ns)

    def _verdict(self, now_ns: int) -> tuple[ConditionName, str]:
        if now_ns - self._began_ns < _STARTING_NS or len(self._items) < _ITEMS:
            return "starting", ""
        times = np.array(self._items, np.int64)
        stamps, delays = times[:, 0], (times[:, 1] - times[:, 0]).astype(np.float64)
        if reason := self._lagging(delays):
            return "lagging", reason
        steps = np.diff(stamps)
        rate_hz = len(steps) * SECOND_NS / float(stamps[-1] - stamps[0])
        self.facts["stream_hz"] = round(rate_hz, 2)
        if now_ns - self._began_ns >= _SPAN_NS:
            self._fastest_hz = max(self._fastest_hz, rate_hz)
        nominal_hz = self._rate_hz or self._fastest_hz
        if rate_hz < self._limits.slow_below * nominal_hz:
            return "slow", f"{rate_hz:.3g} items a second instead of {nominal_hz:.3g}"
        if reason := self._jittery(steps, delays):
            return "jittery", reason
        return "ok", ""

    def _lagging(self, delays: npt.NDArray[np.float64]) -> str:
        quarter = max(len(delays) // 4, 1)
        before, now = float(np.median(delays[:quarter])), float(np.median(delays[-quarter:]))
        least = float(delays.min())
        self._least_ns = least if self._least_ns is None else min(self._least_ns, least)
        late_s, grown_s = (now - self._least_ns) / SECOND_NS, (now - before) / SECOND_NS
        self.facts["late_s"] = round(late_s, 3)
        if late_s > self._limits.lagging_above_s:
            return f"data arrives {late_s:.2f} s later than at best"
        if grown_s > self._limits.lagging_growth_s:
            return f"data arrives ever later: by {grown_s:.2f} s within seconds"
        return ""

    def _jittery(self, steps: npt.NDArray[np.int64], delays: npt.NDArray[np.float64]) -> str:
        usual = float(np.median(steps))
        uneven = np.abs(steps - usual) > max(self._limits.jitter_above * usual, 5e6)
        share = float(np.mean(uneven))
        if share > self._limits.jitter_share:
            return f"{share:.0%} of the intervals are not about {usual / 1e6:.0f} ms"
        spread_s = float(np.subtract(*np.quantile(delays, (0.9, 0.1)))) / SECOND_NS
        if spread_s > self._limits.jitter_delay_s:
            return f"data arrives up to {spread_s:.2f} s later from item to item"
        return ""


class Stamped(Protocol):
    """An item of a device."""

    @property
    def stamp_ns(self) -> int:
        """Host time of its capture."""


ItemT = TypeVar("ItemT", bound=Stamped)
SignalT = TypeVar("SignalT", bound=Stamped, contravariant=True)


class SignalJudge(Protocol[SignalT]):
    """Judges what is in the items: `FrameJudge`, `BlockJudge`."""

    condition: ConditionName
    reason: str
    facts: dict[str, str | float]

    def update(self, item: SignalT) -> None:
        """Judge the next item."""


class DeviceJudge(Generic[ItemT]):
    """Judges all of one device: the signal of its items, and when they arrive."""

    def __init__(self, signal: SignalJudge[ItemT], timing: StreamJudge) -> None:
        self._signal = signal
        self._timing = timing

    def update(self, item: ItemT, arrival_ns: int) -> None:
        """Judge an item that was read at `arrival_ns`."""
        self._timing.update(item.stamp_ns, arrival_ns)
        self._signal.update(item)

    def idle(self, now_ns: int, reconnecting: str = "") -> None:
        """Judge that nothing was read until `now_ns`; see `StreamJudge`."""
        self._timing.idle(now_ns, reconnecting)

    @property
    def condition(self) -> ConditionName:
        """The most serious that holds: nothing arrives, then a wrong signal, then when it arrives."""
        return self._worst().condition

    @property
    def gone(self) -> bool:
        """Whether nothing arrives."""
        return self._timing.condition in ABSENT

    @property
    def reason(self) -> str:
        """Why, with the figure that decided; empty if nothing is wrong."""
        return self._worst().reason

    @property
    def facts(self) -> dict[str, str | float]:
        """What was measured."""
        return self._signal.facts | self._timing.facts

    def _worst(self) -> "SignalJudge[ItemT] | StreamJudge":
        wrong = self._signal.condition != "ok" and self._timing.condition not in ABSENT
        return self._signal if wrong else self._timing


def camera_rate_hz(config: CameraConfig, facts: Mapping[str, str | float]) -> float | None:
    """Return a camera's nominal rate: as the open device reports or the profile sets; None if neither."""
    reported = facts.get("rate_hz")
    if isinstance(reported, int | float) and reported > 0:
        return min(float(reported), config.rate_hz)
    return config.rate_hz if "rate_hz" in config.model_fields_set else None
