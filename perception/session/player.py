"""Publish a session as if live: at its own pace or another, in a loop, paused and stepped by keys."""

import logging
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from msgspec import structs

from perception.bus import domains
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.errors import SessionError
from perception.messages import AudioBlock, Header, Health, Label, Message, reached_ns
from perception.profile import ReplayConfig
from perception.session.file.reader import Session, matches
from perception.session.keyboard import Keyboard, NoKeyboard
from perception.session.pace import AHEAD_NS, Due, Lap, SampleCounter, schedule
from perception.session.readers import Readers
from perception.topics import name_of
from perception.units import SECOND_NS

RAW_TOPICS: Final[tuple[str, ...]] = ReplayConfig.model_fields["topics"].default
"""What no fusion makes itself, and so cannot clash with one that listens."""
NODE: Final = "replayer"
_LOG: Final = logging.getLogger(__name__)
SETTLE_S: Final = 0.3
"""Subscribers find new topics within 0.1 s, and connect."""
_LOOK_S: Final = 0.1
_AHEAD: Final = 256
HeaderT = TypeVar("HeaderT", bound=Header)
Awaited = Callable[[Mapping[str, Publisher]], str]
"""Says who of the readers of these publishers, by topic, is not there yet; empty if all are."""


@dataclass(frozen=True, slots=True)
class Playback:
    """What to play, and how."""

    rate: float | None = 1.0
    """Times real time; None is as fast as it goes: stamps then keep the recording's distances, and whoever is
    slower loses what the policies say."""
    loop: bool = False
    keep_stamps: bool = False
    """Else they come from the pace, pauses and laps included: the first message happens now."""
    start_s: float = 0.0
    """Seconds into the session."""
    end_s: float | None = None
    topics: tuple[str, ...] = RAW_TOPICS


def moved(header: HeaderT, by_ns: int) -> HeaderT:
    """Return the header of a message that happens so much later."""
    update = {"stamp_ns": header.stamp_ns + by_ns}
    if isinstance(header, Label):
        update |= {"start_ns": header.start_ns + by_ns, "end_ns": header.end_ns + by_ns}
    return structs.replace(header, **update)


class Player:
    """Publishes a session.

    Args:
        session: what to play.
        playback: how.
        publisher: opens the publisher of a topic.
        clock: host time in ns.
        stopped: ends the play between two messages.
        keys: pauses and steps.
        awaited: says which readers are not there yet; the play begins once it says none.
        say: called with a line that says whom it waits for.

    Raises:
        SessionError: kept stamps and a loop do not go together.
    """

    def __init__(
        self,
        session: Session,
        playback: Playback,
        publisher: Callable[[str], Publisher],
        *,
        clock: Callable[[], int],
        stopped: threading.Event,
        keys: Keyboard | None = None,
        awaited: Awaited = lambda publishers: "",
        say: Callable[[str], object] = _LOG.info,
    ) -> None:
        if playback.loop and playback.keep_stamps:
            raise SessionError("stamps that are kept would run backwards in a loop; leave one of the two out")
        self.published: Counter[str] = Counter()
        self.late_ms = 0.0
        """By how much the latest message was late."""
        self._session = session
        self._playback = playback
        self._open = publisher
        self._clock = clock
        self._stopped = stopped
        self._keys = keys or NoKeyboard()
        self._awaited = awaited
        self._say = say
        self._paused = False
        self._origin_ns = 0
        """Host time at which the play time is 0; pauses and laps move it."""
        self._reached: dict[str, tuple[int, int]] = {}
        """By topic: up to when it was published, and the origin then."""
        self._counters: defaultdict[str, SampleCounter] = defaultdict(SampleCounter)
        self._health: Publisher | None = None
        self._reported_ns = 0

    def topics(self) -> Sequence[str]:
        """Return the topics to be published; SessionError if the session has none of those wanted."""
        held = self._session.counts
        wanted = [name for name in held if matches(name, self._playback.topics)]
        if not wanted:
            raise SessionError(
                f"{self._session.path}: no such topics; it holds {', '.join(held) or 'nothing'}"
            )
        return wanted

    def run(self) -> None:
        """Publish until the end, or until stopped.

        Raises:
            SessionError: nothing was recorded in the time that is to be played.
        """
        with ExitStack() as stack:
            publishers = {name: stack.enter_context(self._open(name)) for name in self.topics()}
            self._health = stack.enter_context(self._open(f"health/{NODE}"))
            self._keys.wait(SETTLE_S)
            self._gather(publishers)
            self._origin_ns = self._clock()
            while self._play(publishers) and self._playback.loop:
                pass
            self._report("at the end")
        if not self.published and not self._stopped.is_set():
            raise SessionError(f"{self._session.path}: holds nothing in the time that is to be played")

    def _gather(self, publishers: Mapping[str, Publisher]) -> None:
        """Wait for the readers."""
        said = ""
        while (awaited := self._awaited(publishers)) and not self._stopped.is_set():
            if awaited != said:
                self._say(f"waits for {awaited}")
                said = awaited
            if self._clock() - self._reported_ns >= SECOND_NS:
                self._report(f"waits for {awaited}")
            if self._keys.wait(_LOOK_S) == "quit":
                self._stopped.set()
        if said and not self._stopped.is_set():
            self._say("its readers are there, the play begins")

    def _play(self, publishers: Mapping[str, Publisher]) -> bool:
        """Publish the session once; return whether it came to its end."""
        lap = Lap()
        with _ahead(self._messages()) as messages:
            for due in self._scheduled(messages):
                if not self._wait(due.due_ns):
                    return False
                self._publish(publishers[due.message.topic], due.message)
                lap.add(due.message.topic, due.message.header)
                if self._clock() - self._reported_ns >= SECOND_NS:
                    self._report("")
        # a player that cannot keep up begins the next lap now, rather than further and further behind
        self._origin_ns = max(self._origin_ns + lap.length_ns, self._clock() - AHEAD_NS)
        return bool(self.published) and not self._stopped.is_set()

    def _scheduled(self, messages: Iterator[Message[Header]]) -> Iterator[Due]:
        rate, zero = self._playback.rate or 1.0, self._session.zero
        return schedule(messages, rate, zero.log_ns - zero.stamp_ns, keep=self._playback.keep_stamps)

    def _publish(self, publisher: Publisher, message: Message[Header]) -> None:
        header, topic = message.header, message.topic
        if not self._playback.keep_stamps:
            self._hold_back(topic, header)
            header = moved(header, self._origin_ns)
            if isinstance(header, AudioBlock):
                header = self._counters[topic].counted(header, self._origin_ns)
            self._reached[topic] = reached_ns(header), self._origin_ns
        publisher.send(header, message.payload)
        self.published[topic] += 1

    def _hold_back(self, topic: str, header: Header) -> None:
        """See that a topic's stamps rise over pauses and steps, however fast these come."""
        before_ns, origin_ns = self._reached.get(topic, (0, self._origin_ns))
        if origin_ns != self._origin_ns:
            next_ns = before_ns + (not isinstance(header, AudioBlock))
            self._origin_ns += max(next_ns - header.stamp_ns - self._origin_ns, 0)

    def _wait(self, due_ns: int) -> bool:
        """Wait until a message is due, or stepped to; return whether to go on."""
        hurry = self._playback.rate is None
        while not self._stopped.is_set():
            left_ns = 0 if hurry else self._origin_ns + due_ns - self._clock()
            if not self._paused and left_ns <= 0:
                self.late_ms = -left_ns / 1e6
                return True
            begun_ns = self._clock()
            key = self._keys.wait(0.1 if self._paused else min(left_ns / 1e9, 0.1))
            if self._paused:
                self._origin_ns += self._clock() - begun_ns
            if key == "quit":
                self._stopped.set()
            elif key == "pause":
                self._paused = not self._paused
            elif key == "step" and self._paused:
                self._origin_ns = self._clock() - due_ns
                return True
        return False

    def _report(self, reason: str) -> None:
        assert self._health is not None
        self._reported_ns = self._clock()
        outputs = dict(self.published)
        facts: dict[str, str | float] = {"source": str(self._session.path), "late_ms": self.late_ms}
        report = Health(stamp_ns=self._reported_ns, node=NODE, reason=reason, outputs=outputs, device=facts)
        self._health.send(report)

    def _messages(self) -> Iterator[Message[Header]]:
        start_ns = self._session.at_ns(self._playback.start_s or None)
        return self._session.messages(
            self._playback.topics, start_ns, self._session.at_ns(self._playback.end_s)
        )


