"""The fusion process: receives without ever waiting for compute, publishes one state per tick."""

import gc
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import structs

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.errors import ProfileError
from perception.fusion.core import FusionCore
from perception.fusion.ledger import Ledger
from perception.messages import ClockTick, Header, Health, Message, SwapRequest
from perception.profile import Profile

from .node import main

if TYPE_CHECKING:
    from perception.fusion.compute import Compute

_LOG: Final = logging.getLogger(__name__)
HEALTH_PERIOD_NS: Final = 1_000_000_000
JOURNAL_PERIOD_NS: Final = 250_000_000
JOURNAL_ENTRIES: Final = 512
IDLE_S: Final = 0.1
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Everything a fusion process publishes."""

    state: Publisher
    clock: Publisher
    journal: Publisher
    health: Publisher
    head: Publisher

    def published(self) -> dict[str, int]:
        """Return the number of messages sent, by topic."""
        outputs = (self.state, self.clock, self.journal, self.health, self.head)
        return {out.topic: out.published for out in outputs}


class FusionNode:
    """Wires bus, core and compute; one visible loop."""

    def __init__(self, core: FusionCore, compute: "Compute", inbox: Subscriber, outputs: Outputs) -> None:
        self._core = core
        self._compute = compute
        self._inbox = inbox
        self._out = outputs
        self._ledger = Ledger(
            core,
            state_topic=outputs.state.topic,
            state_source=outputs.state.source,
            head=compute.swap.in_force.use(),
        )

    def run(self, stopped: threading.Event, clock: Callable[[], int]) -> None:
        """Receive, cut and hand over until stopped; raise what stopped the models."""
        self._tick(clock())
        next_health_ns = next_journal_ns = clock()
        while not stopped.is_set() and self._compute.failure is None:
            deadline_ns = self._core.deadline_ns or clock()
            message = self._inbox.receive(min(IDLE_S, max(0.0, (deadline_ns - clock()) / 1e9)))
            if message is not None and isinstance(message.header, SwapRequest):
                self._compute.swap.ask(message.header)
            elif message is not None:
                self._take(message)
            # what has already arrived goes first, unless it keeps coming for a whole hop
            if clock() >= deadline_ns + (0 if message is None else self._core.hop_ns):
                self._tick(clock())
            now_ns = clock()
            self._publish_heads(now_ns)
            if now_ns >= next_journal_ns or len(self._ledger.entries) >= JOURNAL_ENTRIES:
                next_journal_ns = now_ns + JOURNAL_PERIOD_NS
                self._publish_journal(now_ns)
            if now_ns >= next_health_ns:
                next_health_ns = now_ns + HEALTH_PERIOD_NS
                self._publish_health(now_ns)
        self._compute.stop()
        self._publish_heads(clock())
        self._publish_journal(clock())
        self._publish_health(clock())
        if self._compute.failure is not None:
            raise self._compute.failure

    def _take(self, message: Message[Header]) -> None:
        windows = self._ledger.push(message)
        if self._core.expects(message):
            self._compute.engine.expect(message)
        self._compute.offer(windows)

    def _tick(self, now_ns: int) -> None:
        """Move time by an input of our own, published so that a recording has it too."""
        tick = self._out.clock.send(ClockTick(stamp_ns=now_ns))
        self._take(Message(self._out.clock.topic, tick))

    def _publish_heads(self, now_ns: int) -> None:
        for status in _drained(self._compute.swap.told):
            self._out.head.send(structs.replace(status, stamp_ns=now_ns))

    def _publish_journal(self, now_ns: int) -> None:
        self._ledger.shed(_drained(self._compute.shed))
        self._ledger.switched(_drained(self._compute.swap.uses))
        if (journal := self._ledger.journal(now_ns)) is not None:
            self._out.journal.send(journal)

    def _publish_health(self, now_ns: int) -> None:
        counts = {
            f"{topic} {reason}": count
            for topic, reasons in self._core.counts.items()
            for reason, count in reasons.items()
        }
        counts |= self._compute.engine.counts
        self._out.health.send(
            Health(
                stamp_ns=now_ns,
                node=self._out.health.topic.partition("/")[2],
                inputs=self._inbox.health(),
                outputs=self._out.published(),
                counts=counts | {"windows shed": self._compute.shed_count},
                device=self._compute.engine.facts(),
            )
        )


def _drained(queue: deque[ItemT]) -> list[ItemT]:
    """Take what another thread has put there so far."""
    return [queue.popleft() for _ in range(len(queue))]


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Build and warm the models up, then fuse until stopped."""
    config = profile.fusion
    if config is None:
        raise ProfileError("the profile has no [fusion] table")
    runtime, clock = Runtime(profile.domain), HostClock().now_ns
    core = FusionCore(config)
    topics = [item.topic for item in config.inputs.values()]

    def publisher(topic: str, endpoint: str | None = None) -> Publisher:
        return Publisher(
            topic,
            source=name,
            runtime=runtime,
            clock=clock,
            endpoint=endpoint,
            insecure=profile.insecure,
            keys=profile.keys,
        )

    with (
        publisher(f"state/{config.name}", config.endpoint) as state,
        publisher(f"clock/{name}") as ticks,
        publisher(f"journal/{name}") as journal,
        publisher(f"health/{name}") as health,
        publisher(f"head/{name}") as head,
    ):
        # torch takes seconds to import, while a recorder finds the outputs: before the first message
        from perception.fusion.build import build_engine, use_threads
        from perception.fusion.compute import Compute

        use_threads(config.threads)
        engine = build_engine(config, clock=clock)
        engine.warm_up()
        gc.freeze()  # models stay for good: a full collection would look through them for a tenth of a second
        _LOG.info("ready on %s: %s", engine.device, ", ".join(engine.encoders))
        with Subscriber(
            *topics,
            f"control/{name}",
            runtime=runtime,
            clock=clock,
            connect=profile.connect,
            insecure=profile.insecure,
            keys=profile.keys,
        ) as inbox:
            compute = Compute(engine, state.send, clock)
            compute.start()
            FusionNode(core, compute, inbox, Outputs(state, ticks, journal, health, head)).run(stopped, clock)


if __name__ == "__main__":
    main("fusion", run, named=False)
