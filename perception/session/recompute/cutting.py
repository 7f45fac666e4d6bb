"""Cuts the windows of a recording by the fusion core itself: as journaled, or by the order of arrival.

Rules. Pure generators, iterated by one thread; no lock. As journaled: the core receives the inputs of the
live run in its order, by the rules that its mark names, so the windows equal those of the live run. A core
that is resumed from a mark lacks what was recorded before it: `Cut.whole` is False for each window that
depends on that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from perception.devices.received import ReceivedSignals
from perception.errors import SessionError
from perception.features.window import CONTEXT_NS
from perception.fusion.audio_stream import RESYNC_NS
from perception.fusion.core import RULES, FusionCore
from perception.fusion.early import Early
from perception.fusion.presence import Presence
from perception.fusion.window import CameraSlice, TextSlice, Window
from perception.messages import (
    CameraFrame,
    ClockTick,
    CoreMark,
    Header,
    HeldInput,
    Message,
    TextCommand,
    with_condition,
)
from perception.profile import FusionConfig
from perception.session.recompute.arrivals import STREAM_KINDS, arrivals
from perception.session.recompute.journal import Begin, End, Missed, Step
from perception.session.sound import split_early
from perception.topics import lookup
from perception.units import SECOND_NS, Counts

CLOCK_TOPIC: Final = "clock/replay"
MAX_SILENCE_NS: Final = 3_600_000_000_000
"""After a clock was set, stamps may leap by years; longer silence is passed over, its windows are not cut."""
_TEXT_OF: Final = {
    "late": "too late for a window that was cut",
    "resync": "sample counter corrected by its stamps",
    "skipped": "passed over in a long silence",
    "no such input": "read by no input",
    "dropped": "no room until their window was cut",
    "topics forgotten": "topics dropped for newer ones",
    "clock set back": "stamped ahead, then their publisher's clock was set back",
}
"""By counter of the core: those that count no refused message."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A window that was not shed."""

    window: Window
    shed: int
    """Windows shed since the last one."""
    source: str
    """Publisher id of the live states, empty if there was none."""
    whole: bool
    """Whether all that decided its state is recorded."""


def cut_as_journaled(
    steps: Iterable[Step],
    config: FusionConfig,
    shed: Callable[[str], Set[int]],
    counts: Counts | None = None,
) -> Iterator[Cut | Begin | Missed | End]:
    """Yield the windows of a live fusion, with the other steps in between.

    Args:
        steps: what the fusion received.
        config: of the live fusion.
        shed: returns the ticks of its shed windows, by the publisher id of its states.
        counts: counters of refused and late messages.

    Raises:
        SessionError: a later version recorded it, with rules that this version does not know.
    """
    core, reach, source = FusionCore(config, counts), _Reach(config), ""
    presence, count = Presence(), 0
    for step in steps:
        if isinstance(step, Begin):
            core = FusionCore(config, counts, rules=_rules(step))
            reach, presence, count = _Reach(config), Presence(step.mark), 0
            source = step.journal.state_source
            if (mark := step.mark) is not None:
                core.resume(mark, reach.limit(mark, step.held))
            yield step
        elif isinstance(step, Missed | End):
            yield step
        else:
            for window in core.push(step):
                is_shed = window.tick in shed(source)
                if not core.rules or not is_shed:
                    window = presence.mark_held(window)
                if is_shed:
                    count += 1
                else:
                    yield Cut(window, count, source, reach.covers(window))
                    count = 0


def _rules(step: Begin) -> int:
    """Return the rules of a recorded fusion; raise SessionError if they are of a later version."""
    rules = 0 if step.journal.before is None else step.journal.before.rules
    if rules > RULES:
        raise SessionError(
            f"its windows were cut by rules {rules}; this version supports 0 to {RULES}: "
            "install a newer version"
        )
    return rules


def cut_as_arrived(
    messages: Iterable[Message[Header]],
    config: FusionConfig,
    counts: Counts | None = None,
    *,
    on_clock: bool = False,
) -> Iterator[Cut]:
    """Yield all windows of a recording in its own order, up to those that its last data completes.

    Arrivals move time, as clock ticks do in a live fusion, even while no input arrives; recorded clock ticks
    are of another fusion and left out. Time begins with the first input. A silence of more than an hour is
    passed over except for its last windows.

    Args:
        messages: in order of arrival.
        config: any.
        counts: counters of messages refused or late, and windows passed over.
        on_clock: see `arrivals`.
    """
    presence = Presence()
    for window in _windows(messages, FusionCore(config, counts), on_clock=on_clock):
        yield Cut(presence.mark_held(window), 0, "", True)


