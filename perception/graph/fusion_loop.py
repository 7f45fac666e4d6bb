"""The loop of a fusion process: receives messages without waiting for the models, cuts one window per tick.

Threads: the main thread calls every method and owns core, intake and ledger. The compute thread runs the
models and publishes the states. They share `perception.fusion.compute.Compute` only: the loop offers windows
and empties its queues of shed ticks, head statuses and head changes. The judging thread belongs to
`perception.graph.judging.Judging`.

Order: every message passes through the ledger, which pushes it to the core and records it. Time advances only
by messages and clock ticks, which are published, so a recording contains every input. At the end the compute
thread is stopped first; then the last statuses, the last journal and the last health are published.
"""

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from msgspec import structs

from perception.errors import PerceptionError
from perception.fusion.core import FusionCore
from perception.fusion.early import Early
from perception.fusion.ledger import Ledger
from perception.fusion.window import Window
from perception.graph.fusion_health import Figures, FusionJudge
from perception.graph.intake import Inbox, Intake
from perception.graph.judging import Judging
from perception.graph.liveness import Standing
from perception.messages import (
    PROCESS,
    ClockTick,
    FusedState,
    Header,
    Health,
    HostTime,
    Message,
    with_condition,
)
from perception.topics import name_of
from perception.units import SECOND_NS, Clock

if TYPE_CHECKING:
    from perception.fusion.engine import Engine
    from perception.fusion.swap import HeadSwap

HEALTH_PERIOD_NS: Final = SECOND_NS
JOURNAL_PERIOD_NS: Final = SECOND_NS // 4
HANG_NS: Final = 10 * SECOND_NS
"""A fusion without a state for this time ends with an error, so that it is started again."""
SILENT_CLOCK_MS: Final = 10_000.0
"""A clock that has not answered for this long drifts by at most some microseconds a second."""
ItemT = TypeVar("ItemT")


class Output(Protocol):
    """Publisher of one topic: `perception.bus.publisher.Publisher`."""

    @property
    def topic(self) -> str:
        """The topic of every message."""

    @property
    def source(self) -> str:
        """Publisher id."""

    @property
    def published(self) -> int:
        """Number of messages sent so far."""

    def send(self, header: Header) -> Header:
        """Number, stamp and publish a message; return its header as published."""


class Computing(Protocol):
    """Computes and publishes the states: `perception.fusion.compute.Compute`."""

    @property
    def engine(self) -> "Engine":
        """Runs the models."""

    @property
    def swap(self) -> "HeadSwap":
        """The heads."""

    @property
    def shed(self) -> deque[int]:
        """Ticks shed and not yet journaled."""

    @property
    def shed_count(self) -> int:
        """Number of windows shed so far."""

    @property
    def failure(self) -> BaseException | None:
        """Why computing ended, None while it runs."""

    def offer(self, windows: Sequence[Window]) -> None:
        """Make the newest window due, shed the others; never waits for the models."""

    def stop(self) -> None:
        """Publish the state in work and end; shed the window still due."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The publishers of a fusion process."""

    state: Output
    clock: Output
    journal: Output
    health: Output
    head: Output

    def published(self) -> dict[str, int]:
        """Return the number of messages sent, by topic."""
        outputs = (self.state, self.clock, self.journal, self.health, self.head)
        return {out.topic: out.published for out in outputs}


