"""Detects pictures that stopped: frozen, alternating or looped, whole or but for a clock in a corner. Pure.

A block of a picture is *lively* if it has never been equal for long: noise or motion changes it. Lossy coding
removes noise, so blocks of a still room may be equal for seconds: those are not lively, and nothing follows
from them. Lively blocks that stop all at once, and stay equal bit for bit, were frozen: motion of a scene
ends block by block. A raw picture needs no past: every block has noise.

A picture that changes and then equals one of the last seconds, bit for bit, was stored: two buffers that
alternate, a loop, one picture coded again. No sensor and no coder returns to an earlier picture.
"""

from collections import deque
from typing import Final

import numpy as np

from perception.devices.signal.picture import GRID, Flags, Sums
from perception.messages import ConditionName
from perception.profile.signal import CameraSignal
from perception.units import SECOND_NS

_LIVELY_NS: Final = 350_000_000
_LIVELY_FRAMES: Final = 2.5
_KNOWN_NS: Final = SECOND_NS
_KNOWN_FRAMES: Final = 8
_ONE_BY_ONE_NS: Final = 1_500_000_000
_HOLD_OF_FEW: Final = 1.3
_FADING_S: Final = 20.0
"""Time in which the longest pause of a block loses 63 % of its length."""
_FEW: Final = 0.08
_MANY: Final = 0.35
_CHANGED: Final = 0.25
_SAME: Final = 0.85
_RETURNS: Final = 0.35
_RETURN_NS: Final = 1_200_000_000
_RETURN_FRAMES: Final = 8
_STORED: Final = 256
_PROBED: Final = 16
"""Blocks that are compared first."""
_NOISE_RANGE: Final = (2.5, 252.5)


