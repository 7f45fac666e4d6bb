"""Judges how a picture looks beside how the same camera looked before. Pure.

One picture does not show whether it is wrong: a white wall is bright and smooth, a dark room is dark. So most
rules compare with the last seconds that were good: `Reference`. A light that is switched off scales the
picture and leaves its structure; a hand removes it. A defocused lens keeps the large forms and removes fine
detail everywhere; a passing object takes its detail along and leaves that of the room.

Fine detail is compared by percentiles over the blocks of a picture, not block by block: a camera may move.
Whether the scene is the same is decided once, between the last good picture and the first that is not.
"""

from collections import deque
from typing import Final

import numpy as np

from perception.devices.signal.picture import Flags, Floats, Measures
from perception.messages import ConditionName
from perception.profile.signal import CameraSignal

_KNOWN_LOOKS: Final = 8
_MEMORY_S: Final = 2.0
_FORGETTING: Final = 0.3
_SHORT_LOOKS: Final = 4
_CUT_S: Final = 0.3
_SMOOTH_S: Final = 6.0
_LEVELS_OF_STRUCTURE: Final = 0.25
"""Standard deviation of block means over some pictures: less is noise and light fall-off of a sensor."""
_PERCENTILES: Final = (50, 60, 70, 75, 80, 85, 90, 95)
_DARKEST: Final = 4.0
"""A covered lens is brighter than this, by its noise; a darker picture is black or shows a dark scene."""
_LEAST_NOISE: Final = 1200.0
"""Twice the power of noise of 25 levels: more than a sensor has at night."""
_FEWEST: Final = 4
"""Percentiles with detail: a quarter of the picture has some."""
_MOST: Final = 0.75
_LEAST_DETAIL: Final = 6.0
"""Less detail than this comes and goes with the rounding of dark pictures."""

Finding = tuple[ConditionName, str]


class Reference:
    """How the camera's pictures looked in the last seconds that were good."""

    def __init__(self) -> None:
        self.looks = 0
        self.level = self.white = self.structure = self.rich = 0.0
        self.error = self.total = 0.0
        self.alike = 1.0
        """Usual likeness of successive pictures: near 0 where every picture differs."""
        self.last: Floats = np.zeros(0)
        """(blocks,) means of the newest good picture."""
        self.detail: Floats = np.zeros(0)
        """Detail at each of `_PERCENTILES`."""
        self.channels: Floats = np.zeros((0, 2))

    @property
    def known(self) -> bool:
        """Whether enough pictures were good to compare with."""
        return self.looks >= _KNOWN_LOOKS

    def add(self, now: Measures, passed_s: float) -> None:
        """Add a good picture."""
        detail = percentiles(now)
        if self.looks == 0:
            self.last, self.detail, self.channels = now.means, detail, now.channels
        self.looks += 1
        share = max(1 / self.looks, min(passed_s / _MEMORY_S, 1.0))
        self.alike += share * (self.likeness(now) - self.alike)
        self.last = now.means
        self.level += share * (now.level - self.level)
        self.white += share * (now.white - self.white)
        self.rich += share * (now.rich - self.rich)
        self.error += share * (now.error - self.error)
        self.total += share * (float(now.detail[now.inside].mean()) - self.total)
        self.structure += share * (structure(now) - self.structure)
        self.channels = self.channels + share * (now.channels - self.channels)
        # Falls faster than it rises: an object that passed leaves no detail that could be lost.
        shares = np.where(detail < self.detail, max(share, _FORGETTING), share)
        self.detail = self.detail + shares * (detail - self.detail)

    def likeness(self, now: Measures) -> float:
        """Return how far a picture shows the scene of the last good one, 0 to 1, in any light."""
        near = np.abs(now.means - self.last) < max(1.0, 0.25 * self.structure)
        return max(_correlation(now.means, self.last, now.inside), float(near[now.inside].mean()))

    def brightened(self, now: Measures) -> bool:
        """Return whether white blocks were brighter than the others in the last good picture."""
        white, other = now.inside & (now.means >= 245), now.inside & (now.means < 245)
        if self.alike < 0.5 or not white.any() or not other.any():
            return True
        return bool((self.last[white][:, None] > self.last[other]).mean() >= 0.55)