class FusionLoop:
    """Connects inbox, core, compute thread and outputs in one loop.

    Args:
        core: cuts the windows; from here on only this loop calls it.
        compute: runs the models; already started.
        inbox: messages of the core's inputs, and requests for other heads; or the intake of a standby.
        outputs: the publishers; the compute thread publishes the states.
        clock: host time in ns.
        judging: judges the streams whose publishers do not.
        early: queue in front of the core.
    """

    def __init__(
        self,
        core: FusionCore,
        compute: Computing,
        inbox: Inbox | Intake,
        outputs: Outputs,
        clock: Clock,
        judging: Judging | None = None,
        early: Early | None = None,
    ) -> None:
        self._core = core
        self._signals = judging or Judging()
        self._compute = compute
        self._intake = inbox if isinstance(inbox, Intake) else Intake(core, inbox, clock, early)
        self._out = outputs
        self._clock = clock
        self._ledger = Ledger(
            core,
            state_topic=outputs.state.topic,
            state_source=outputs.state.source,
            head=compute.swap.active.use(),
        )
        self._judge = FusionJudge(compute.engine.config, clock())
        self._judged: FusedState | None = None
        """The newest state that the judge has got."""
        self._standing = Standing("ok")

    def run(self, stopped: threading.Event) -> None:
        """Receive messages, cut windows and pass them to the models until stopped.

        Raises the error that ended the compute thread; PerceptionError if the models hang.
        """
        self._tick(self._clock())
        next_health_ns = next_journal_ns = self._clock()
        while not stopped.is_set() and self._compute.failure is None:
            self._step()
            now_ns = self._clock()
            self._publish_heads(now_ns)
            if now_ns >= next_journal_ns or self._ledger.full:
                next_journal_ns = now_ns + JOURNAL_PERIOD_NS
                self._publish_journal(now_ns)
                changed = self._judge_now(now_ns)
                next_health_ns = now_ns if changed else next_health_ns
            if now_ns >= next_health_ns:
                next_health_ns = now_ns + HEALTH_PERIOD_NS
                self._publish_health(now_ns)
        self._signals.close()
        self._compute.stop()
        now_ns = self._clock()
        self._publish_heads(now_ns)
        self._publish_journal(now_ns, last=True)
        self._publish_health(now_ns)
        if self._compute.failure is not None:
            raise self._compute.failure

    def _step(self) -> None:
        """Push the received message and early ones that are due, or a clock tick if a window is due."""
        self._intake.step(self._take, self._tick, self._compute.swap.request)
        if (state := self._compute.engine.newest) is not None and state is not self._judged:
            self._judged = state
            self._judge.add(state)

    def _take(self, message: Message[Header]) -> None:
        if judged := self._signals.judge(message):
            message = with_condition(message, judged)
        windows = self._ledger.push(message, judged)
        if self._core.expects(message):
            self._compute.engine.expect(message)
        self._compute.offer(windows)

    def _tick(self, now_ns: int) -> None:
        """Push a clock tick, which is also published so that a recording contains it."""
        tick = self._out.clock.send(ClockTick(stamp_ns=now_ns))
        self._take(Message(self._out.clock.topic, tick))

    def _publish_heads(self, now_ns: int) -> None:
        for status in _drained(self._compute.swap.statuses):
            self._out.head.send(structs.replace(status, stamp_ns=now_ns))

    def _publish_journal(self, now_ns: int, *, last: bool = False) -> None:
        self._ledger.shed(_drained(self._compute.shed))
        self._ledger.switched(_drained(self._compute.swap.uses))
        if (journal := self._ledger.journal(now_ns, last=last)) is not None:
            self._out.journal.send(journal)

    def _judge_now(self, now_ns: int) -> bool:
        """Judge the health of this fusion; return whether its status changed."""
        before = self._standing.status
        shed, published = self._compute.shed_count, self._out.state.published
        counts = {topic: dict(reasons) for topic, reasons in self._core.counts.items()}
        newest_ns = dict(self._core.newest_of_topic)
        self._standing = self._judge.judge(Figures(now_ns, counts, newest_ns, shed, published))
        if self._judge.stateless_ns(now_ns) > max(HANG_NS, 10 * self._core.hop_ns):
            raise PerceptionError(f"the models hang: {self._standing.reason}")
        return self._standing.status != before

    def _publish_health(self, now_ns: int) -> None:
        counts = {
            f"{topic} {reason}": count
            for topic, reasons in self._core.counts.items()
            for reason, count in reasons.items()
        }
        counts |= self._compute.engine.counts
        if self._signals.skipped:
            counts["signals not judged"] = self._signals.skipped
        hosts = self._intake.host_times()
        standing = with_clocks(self._standing, hosts)
        self._out.health.send(
            Health(
                stamp_ns=now_ns,
                node=name_of(self._out.health.topic),
                status=standing.status,
                reason=standing.reason,
                hosts=hosts,
                inputs=self._intake.health(),
                outputs=self._out.published(),
                counts=counts | {"windows shed": self._compute.shed_count},
                device={PROCESS: os.getpid()} | self._compute.engine.facts(),
            )
        )


def with_clocks(standing: Standing, hosts: Mapping[str, HostTime]) -> Standing:
    """Return how a fusion stands that reads these hosts: at best degraded while it is unsure of a clock."""
    if not (clocks := unsure(hosts)):
        return standing
    status = "degraded" if standing.status == "ok" else standing.status
    return Standing(status, "; ".join(filter(None, (clocks, standing.reason))))


def unsure(hosts: Mapping[str, HostTime]) -> str:
    """Return which clocks of other hosts are not known, or no longer followed; empty if all are known."""
    unknown = [name for name, known in hosts.items() if known.offset_ms is None]
    silent = [name for name, known in hosts.items() if known.age_ms > SILENT_CLOCK_MS]
    parts = (
        f"{', '.join(unknown)}: not read before its clock is known" if unknown else "",
        f"{', '.join(silent)}: its clock no longer answers" if silent else "",
    )
    return "; ".join(filter(None, parts))


def _drained(queue: deque[ItemT]) -> list[ItemT]:
    """Remove and return what another thread has appended so far."""
    return [queue.popleft() for _ in range(len(queue))]