def play(
    file: Path | str,
    playback: Playback,
    *,
    domain: str | None = None,
    keys: Keyboard | None = None,
    stopped: threading.Event | None = None,
    nodes: Mapping[str, Sequence[str]] | None = None,
    wait: int | None = None,
    say: Callable[[str], object] = _LOG.info,
) -> Counter[str]:
    """Publish a session file on this host once its readers are there; return how many messages of each topic.

    Args:
        file: the session.
        playback: what of it, and how.
        domain: graph to join; without it $PERCEPTION_DOMAIN, else the only one that is up, else `default`.
        keys: pauses and steps.
        stopped: ends it.
        nodes: readers to wait for, by name, with the patterns of what each reads. None: any reader, and every
            fusion that is alive.
        wait: how many readers to wait for instead; 0 begins at once.
        say: called with a line that says whom it waits for.

    Raises:
        SessionError: the file cannot be read, or holds no such topics.
        BusError: a topic is published by somebody else.
        PerceptionError: no domain is named, and several graphs are up.
    """
    runtime, clock = domains.find(domain) or Runtime(), HostClock().now_ns

    def publisher(topic: str) -> Publisher:
        return Publisher(topic, source=NODE, runtime=runtime, clock=clock)

    if wait == 0 or (wait is None and nodes == {}):
        say("begins at once, whoever reads it")
    with Session(file) as session, Subscriber("health/*", runtime=runtime, clock=clock) as health:
        readers = _readers(health, runtime, nodes, wait)
        player = Player(
            session,
            playback,
            publisher,
            clock=clock,
            stopped=stopped or threading.Event(),
            keys=keys,
            awaited=readers.awaited,
            say=say,
        )
        player.run()
        return player.published


def _readers(
    health: Subscriber, runtime: Runtime, nodes: Mapping[str, Sequence[str]] | None, wait: int | None
) -> Readers:
    """Return the readers to wait for; arguments as of `play`."""

    def fusions() -> list[str]:
        return [name_of(topic) for topic in runtime.topics() if topic.startswith("journal/")]

    if wait is not None:
        return Readers(health, at_least=wait)
    if nodes is not None:
        return Readers(health, nodes=nodes)
    return Readers(health, alive=fusions, at_least=1)


@contextmanager
def _ahead(messages: Iterator[Message[Header]]) -> Iterator[Iterator[Message[Header]]]:
    """Read ahead in a thread: unpacking a chunk takes longer than the time between two messages."""
    waiting: queue.Queue[Message[Header] | BaseException | None] = queue.Queue(_AHEAD)
    done = threading.Event()

    def put(item: Message[Header] | BaseException | None) -> None:
        while not done.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def read() -> None:
        try:
            for message in messages:
                put(message)
                if done.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    def take() -> Iterator[Message[Header]]:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=read, name="read ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        done.set()
        thread.join()