def percentiles(now: Measures) -> Floats:
    """Return the detail at each of `_PERCENTILES` of the blocks inside the bars."""
    ranked = np.sort(now.detail[now.inside])
    return np.asarray(ranked[np.asarray(_PERCENTILES) * (ranked.size - 1) // 100])


def structure(now: Measures) -> float:
    """Return the standard deviation of the block means inside the bars."""
    return float(now.means[now.inside].std())


def _correlation(one: Floats, other: Floats, inside: Flags) -> float:
    one, other = one[inside] - one[inside].mean(), other[inside] - other[inside].mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / size) if size > 0 else 0.0


class Appearance:
    """Judges pictures one after the other.

    Args:
        limits: thresholds of the camera.
    """

    def __init__(self, limits: CameraSignal) -> None:
        self._limits = limits
        self._before = Reference()
        self._last: deque[Floats] = deque(maxlen=_SHORT_LOOKS)
        """Block means of the last pictures: their mean has less noise."""
        self._onset: tuple[float, bool] | None = None
        """Of the first picture that differs from the good ones: likeness, and whether it was brightened."""
        self._other_s = 0.0
        """Time for which the scene has been another."""

    def update(self, now: Measures, passed_s: float, trusted: bool) -> Finding | None:
        """Return what is wrong with a picture, None if nothing is.

        Args:
            now: measures of the picture.
            passed_s: seconds since the one before.
            trusted: whether nothing else is wrong with it: it may become part of the reference.
        """
        if not now.inside.any():
            return None
        if self._last and self._last[-1].shape != now.means.shape:
            self._last.clear()
            self._before = Reference()
        self._last.append(now.means)
        found = self._alone(now)
        if found is None and self._before.known:
            found = self._compared(now, passed_s)
        if found is None and trusted and self._onset is None:
            self._before.add(now, passed_s)
        return found

    def _alone(self, now: Measures) -> Finding | None:
        """Judge by the picture itself."""
        limits = self._limits
        noise = float(np.sqrt(now.grain / 2))
        plain = min(float(np.mean(self._last, axis=0)[now.inside].std()), structure(now))
        if plain <= _LEVELS_OF_STRUCTURE and now.level + (2 * noise if noise > 2 else 0) < limits.black_below:
            return "black", f"the picture is black: brightness {now.level:.0f} of 255 without structure"
        if now.white >= 0.95:
            return "blown out", f"the picture is blown out: {now.white:.0%} of it is white"
        powers = (now.near, now.far, now.down, now.moved)
        random = min(powers) >= limits.noise_share * max(powers) and now.fine >= now.far / 5
        if random and now.far >= _LEAST_NOISE:
            return "noise", f"the picture is noise: neighbours differ by {np.sqrt(now.near / 2):.0f} of 255"
        return _dead_channel(now, self._before)

    def _compared(self, now: Measures, passed_s: float) -> Finding | None:
        """Judge by the pictures before; forget them if the scene has become another."""
        before, limits = self._before, self._limits
        whiter = now.white >= limits.saturated_share and before.white <= now.white / 3
        lost = self._lost(now)
        other = before.likeness(now) < min(0.6, before.alike - 0.3) or now.rich < 0.3 * before.rich
        if not (whiter or lost or other):
            self._onset, self._other_s = None, 0.0
            return None
        if self._onset is None:
            self._onset = before.likeness(now), before.brightened(now)
        alike, brightened = self._onset
        if whiter and brightened:
            shares = f"{now.white:.0%} of it is white, {before.white:.0%} before"
            return "blown out", f"the picture is blown out: {shares}"
        if (found := self._without_detail(now, alike, lost)) is not None:
            return found
        self._other_s += passed_s
        if self._other_s >= (_CUT_S if now.rich >= 0.3 * before.rich else _SMOOTH_S):
            self._before, self._onset, self._other_s = Reference(), None, 0.0
        return None

    def _lost(self, now: Measures) -> bool:
        """Return whether detail is gone nearly wherever there was some."""
        before = self._before
        left = self._limits.blur_below * before.detail
        # Only where there was detail, and where noise would not hide what is left.
        had = (before.detail > max(3 * before.error, _LEAST_DETAIL)) & (left > 3 * now.error)
        return bool(had.sum() >= _FEWEST and (percentiles(now)[had] < left[had]).mean() >= _MOST)

    def _without_detail(self, now: Measures, alike: float, lost: bool) -> Finding | None:
        """Return covered or blurred."""
        before = self._before
        scale = structure(now) / max(before.structure, 0.1)
        dim = now.level < 0.6 * before.level
        dark = dim or (now.level < 40 and scale < 0.5)
        same = alike >= min(0.6, before.alike - 0.2)
        if not lost:
            gone = scale < 0.3 and alike < 0.4 and before.structure > 4 * _LEVELS_OF_STRUCTURE
            if gone and dark and now.rich <= 0.3 * before.rich:
                return "covered", "the lens is covered: dark, nothing is left of the picture"
            return None
        smooth = self._is_smooth(now, scale)
        if (
            now.level >= _DARKEST
            and now.rich < 0.3 * before.rich
            and ((dim and smooth) or (dark and not same))
        ):
            return "covered", "the lens is covered: dark, and fine detail is gone everywhere"
        sharp_before = alike >= min(0.85, before.alike - 0.1) and scale > 0.75
        if not dim and sharp_before and smooth and now.white < self._limits.saturated_share / 2:
            left = f"less than {self._limits.blur_below:.0%} of its fine detail is left"
            return "blurred", f"the picture is blurred: {left}"
        return None

    def _is_smooth(self, now: Measures, scale: float) -> bool:
        """Return whether more detail is gone than a picture of less contrast loses."""
        usual, left = self._before.total * scale**2, float(now.detail[now.inside].mean())
        error = 3 * now.error / float(np.sqrt(now.inside.sum()))
        return left < self._limits.blur_below * usual and error < usual


def _dead_channel(now: Measures, before: Reference) -> Finding | None:
    means, spreads = now.channels.T
    if spreads.size < 3:
        return None
    dead = int(np.argmin(spreads))
    others = [channel for channel in range(3) if channel != dead]
    alive = float(spreads[others].min())
    extreme = means[dead] < 12 or means[dead] > 243
    if alive < 8 or spreads[dead] > (0.15 * alive if extreme else 0.03 * alive):
        return None
    name = ("blue", "green", "red")[dead]
    text = f"the {name} channel is dead: {means[dead]:.0f} of 255 everywhere"
    if not before.known:
        return ("dead channel", text) if spreads[dead] < 1 and extreme else None
    was = before.channels[:, 1]
    if was[dead] < 0.25 * was[others].max():
        return None
    same = spreads[others] / np.maximum(was[others], 1)
    return ("dead channel", text) if same.min() > 0.5 and same.max() < 2 else None