def _windows(messages: Iterable[Message[Header]], core: FusionCore, *, on_clock: bool) -> Iterator[Window]:
    early, signals = Early(core, count_waits=False), ReceivedSignals()
    for now_ns, message in arrivals(messages, core.takes, core.max_leap_ns, on_clock=on_clock):
        if now_ns is None:
            yield from core.push(message) if lookup(message.topic).prefix in STREAM_KINDS else ()
            continue
        yield from _move(core, early, signals, now_ns)
        if lookup(message.topic).prefix in STREAM_KINDS:
            for part, arrived_ns in split_early(message, now_ns, core.max_leap_ns):
                early.put(part, arrived_ns)
            yield from _move(core, early, signals, now_ns)
    while (due_ns := early.next_ns) is not None:
        yield from _move(core, early, signals, due_ns)
    last_ns = (core.mark().newest_ns or 0) + core.lateness_ns
    while (deadline_ns := core.deadline_ns) is not None and deadline_ns <= last_ns:
        yield from core.push(_tick(deadline_ns))


def _move(core: FusionCore, early: Early, signals: ReceivedSignals, now_ns: int) -> Iterator[Window]:
    """Move time as the ticks of a live fusion do, and push early messages when they are due.

    Signals that carry no condition are judged as a live fusion does.
    """
    while (due_ns := early.next_ns) is not None and due_ns <= now_ns:
        yield from _tick_to(core, due_ns)
        for message in early.due(due_ns):
            judged = signals.judge(message) if core.takes(message.topic) else ""
            yield from core.push(with_condition(message, judged) if judged else message)
    yield from _tick_to(core, now_ns)


def _tick_to(core: FusionCore, now_ns: int) -> Iterator[Window]:
    if (deadline_ns := core.deadline_ns) is None or now_ns - deadline_ns > MAX_SILENCE_NS:
        yield from core.push(_tick(now_ns))
    while (deadline_ns := core.deadline_ns) is not None and deadline_ns < now_ns:
        yield from core.push(_tick(deadline_ns))


def _tick(stamp_ns: int) -> Message[ClockTick]:
    return Message(CLOCK_TOPIC, ClockTick(stamp_ns=stamp_ns))


def account(counts: Counts, *, unread: bool = False) -> list[str]:
    """Return lines about messages that did not enter the windows, or were corrected.

    Args:
        counts: of the core.
        unread: include topics that belong to no input of the fusion.
    """
    return [
        f"{topic}: {_TEXT_OF.get(reason) or f'refused: {reason}'} ({count} times)"
        for topic, reasons in sorted(counts.items())
        for reason, count in sorted(reasons.items())
        if unread or reason != "no such input"
    ]


class _Reach:
    """Which windows of a resumed core depend on nothing from before its mark."""

    def __init__(self, config: FusionConfig) -> None:
        self._config = config
        self._unknown: set[tuple[str, str, int]] = set()
        self._sound_ns: dict[str, int] = {}
        self._shed_known = True

    def limit(
        self, mark: CoreMark, held: Mapping[HeldInput, Message[Any]]
    ) -> Callable[[HeldInput], Message[Any]]:
        """Record that everything before `mark` is unknown except `held`.

        Return a function that finds what the mark names: the message, or a placeholder if it is unknown.
        """
        # some of the windows shed for the first state may have been due before the mark
        self._shed_known = False
        for name, item in mark.inputs.items():
            if item.samples is not None:
                length_ns = round(self._config.inputs[name].length_ms * 1e6) + CONTEXT_NS + RESYNC_NS
                samples = item.samples.stop - item.samples.start
                end_ns = item.samples.stamp_ns + samples * SECOND_NS // item.samples.rate_hz
                self._sound_ns[name] = end_ns + length_ns
        return lambda item: held.get(item) or self._unknown_input(item)

    def covers(self, window: Window) -> bool:
        """Return whether a window contains nothing unknown."""
        if not self._shed_known:
            self._shed_known = True
            return False
        for name, item in window.inputs.items():
            if window.end_ns < self._sound_ns.get(name, 0) and item.reason not in ("late", "dead"):
                return False
            used: tuple[Message[Any] | None, ...] = ()
            if isinstance(item.data, CameraSlice):
                used = (item.data.frame, item.data.previous)
            elif isinstance(item.data, TextSlice):
                used = (item.data.command,)
            if any(
                one is not None and (one.topic, one.header.source, one.header.seq) in self._unknown
                for one in used
            ):
                return False
        return True

    def _unknown_input(self, item: HeldInput) -> Message[Any]:
        """Return a placeholder for a frame or command that the mark names and that is not recorded."""
        self._unknown.add((item.topic, item.source, item.seq))
        fields: dict[str, Any] = {"seq": item.seq, "stamp_ns": item.stamp_ns, "source": item.source}
        if lookup(item.topic).message is TextCommand:
            return Message(item.topic, TextCommand(text="", **fields))
        frame = CameraFrame(width=1, height=1, encoding="jpeg", condition=item.condition, **fields)
        return Message(item.topic, frame)
