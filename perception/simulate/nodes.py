"""The nodes of a simulated graph: the real fusion loop on virtual time, and recorders.

Rules. One thread. A fusion process runs inside `FusionProcess.run`; all other nodes act inside the events
that it waits for. `KilledError` from an event ends it as kill -9 does: nothing is published any more.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from perception.bus.mailbox import Mailbox
from perception.clock.remote import RemoteClock
from perception.fusion.core import FusionCore
from perception.fusion.early import Early
from perception.fusion.engine import Engine
from perception.fusion.inference import Due, Inference, Inferring
from perception.fusion.ledger import Backlog
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.graph.fusion_loop import FusionLoop, Outputs
from perception.messages import FusedState, Header, HostTime, InputHealth, Message
from perception.profile import FusionConfig
from perception.simulate.faults import Active, Fault
from perception.simulate.scenario import START_NS, Scenario
from perception.simulate.world import World
from perception.units import MILLISECOND_NS

COST_NS: Final = 30_000
"""CPU time of the receiving thread per message or wait."""
Publish = Callable[[Message[Header]], None]
Observe = Callable[[FusionCore, Message[Header], list[Window]], None]
"""Receives each message that was pushed into a core, and the windows that it completed."""


class ObservedCore(FusionCore):
    """The core, with a function that is called after each push."""

    def __init__(self, config: FusionConfig, observe: Observe) -> None:
        super().__init__(config)
        self._observe = observe

    def push(self, message: Message[Header]) -> list[Window]:
        """Add one message; return the windows it completes."""
        windows = super().push(message)
        self._observe(self, message, windows)
        return windows


class ObservedEarly(Early):
    """The early queue, counting what it refuses."""

    def __init__(self, core: FusionCore) -> None:
        super().__init__(core)
        self.refused = 0

    def put(self, message: Message[Header], now_ns: int) -> None:
        """Add a message, or refuse it."""
        before = len(self)
        super().put(message, now_ns)
        self.refused += before + 1 - len(self)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a fusion process is made of; tests pass broken ones."""

    engine: Callable[..., Engine]
    """As `perception.fusion.build.build_engine`."""
    core: Callable[[FusionConfig, Observe], ObservedCore] = ObservedCore
    early: Callable[[FusionCore], ObservedEarly] = ObservedEarly
    backlog: Callable[[], Backlog] = Backlog
    presence: Callable[[], Presence] = Presence
    mailbox: Callable[[], Mailbox] = Mailbox
    remote_clock: Callable[[], RemoteClock] = RemoteClock


def hung_until_ns(faults: Mapping[str, Fault]) -> int | None:
    """Return until when a process is stopped, None if it runs."""
    stops = [faults[kind].stop_ns for kind in ("hang", "suspend") if kind in faults]
    return START_NS + max(stops) if stops else None


