"""Judges the pictures of a camera. Pure."""

from collections import Counter, deque
from typing import Final

from perception.devices.device import CapturedFrame
from perception.devices.signal.appearance import Appearance
from perception.devices.signal.picture import Measuring, Thin
from perception.devices.signal.seam import Seams
from perception.devices.signal.stillness import Stillness
from perception.messages import ConditionName
from perception.profile.signal import CameraSignal
from perception.units import SECOND_NS

_SOONEST_NS: Final = 12_000_000
"""Pictures that follow sooner are not judged."""
_LEAST_SIZE: Final = 16
_LOOK_NS: Final = 115_000_000
"""Time between looks: measures of whole pictures."""
_MOST: Final = 0.75
"""Share of the looks that have to find a condition."""
_FEWEST_LOOKS: Final = 3
_BEFORE_FROZEN: Final[frozenset[ConditionName]] = frozenset({"black", "blown out", "noise", "covered"})
"""Conditions that may look frozen and say more."""
Finding = tuple[ConditionName, str]


class FrameJudge:
    """Judges a camera's frames by their own statistics over seconds.

    Args:
        thresholds: the section `[camera.NAME.signal]` of the profile.
    """

    def __init__(self, thresholds: CameraSignal | None = None) -> None:
        self._limits = thresholds or CameraSignal()
        self._hold_ns = round(self._limits.hold_s * SECOND_NS)
        self.condition: ConditionName = "ok"
        self.reason = ""
        self.facts: dict[str, str | float] = {}
        self._start(())

    def _start(self, shape: tuple[int, ...]) -> None:
        """Forget all pictures: the next have another shape."""
        limits, self._shape = self._limits, shape
        self._still = Stillness(limits)
        self._measured = Measuring()
        self._appearance = Appearance(limits)
        self._seams = Seams()
        self._looks: deque[tuple[int, Finding | None]] = deque()
        """Stamp and finding of each look of the last `hold_s`, and the newest before."""
        self._last_ns: int | None = None
        self._looked_ns: int | None = None

    def update(self, frame: CapturedFrame) -> None:
        """Judge one frame; a picture of few pixels is not judged."""
        if frame.image.shape != self._shape:
            self._start(frame.image.shape)
        if min(frame.image.shape[:2]) < _LEAST_SIZE:
            self.condition, self.reason = "ok", ""
            return
        if self._last_ns is not None and 0 <= frame.stamp_ns - self._last_ns < _SOONEST_NS:
            return
        self._last_ns = frame.stamp_ns
        thin = Thin.of(frame.image)
        stopped = self._still.update(thin.sums, thin.area, frame.stamp_ns, frame.raw)
        passed_ns = _LOOK_NS if self._looked_ns is None else frame.stamp_ns - self._looked_ns
        if passed_ns >= _LOOK_NS or passed_ns < 0:
            self._looked_ns = frame.stamp_ns
            self._look(frame, thin, max(passed_ns, 0) / SECOND_NS, stopped is not None)
        self.condition, self.reason = self._decided(stopped) or ("ok", "")

    def _look(self, frame: CapturedFrame, thin: Thin, passed_s: float, stopped: bool) -> None:
        measures = self._measured(thin)
        self.facts["brightness"] = round(measures.level, 1)
        torn = self._seams.update(frame.image)
        found = self._appearance.update(measures, passed_s, trusted=not (stopped or torn))
        if self._looks and frame.stamp_ns < self._looks[-1][0]:
            self._looks.clear()
        self._looks.append((frame.stamp_ns, found or torn))
        while len(self._looks) > _FEWEST_LOOKS and self._looks[1][0] <= frame.stamp_ns - self._hold_ns:
            self._looks.popleft()

    def _decided(self, stopped: Finding | None) -> Finding | None:
        """Return the most serious condition that lasts."""
        lasting = self._lasting()
        if lasting is not None and lasting[0] in _BEFORE_FROZEN:
            return lasting
        newest = self._looks[-1][1]
        if newest is not None and newest[0] in _BEFORE_FROZEN:
            return None
        if stopped is not None:
            return stopped
        return None if self._still.paused else lasting

    def _lasting(self) -> Finding | None:
        """Return what most of the looks of the last `hold_s` found."""
        if self._looks[-1][0] - self._looks[0][0] < self._hold_ns or len(self._looks) < _FEWEST_LOOKS:
            return None
        names = Counter(found[0] for _, found in self._looks if found is not None)
        if not names:
            return None
        name, count = names.most_common(1)[0]
        if count < _MOST * len(self._looks):
            return None
        return next(found for _, found in reversed(self._looks) if found is not None and found[0] == name)
