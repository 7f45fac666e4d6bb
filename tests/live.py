"""A fusion that runs live on given messages, as its node does, and the recording of it. Nothing is faked."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import structs

from perception.fusion.build import build_engine
from perception.fusion.compute import Compute
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.ledger import Ledger
from perception.messages import ClockTick, FusedState, Header, Health, Message, SwapRequest
from perception.models.encoder import Encoding
from perception.profile import FusionConfig

JOURNAL_NS = 250_000_000


class Slow:
    """An encoder that takes its time."""

    def __init__(self, engine: Engine, name: str, seconds: float) -> None:
        self._inner = engine.encoders[name]
        self._seconds = seconds
        self.dim = self._inner.dim
        self.modality = self._inner.modality
        self.uses_previous = getattr(self._inner, "uses_previous", False)

    def __call__(self, data: object) -> Encoding:
        time.sleep(self._seconds)
        return self._inner(data)


class LiveRun:
    """One incarnation of a fusion process, on a clock that runs `speed` times as fast as the wall's."""

    def __init__(
        self, config: FusionConfig, incarnation: str, *, speed: float, slow: tuple[str, float] | None = None
    ) -> None:
        self.recorded: list[Message[Header]] = []
        self._config = config
        self._speed = speed
        self._engine = build_engine(config, clock=self._now_ns)
        if slow:
            self._engine.encoders[slow[0]] = Slow(self._engine, *slow)  # type: ignore[assignment]
        self._core = FusionCore(config)
        self._compute = Compute(self._engine, self._publish_state, self._now_ns)
        self._id = incarnation
        self._sent = {"state": 0, "clock": 0, "journal": 0}
        self._ledger = Ledger(
            self._core,
            state_topic=f"state/{config.name}",
            state_source=f"fusion#state{incarnation}",
            head=self._compute.swap.in_force.use(),
        )
        self.shed_share = 0.0

    def run(
        self, arrivals: Sequence[Message[Header]], asks: Mapping[int, SwapRequest] | None = None
    ) -> list[Message[Header]]:
        """Take messages at their arrival times; return the recording in order of arrival.

        `asks` are requests for other heads, by the number of the message before which they come; a head that
        is asked for is loaded before that message is taken, however long it takes.
        """
        self._origin = arrivals[0].received_ns, time.monotonic_ns()
        self._compute.start()
        self._tick()
        journal_ns = self._now_ns()
        for number, message in enumerate(arrivals):
            self._wait(message.received_ns)
            if asks and number in asks:
                self._ask(asks[number])
            if not message.topic.startswith("label/"):
                self._take(message)
            if self._now_ns() >= journal_ns:
                journal_ns = self._now_ns() + JOURNAL_NS
                self._publish_journal()
        self._wait(arrivals[-1].received_ns + 500_000_000)
        self._compute.stop()
        self._publish_journal()
        self._send("health", Health(stamp_ns=self._now_ns(), node="fusion", device=self._engine.facts()))
        assert self._compute.failure is None
        concluded = self._sent["state"]
        self.shed_share = self._compute.shed_count / max(1, concluded + self._compute.shed_count)
        return sorted([*arrivals, *self.recorded], key=lambda message: message.received_ns)

    def _ask(self, request: SwapRequest) -> None:
        self._compute.swap.ask(request)
        for thread in threading.enumerate():
            if thread.name == "head loader":
                thread.join()

    def _wait(self, until_ns: int) -> None:
        while (now_ns := self._now_ns()) < until_ns:
            deadline_ns = self._core.deadline_ns or until_ns
            if now_ns >= deadline_ns:
                self._tick()
            else:
                time.sleep((min(until_ns, deadline_ns) - now_ns) / 1e9 / self._speed)

    def _now_ns(self) -> int:
        started_ns, wall_ns = self._origin
        return started_ns + round((time.monotonic_ns() - wall_ns) * self._speed)

    def _take(self, message: Message[Header]) -> None:
        self._compute.offer(self._ledger.push(message))

    def _tick(self) -> None:
        tick = self._send("clock", ClockTick(stamp_ns=self._now_ns()))
        self._take(tick)

    def _publish_state(self, state: FusedState) -> None:
        self._send("state", state)

    def _publish_journal(self) -> None:
        shed = self._compute.shed
        self._ledger.shed([shed.popleft() for _ in range(len(shed))])
        uses = self._compute.swap.uses
        self._ledger.switched([uses.popleft() for _ in range(len(uses))])
        if (journal := self._ledger.journal(self._now_ns())) is not None:
            self._send("journal", journal)

    def _send(self, kind: str, header: Header) -> Message[Header]:
        """Number and stamp a message as a publisher does, and record it."""
        seq = self._sent.get(kind, 0)
        self._sent[kind] = seq + 1
        now_ns = self._now_ns()
        name = self._config.name if kind == "state" else "fusion"
        fields = {"seq": seq, "sent_ns": now_ns, "source": f"fusion#{kind}{self._id}"}
        message = Message(f"{kind}/{name}", structs.replace(header, **fields), received_ns=now_ns)
        self.recorded.append(message)
        return message


def late(
    messages: Iterable[Message[Header]], topic: str, delay_ns: int, from_ns: int, to_ns: int
) -> list[Message[Header]]:
    """Let what a topic sends between two times arrive later than it did."""
    moved = [
        structs.replace(one, received_ns=one.received_ns + delay_ns)
        if one.topic == topic and from_ns <= one.received_ns < to_ns
        else one
        for one in messages
    ]
    return sorted(moved, key=lambda one: one.received_ns)


def restarted(
    messages: Iterable[Message[Header]], topic: str, dies_ns: int, returns_ns: int
) -> list[Message[Header]]:
    """Kill a publisher and start it again: a new source that counts from zero."""
    result: list[Message[Header]] = []
    seq = 0
    for message in messages:
        if message.topic == topic and message.received_ns >= dies_ns:
            if message.received_ns < returns_ns:
                continue
            header = structs.replace(message.header, source="again#1", seq=seq)
            message, seq = structs.replace(message, header=header), seq + 1
        result.append(message)
    return result


Pick = Callable[[Message[Header]], bool]


def without(messages: Iterable[Message[Header]], pick: Pick) -> list[Message[Header]]:
    """Leave out what a recorder might have missed."""
    return [message for message in messages if not pick(message)]