class VirtualInbox:
    """What arrives at a fusion process: the real mailbox, and waiting as virtual time."""

    def __init__(self, world: World, faults: Active, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self._world = world
        self._faults = faults

    def receive(self, timeout_s: float) -> Message[Header] | None:
        """Return the next message, None after `timeout_s` seconds of virtual time."""
        world, mailbox = self._world, self.mailbox
        faults = self._faults.at(world.now_ns - START_NS)
        if (until_ns := hung_until_ns(faults)) is not None:
            world.advance(until_ns)
        if not mailbox:
            world.advance(world.now_ns + round(timeout_s * 1e9), mailbox)
        message = mailbox.take()
        busy = faults.get("busy") if message is not None else None
        world.spend(round(busy.amount * MILLISECOND_NS) if busy else COST_NS)
        return message

    def health(self) -> dict[str, InputHealth]:
        """Return the counts of received and dropped messages, by topic."""
        return self.mailbox.health(self._world.now_ns)

    def host_times(self) -> dict[str, HostTime]:
        """Return nothing: a simulated graph has one host."""
        return {}


class VirtualCompute(Inferring):
    """Computes one window after the other; each takes a share of virtual time."""

    failure: BaseException | None = None

    def __init__(
        self,
        world: World,
        inference: Inference,
        publish: Callable[[FusedState], object],
        scenario: Scenario,
        faults: Active,
    ) -> None:
        super().__init__(inference)
        self._world = world
        self._publish = publish
        self._hop_ns = scenario.fusion.hop_ms * MILLISECOND_NS
        self._usual = scenario.inference
        self._faults = faults
        self.at_work: list[int] = []
        """Tick of the window that is being computed."""
        self.dead = False
        """Whether the process was killed."""

    def offer(self, windows: Sequence[Window]) -> None:
        """Make the newest window due, shed the others."""
        if windows:
            self._inference.offer(windows)
            if not self.at_work:
                self._begin(self._inference.take())

    def stop(self) -> None:
        """Publish the state in work; shed the window still due."""
        due, world = self._inference, self._world
        while self.at_work:
            due.drop_due()
            world.advance(world.now_ns + MILLISECOND_NS)
        due.drop_due()

    def _begin(self, due: Due | None) -> None:
        if due is None:
            return
        self.at_work = [due.window.tick]
        state, now_ns = self._inference.infer(due), self._world.now_ns
        overload = self._faults.at(now_ns - START_NS).get("overload")
        took_ns = round(self._hop_ns * (overload.amount if overload else self._usual))
        self._world.plan(now_ns + took_ns, lambda: self._end(state))

    def _end(self, state: FusedState) -> None:
        if self.dead:
            return
        until_ns = hung_until_ns(self._faults.at(self._world.now_ns - START_NS))
        if until_ns is not None:
            self._world.plan(until_ns, lambda: self._end(state))
            return
        self.at_work = []
        self._publish(state)
        self._inference.published(state, 0)
        self._begin(self._inference.take())


class VirtualOutput:
    """A publisher: numbers and stamps messages."""

    def __init__(self, topic: str, source: str, publish: Publish, world: World) -> None:
        self.topic = topic
        self.source = source
        self.published = 0
        self._publish = publish
        self._world = world

    def send(self, header: Header) -> Header:
        """Number, stamp and publish a message; return its header as published."""
        now_ns = self._world.now_ns
        sent = structs.replace(header, seq=self.published, sent_ns=now_ns, source=self.source)
        self.published += 1
        self._publish(Message(self.topic, sent, b"", now_ns))
        return sent


class FusionProcess:
    """One incarnation of the fusion: the real loop with the parts given.

    Args:
        scenario: the graph.
        world: its time.
        parts: what the process is made of.
        incarnation: number of this process.
        publish: receives what it publishes.
        observe: receives what is pushed into its core.
    """

    def __init__(
        self,
        scenario: Scenario,
        world: World,
        parts: Parts,
        incarnation: int,
        publish: Publish,
        observe: Observe,
    ) -> None:
        config, faults = scenario.fusion, Active(scenario.faults_at("fusion"))
        self.stopped = threading.Event()
        self.core = parts.core(config, observe)
        self.early = parts.early(self.core)
        self.inbox = VirtualInbox(world, faults, parts.mailbox())
        backlog, presence = parts.backlog(), parts.presence()
        inference = Inference(parts.engine(config, clock=world.clock), world.clock, backlog, presence)

        def output(kind: str) -> VirtualOutput:
            topic = f"{kind}/{config.name if kind == 'state' else 'fusion'}"
            return VirtualOutput(topic, f"fusion#{kind[0]}{incarnation:07x}", publish, world)

        kinds = ("state", "clock", "journal", "health", "head")
        outputs = Outputs(*(output(kind) for kind in kinds))
        self.compute = VirtualCompute(world, inference, outputs.state.send, scenario, faults)
        self.loop = FusionLoop(self.core, self.compute, self.inbox, outputs, world.clock, early=self.early)
        self.holds = self.core, self.early, self.inbox.mailbox, backlog, presence, inference.shed
        """What must stay bounded."""

    def run(self) -> None:
        """Run until stopped; KilledError if it is killed."""
        try:
            self.loop.run(self.stopped)
        finally:
            self.compute.dead = True
