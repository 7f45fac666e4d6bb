"""A fusion process without process and socket: the real loop on given messages, and the recording of it."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import structs

from perception.fusion.build import build_engine
from perception.fusion.compute import Compute
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.graph.fusion_loop import FusionLoop, Outputs
from perception.messages import Header, HostTime, InputHealth, Message, SwapRequest
from perception.models.encoder import Encoding
from perception.profile import FusionConfig
from perception.units import Clock


class Slow:
    """An encoder that sleeps before each result."""

    def __init__(self, engine: Engine, name: str, seconds: float) -> None:
        self._inner = engine.encoders[name]
        self._seconds = seconds
        self.dim = self._inner.dim
        self.modality = self._inner.modality
        self.uses_previous = getattr(self._inner, "uses_previous", False)

    def __call__(self, data: object) -> Encoding:
        time.sleep(self._seconds)
        return self._inner(data)


class Wall:
    """A host clock that starts at a given time and runs `speed` times as fast as the wall's."""

    def __init__(self, started_ns: int, speed: float) -> None:
        self._started_ns = started_ns
        self._speed = speed
        self.start()

    def start(self) -> None:
        """Restart at the start time."""
        self._wall_ns = time.monotonic_ns()

    def now_ns(self) -> int:
        return self._started_ns + round((time.monotonic_ns() - self._wall_ns) * self._speed)

    def wait(self, until_ns: int) -> None:
        time.sleep(max(0, until_ns - self.now_ns()) / 1e9 / self._speed)


class Arrivals:
    """An inbox that delivers recorded messages at their arrival times, then sets `ended`."""

    def __init__(
        self, arrivals: Sequence[Message[Header]], requests: Mapping[int, SwapRequest], clock: Wall
    ) -> None:
        self.ended = threading.Event()
        self._messages = self._delivered(arrivals, requests)
        self._end_ns = arrivals[-1].received_ns + 500_000_000
        self._clock = clock
        self._next = next(self._messages, None)

    def _delivered(
        self, arrivals: Sequence[Message[Header]], requests: Mapping[int, SwapRequest]
    ) -> Iterator[Message[Header]]:
        for number, message in enumerate(arrivals):
            if number in requests:
                yield Message("control/fusion", requests[number], received_ns=message.received_ns)
                join_loader()
            if not message.topic.startswith("label/"):
                yield message

    def receive(self, timeout_s: float) -> Message[Header] | None:
        due_ns = self._end_ns if self._next is None else self._next.received_ns
        self._clock.wait(min(due_ns, self._clock.now_ns() + round(timeout_s * 1e9)))
        if self._clock.now_ns() < due_ns:
            return None
        message = self._next
        if message is None:
            self.ended.set()
        else:
            self._next = next(self._messages, None)
        return message

    def health(self) -> dict[str, InputHealth]:
        return {}

    def host_times(self) -> dict[str, HostTime]:
        return {}


def join_loader() -> None:
    """Wait until the requested head is loaded, without a time limit."""
    for thread in threading.enumerate():
        if thread.name == "head loader":
            thread.join()


class Recorded:
    """An output that numbers and stamps messages as a publisher does, and records them."""

    def __init__(self, topic: str, source: str, recording: list[Message[Header]], clock: Clock) -> None:
        self.topic = topic
        self.source = source
        self.published = 0
        self._recording = recording
        self._clock = clock

    def send(self, header: Header) -> Header:
        now_ns = self._clock()
        sent = structs.replace(header, seq=self.published, sent_ns=now_ns, source=self.source)
        self.published += 1
        self._recording.append(Message(self.topic, sent, received_ns=now_ns))
        return sent


class LiveRun:
    """One incarnation of a fusion process: its real loop, on a clock that runs `speed` times as fast."""

    def __init__(
        self, config: FusionConfig, incarnation: str, *, speed: float, slow: tuple[str, float] | None = None
    ) -> None:
        self.recorded: list[Message[Header]] = []
        self._config = config
        self._speed = speed
        self._slow = slow
        self._id = incarnation
        self.shed_share = 0.0

    def run(
        self, arrivals: Sequence[Message[Header]], requests: Mapping[int, SwapRequest] | None = None
    ) -> list[Message[Header]]:
        """Take messages at their arrival times; return the recording in order of arrival.

        `requests` for other heads come before the message of their number; a requested head is loaded before
        that message is received.
        """
        clock = Wall(arrivals[0].received_ns, self._speed)
        engine = build_engine(self._config, clock=clock.now_ns)
        if self._slow:
            engine.encoders[self._slow[0]] = Slow(engine, *self._slow)  # type: ignore[assignment]
        clock.start()
        outputs = self._outputs(clock.now_ns)
        compute = Compute(engine, outputs.state.send, clock.now_ns)
        compute.start()
        inbox = Arrivals(arrivals, requests or {}, clock)
        FusionLoop(FusionCore(self._config), compute, inbox, outputs, clock.now_ns).run(inbox.ended)
        self.shed_share = compute.shed_count / max(1, outputs.state.published + compute.shed_count)
        return sorted([*arrivals, *self.recorded], key=lambda message: message.received_ns)

    def _outputs(self, clock: Clock) -> Outputs:
        def output(kind: str) -> Recorded:
            name = self._config.name if kind == "state" else "fusion"
            return Recorded(f"{kind}/{name}", f"fusion#{kind}{self._id}", self.recorded, clock)

        kinds = ("state", "clock", "journal", "health", "head")
        return Outputs(*(output(kind) for kind in kinds))


def late(
    messages: Iterable[Message[Header]], topic: str, delay_ns: int, from_ns: int, to_ns: int
) -> list[Message[Header]]:
    """Delay the arrival of what a topic sent between two times."""
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
    """Leave out messages that `pick` selects, as a recorder that missed them."""
    return [message for message in messages if not pick(message)]
