"""Invariants of a fusion, checked after every step of a scenario.

Rules. One thread. A check that fails raises `ViolationError`, which ends the scenario. The reference below
follows frames and commands by rules of its own; it shares no code with the core.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from perception.fusion.core import FusionCore
from perception.fusion.streams import MAX_FRAMES, MAX_TEXTS
from perception.fusion.window import Window
from perception.messages import (
    AudioBlock,
    CameraFrame,
    ClockTick,
    FusedState,
    Header,
    Health,
    Journal,
    Message,
    ModalityState,
    reached_ns,
)
from perception.profile import FusionConfig
from perception.simulate.faults import SLOW
from perception.simulate.nodes import FusionProcess
from perception.simulate.scenario import START_NS, Scenario
from perception.simulate.size import size_of
from perception.simulate.truth import Truth
from perception.simulate.world import World
from perception.units import MILLISECOND_NS, SECOND_NS

INVARIANTS: Final[Mapping[str, str]] = {
    "tick": "each tick is a state or a journaled shed, once",
    "alive": "windows are cut in time, whatever streams do",
    "finite": "no NaN or infinite number in a state",
    "late": "a state contains what had arrived when its window was cut, and nothing later",
    "presence": "presence is true to the script and to what was published before",
    "condition": "the condition of a stream is that of the data used",
    "conservation": "received = consumed + dropped by reason + queued, at every queue",
    "memory": "queues and histories are bounded",
    "future": "no state is about the future",
    "recompute": "the recording gives the same states, byte for byte",
}
MEMORY_PERIOD_NS: Final = 20 * SECOND_NS
MAX_ITEMS: Final = 40_000
"""Items in all containers of a fusion process, without models."""
MAX_BYTES: Final = 16 << 20
"""Payloads and samples in them."""
_REFUSALS: Final = frozenset(
    ("stamp backwards", "stamp ahead", "end ahead", "no such input", "too many topics", "dropped")
)
Used = tuple[str, int, int, str]
"""Topic, `seq`, stamp and condition of a frame or command."""


class ViolationError(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


class Reference:
    """Which frame or command a window must contain, by the order of arrival alone."""

    def __init__(self, config: FusionConfig) -> None:
        self._leap_ns = round(config.max_leap_ms * MILLISECOND_NS)
        self._newest_ns: int | None = None
        self._newest_of: dict[str, int] = {}
        self._kept: dict[str, list[Used]] = {"text": []}

    def push(self, message: Message[Header]) -> bool:
        """Add a message; return whether it is valid. Blocks of sound move time only."""
        header, topic = message.header, message.topic
        stamp_ns, newest_ns = header.stamp_ns, self._newest_ns
        reach_ns = reached_ns(header) if type(header) is AudioBlock else stamp_ns
        if type(header) is not ClockTick:
            last_ns = self._newest_of.get(topic)
            if last_ns is not None and stamp_ns <= last_ns:
                return False
            if newest_ns is not None and reach_ns > newest_ns + self._leap_ns:
                return False
            if type(header) is not AudioBlock:
                self._newest_of[topic] = stamp_ns
                condition = header.condition if type(header) is CameraFrame else ""
                key = topic if condition else "text"
                self._keep(key, (topic, header.seq, stamp_ns, condition))
            elif not (message.payload and header.format == "s16"):
                return True
        if newest_ns is None or reach_ns > newest_ns:
            self._newest_ns = reach_ns
        return True

    def newest(self, topic: str, end_ns: int) -> Used | None:
        """Return the newest frame at or before a time, or the newest command of all `text`."""
        return next((one for one in reversed(self._kept.get(topic, ())) if one[2] <= end_ns), None)

    def _keep(self, key: str, used: Used) -> None:
        kept = self._kept.setdefault(key, [])
        kept.append(used)
        if key == "text":
            kept.sort(key=lambda one: (one[2], one[0], one[1]))
            del kept[:-MAX_TEXTS]
        elif len(kept) > 4 * MAX_FRAMES:
            del kept[:-MAX_FRAMES]


class Checks:
    """Checks one scenario, from the first to the last incarnation of its fusion.

    Args:
        scenario: its script.
        world: its time.
    """

    def __init__(self, scenario: Scenario, world: World) -> None:
        self.counts: Counter[str] = Counter()
        """How often each invariant was checked."""
        self.seen: Counter[str] = Counter()
        """What happened: windows, states, sheds and so on."""
        self._world = world
        config = scenario.fusion
        self._hop_ns = round(config.hop_ms * MILLISECOND_NS)
        self._patience_ns = 3 * self._hop_ns + round(config.lateness_ms * MILLISECOND_NS) + SECOND_NS // 2
        self._config = config
        self._truths = {
            stream.topic.replace("/", "_"): Truth(scenario, stream)
            for stream in scenario.streams
            if stream.kind != "text"
        }
        self._slow = sorted(
            (START_NS + fault.start_ns, START_NS + fault.stop_ns + 2 * self._patience_ns)
            for fault in scenario.faults_at("fusion")
            if fault.kind in SLOW
        )
        self._next_memory_ns = 0

    def begin(self, process: FusionProcess) -> None:
        """Follow a new incarnation of the fusion."""
        self._process = process
        self._reference = Reference(self._config)
        self._open: dict[int, dict[str, Used | None]] = {}
        """Ticks cut and not yet accounted for, with what their states must contain."""
        self._last_tick: int | None = None
        self._last_state_tick = -1
        self._last_used: dict[str, Used] = {}
        self._skipped = self._pushed = self._ticks = self._journaled = 0
        self._began_ns = self._world.now_ns
        self.seen["incarnations"] += 1

    def pushed(self, core: FusionCore, message: Message[Header], windows: Iterable[Window]) -> None:
        """Check the windows that a message has completed."""
        self._pushed += 1
        self._ticks += type(message.header) is ClockTick
        self._reference.push(message)
        for window in windows:
            self._require("future", window.end_ns <= self._world.now_ns, "a window ends in the future")
            if self._last_tick is not None and window.tick != self._last_tick + 1:
                skipped = core.counts["windows"]["skipped"]
                missing = window.tick - self._last_tick - 1
                self._require("tick", skipped - self._skipped == missing, f"{missing} windows were not cut")
                self._skipped = skipped
            self._last_tick = window.tick
            self._open[window.tick] = self._expected(window)
            self.seen["windows"] += 1

    def published(self, message: Message[Header]) -> None:
        """Check a message that the fusion has published."""
        header = message.header
        if type(header) is FusedState:
            self._check_state(header)
        elif type(header) is Journal:
            self._check_journal(header)
        elif type(header) is Health:
            self._check_health(header)

    def ended(self, *, killed: bool) -> None:
        """Check what is left when the process has ended."""
        if not killed:
            self._require(
                "tick", not self._open, f"no state and no journaled shed of ticks {list(self._open)}"
            )
            self._require("conservation", self._journaled == self._pushed, "the journal lacks inputs")

    def require_same(self, holds: bool, text: str) -> None:
        """Check the recording of the scenario."""
        self._require("recompute", holds, text)

    def _require(self, invariant: str, holds: bool, text: str) -> None:
        self.counts[invariant] += 1
        if not holds:
            raise ViolationError(invariant, text)

    def _expected(self, window: Window) -> dict[str, Used | None]:
        """Return what the reference has for each camera and text of a window."""
        newest = self._reference.newest
        return {
            name: newest("text" if item.topic.startswith("text/") else item.topic, window.end_ns)
            for name, item in window.inputs.items()
            if not item.topic.startswith("microphone/")
        }

    def _check_state(self, state: FusedState) -> None:
        tick, end_ns = state.tick, state.stamp_ns
        self.seen["states"] += 1
        expected = self._open.pop(tick, None)
        if expected is None or tick <= self._last_state_tick:
            raise ViolationError("tick", f"a second state of tick {tick}, or of no window")
        self.counts["tick"] += 1
        self._last_state_tick = tick
        self._require("future", end_ns <= state.sent_ns, f"tick {tick} ends after it was published")
        numbers = state.fused.probabilities
        self._require("finite", math.isfinite(math.fsum(numbers) + state.fused.entropy), f"{numbers}")
        for name, item in state.modalities.items():
            if name in expected:
                self._check_used(tick, end_ns, name, item, expected[name])
            if (truth := self._truths.get(name)) is not None:
                self._check_truth(end_ns, name, item, truth)

    def _check_truth(self, end_ns: int, name: str, item: ModalityState, truth: Truth) -> None:
        """Check a stream by the script."""
        expected, condition = truth.at(end_ns)
        at = f"{(end_ns - START_NS) / 1e9:.3f} s: {name}"
        if expected:
            actual = "absent" if item.presence == "absent" else "present"
            text = f"{at} must be {expected}, it is {item.presence} {item.reason} {item.age_ms}"
            self._require("presence", actual == expected, text)
        if condition:
            text = f"{at} must be '{condition}', it is '{item.condition}'"
            self._require("condition", item.condition == condition, text)

    def _check_used(
        self, tick: int, end_ns: int, name: str, item: ModalityState, expected: Used | None
    ) -> None:
        """Check which frame or command a state contains, and whether `held` is true."""
        config = self._config.inputs[name]
        is_text = config.topic.startswith("text/")
        limit_ns = round((config.ttl_ms if is_text else config.max_age_ms) * MILLISECOND_NS)
        self.counts["late"] += 1
        if expected is None or end_ns - expected[2] >= limit_ns + (not is_text):
            if item.presence != "absent":
                raise ViolationError("late", f"tick {tick}: {name} must be absent, it uses {item.seqs}")
            return
        topic, seq, _, condition = expected
        same = item.condition == condition
        self._require("condition", same, f"tick {tick}: {name} is '{item.condition}', its data '{condition}'")
        if condition in config.absent_when:
            text = f"tick {tick}: {name} is {condition} and {item.presence}"
            self._require("condition", item.presence == "absent", text)
            return
        used = item.topic, None if item.seqs is None else item.seqs[1]
        if item.presence == "absent" or used != (topic, seq):
            raise ViolationError("late", f"tick {tick}: {name} must use {expected}, it uses {used}")
        true = (item.presence == "held") == (expected == self._last_used.get(name))
        self._last_used[name] = expected
        self._require("presence", true, f"tick {tick}: {name} {item.presence}")

    def _check_journal(self, journal: Journal) -> None:
        for entry in journal.entries:
            if entry.kind == "shed":
                if self._open.pop(entry.seq, None) is None:
                    raise ViolationError("tick", f"tick {entry.seq} was shed twice, or not cut")
                self.seen["sheds"] += 1
            else:
                self._journaled += 1
        self._require("tick", len(self._open) <= 2, f"ticks {list(self._open)} are in no journal")
        self._require("conservation", self._journaled == self._pushed, "the journal lacks inputs")

    def _check_health(self, health: Health) -> None:
        now_ns, process = self._world.now_ns, self._process
        consumed = 0
        for topic, one in health.inputs.items():
            consumed += one.consumed
            same = one.received == one.consumed + one.queued + sum(one.dropped.values())
            self._require("conservation", same, f"{topic}: {one}")
        entered = self._pushed - self._ticks + process.early.refused + len(process.early)
        self._require("conservation", consumed == entered, f"{consumed} consumed, {entered} accounted for")
        if self._last_tick is not None and not (process.stopped.is_set() or self._is_slow(now_ns)):
            behind_ns = now_ns - self._last_tick * self._hop_ns
            self._require("alive", behind_ns < self._patience_ns, f"no window for {behind_ns / 1e9:.3f} s")
        if now_ns >= self._next_memory_ns:
            self._next_memory_ns = now_ns + MEMORY_PERIOD_NS
            items, size = size_of(process.holds)
            self.seen["most items"] = max(self.seen["most items"], items)
            self._require(
                "memory", items <= MAX_ITEMS and size <= MAX_BYTES, f"{items} items and {size} bytes are held"
            )

    def _is_slow(self, now_ns: int) -> bool:
        return any(start_ns <= now_ns < stop_ns for start_ns, stop_ns in self._slow)