class Stillness:
    """Follows the blocks of a stream of pictures."""

    def __init__(self, limits: CameraSignal) -> None:
        self._limits = limits
        self._hold_ns = round(limits.frozen_s * SECOND_NS)
        self._loop_ns = round(limits.loop_s * SECOND_NS)
        self._first_ns = 0
        self._last_ns = 0
        self._frames = 0
        self._interval_ns = 0.0
        self._sums: Sums | None = None
        self._changed_ns = np.zeros(0, np.int64)
        """Per block: stamp of its last change."""
        self._longest_ns = np.zeros(0, np.float64)
        """Per block: its longest pause, slowly forgotten."""
        self._stored: deque[tuple[int, Sums]] = deque(maxlen=_STORED)
        self._returns: deque[tuple[int, bool]] = deque(maxlen=_STORED)

    def update(self, sums: Sums, area: Sums, stamp_ns: int, raw: bool) -> tuple[ConditionName, str] | None:
        """Follow one picture; return why the stream counts as frozen or torn, None if it does not."""
        if self._sums is None or self._sums.shape != sums.shape or stamp_ns <= self._last_ns:
            self._restart(sums, stamp_ns)
            return None
        changed = sums != self._sums
        passed_ns = stamp_ns - self._last_ns
        self._frames += 1
        share = 1 / min(self._frames, 16)
        self._interval_ns += share * (passed_ns - self._interval_ns)
        pause = stamp_ns - self._changed_ns
        faded = self._longest_ns * np.exp(-pause / SECOND_NS / _FADING_S)
        self._longest_ns = np.where(changed, np.maximum(faded, pause), self._longest_ns)
        self._changed_ns = np.where(changed, stamp_ns, self._changed_ns)
        returned = self._returned(sums, changed)
        self._returns.append((stamp_ns, returned))
        self._stored.append((stamp_ns, sums))
        self._sums, self._last_ns = sums, stamp_ns
        means = sums / area
        usable = (means > _NOISE_RANGE[0]) & (means < _NOISE_RANGE[1])
        return self._stopped(usable, raw) or self._looped()

    def _restart(self, sums: Sums, stamp_ns: int) -> None:
        self._sums = sums
        self._first_ns = self._last_ns = stamp_ns
        self._frames = 0
        self._changed_ns = np.full(sums.shape, stamp_ns, np.int64)
        self._longest_ns = np.zeros(sums.shape)
        self._stored.clear()
        self._returns.clear()

    @property
    def paused(self) -> bool:
        """Whether lively blocks stopped a short while ago: the picture may be an old one."""
        pause_ns = self._last_ns - self._changed_ns
        lively = self._lively(np.ones(pause_ns.shape, np.bool_), False)
        stopped = pause_ns[lively] >= _LIVELY_NS
        return bool(lively.any()) and bool(stopped.mean() >= self._limits.frozen_share)

    def _lively(self, usable: Flags, raw: bool) -> Flags:
        if raw:
            return usable
        known = self._changed_ns - self._first_ns >= _KNOWN_NS
        return known & (self._longest_ns <= self._pause_of_lively_ns)

    @property
    def _pause_of_lively_ns(self) -> float:
        return max(_LIVELY_NS, _LIVELY_FRAMES * self._interval_ns)

    def _stopped(self, usable: Flags, raw: bool) -> tuple[ConditionName, str] | None:
        """Return why the picture, or a band of it, counts as stopped."""
        if self._frames < _KNOWN_FRAMES and not raw:
            return None
        pause_ns = self._last_ns - self._changed_ns
        lively = self._lively(usable, raw)
        few = lively.sum() < _MANY * lively.size and not raw
        hold_ns = max(self._hold_ns * (_HOLD_OF_FEW if few else 1.0), 3 * self._interval_ns)
        dead = lively & (pause_ns >= hold_ns)
        if not raw and dead.any():
            # Blocks that were still before the others stopped say nothing, unless many stopped one by one.
            end_ns = float(np.percentile(self._changed_ns[dead], 90))
            early = dead & (self._changed_ns < end_ns - self._pause_of_lively_ns)
            lively, dead = lively & ~early, dead & ~early
            if (early & (self._changed_ns > end_ns - _ONE_BY_ONE_NS)).sum() > dead.sum():
                return None
        count = int(lively.sum())
        share = dead.sum() / max(count, 1)
        if count < _FEW * lively.size or share < 0.2:
            return None
        seconds = float(np.median(pause_ns[dead])) / SECOND_NS
        if share >= self._limits.frozen_share:
            text = f"the picture is frozen: {share:.0%} of what moved has not changed for {seconds:.1f} s"
            return "frozen", text
        band = _band(dead.reshape(GRID), lively.reshape(GRID), self._limits.frozen_share)
        if band is None:
            return None
        return "torn", f"the picture is torn: its {band} part has not changed for {seconds:.1f} s"

    def _returned(self, sums: Sums, changed: Flags) -> bool:
        """Return whether the picture changed, and equals an earlier one except the newest."""
        while self._stored and self._stored[0][0] < self._last_ns - self._loop_ns:
            self._stored.popleft()
        if len(self._stored) < 2 or changed.sum() < _CHANGED * changed.size:
            return False
        blocks = np.flatnonzero(changed)
        some = blocks[:: max(blocks.size // _PROBED, 1)]
        earlier = np.array([stored for _, stored in self._stored])[:-1]
        alike = (earlier[:, some] == sums[some]).mean(axis=1) >= _SAME / 2
        return bool(((earlier[alike] == sums)[:, blocks].mean(axis=1) >= _SAME).any())

    def _looped(self) -> tuple[ConditionName, str] | None:
        """Return why the pictures count as a loop."""
        while len(self._returns) > _RETURN_FRAMES and self._returns[0][0] < self._last_ns - _RETURN_NS:
            self._returns.popleft()
        count = sum(returned for _, returned in self._returns)
        if count < _RETURN_FRAMES // 2 or count < _RETURNS * len(self._returns):
            return None
        text = f"{count} of the last {len(self._returns)} pictures were shown before"
        return "frozen", f"the picture is frozen: {text}"


def _band(dead: Flags, lively: Flags, share: float) -> str | None:
    """Return which part of a picture, a band of rows, stopped while the rest lives."""
    stopped, lives = dead.sum(axis=1), lively.sum(axis=1)
    for name, step in (("lower", -1), ("upper", 1)):
        in_band = np.cumsum(stopped[::step]), np.cumsum(lives[::step])
        outside = stopped.sum() - in_band[0], lives.sum() - in_band[1]
        fits = (in_band[0] >= share * np.maximum(in_band[1], 1)) & (outside[0] <= 0.1 * outside[1])
        if (fits & (in_band[0] > 0) & (outside[1] > 0))[2:-2].any():
            return name
    return None
