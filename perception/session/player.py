"""Publish a session as if live: at its own rate or another, in a loop, paused and stepped by keys.

Rules. `Player.run` is called once, from one thread, which publishes and reads the keys. The thread `read
ahead` alone reads the session file meanwhile and hands messages over in a bounded queue; it ends with its
lap. The event `stopped` may be set from any thread; it takes effect between two messages. A message is sent
when the host clock reaches `_origin_ns` + its due time; pauses, steps and laps move `_origin_ns`, so that
stamps of a topic always rise. Publishing begins after `awaited` has reported that no reader is missing. What
a reader drops is counted by that reader.
"""

import logging
import os
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from perception.bus import domains
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.errors import SessionError
from perception.messages import PROCESS, AudioBlock, Header, Health, Message, moved, reached_ns
from perception.profile import ReplayConfig
from perception.session.file.reader import Session, matches
from perception.session.keyboard import Keyboard, NoKeyboard
from perception.session.pace import AHEAD_NS, Due, Lap, SampleCounter, schedule
from perception.session.readers import Readers
from perception.topics import kind_of, name_of
from perception.units import SECOND_NS

RAW_TOPICS: Final[tuple[str, ...]] = ReplayConfig.model_fields["topics"].default
"""Topics that no fusion publishes, so that a replay does not conflict with a running fusion."""
NODE: Final = "replayer"
_LOG: Final = logging.getLogger(__name__)
SETTLE_S: Final = 0.3
"""Subscribers find and connect to new topics within 0.1 s."""
_LOOK_S: Final = 0.1
_AHEAD: Final = 256
Awaited = Callable[[Mapping[str, Publisher]], str]
"""Returns in words which readers of these publishers, by topic, are missing; empty if none are."""


@dataclass(frozen=True, slots=True)
class Playback:
    """What to play, and how."""

    rate: float | None = 1.0
    """Times real time. None: as fast as possible; stamps then keep the intervals of the recording, and slow
    readers drop messages by the policy of the topic."""
    loop: bool = False
    keep_stamps: bool = False
    """Else stamps follow the play, with pauses and laps: the first message is stamped now."""
    start_s: float = 0.0
    """Seconds into the session."""
    end_s: float | None = None
    topics: tuple[str, ...] = RAW_TOPICS


class Player:
    """Publishes a session.

    Args:
        session: what to play.
        playback: how.
        publisher: opens the publisher of a topic.
        clock: host time in ns.
        stopped: ends the play between two messages.
        keys: pause, step and end it.
        awaited: returns which readers are missing; the play begins when none are.
        notify: called with a line on the readers it waits for.

    Raises:
        SessionError: `loop` and `keep_stamps` are both set.
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
        notify: Callable[[str], object] = _LOG.info,
    ) -> None:
        if playback.loop and playback.keep_stamps:
            raise SessionError("kept stamps would run backwards in a loop; leave one of the two out")
        self.published: Counter[str] = Counter()
        self.late_ms = 0.0
        """Delay of the latest message behind its due time."""
        self._session = session
        self._skew_ns = session.zero.log_ns - session.zero.stamp_ns
        """Clock of arrivals minus clock of stamps; read before the thread `read ahead` uses the session."""
        self._playback = playback
        self._open = publisher
        self._clock = clock
        self._stopped = stopped
        self._keys = keys or NoKeyboard()
        self._awaited = awaited
        self._notify = notify
        self._paused = False
        self._origin_ns = 0
        """Host time at play time 0; pauses, steps and laps move it."""
        self._reached: dict[str, tuple[int, int]] = {}
        """By topic: end of the last message published, in host time, and the origin at that time."""
        self._counters: defaultdict[str, SampleCounter] = defaultdict(SampleCounter)
        self._health: Publisher | None = None
        self._reported_ns = 0

    def topics(self) -> Sequence[str]:
        """Return the topics to publish; SessionError if the session has none of them."""
        counts = self._session.counts
        wanted = [name for name in counts if matches(name, self._playback.topics)]
        if not wanted:
            raise SessionError(
                f"{self._session.path}: no such topics; it holds {', '.join(counts) or 'nothing'}"
            )
        return wanted

    def run(self) -> None:
        """Publish until the end, or until stopped.

        Raises:
            SessionError: the session holds nothing in the time to play.
        """
        with ExitStack() as stack:
            publishers = {name: stack.enter_context(self._open(name)) for name in self.topics()}
            self._health = stack.enter_context(self._open(f"health/{NODE}"))
            self._keys.wait(SETTLE_S)
            self._wait_for_readers(publishers)
            self._origin_ns = self._clock()
            while self._play(publishers) and self._playback.loop:
                pass
            self._report("at the end")
        if not self.published and not self._stopped.is_set():
            raise SessionError(f"{self._session.path}: holds nothing in the time to play")

    def _wait_for_readers(self, publishers: Mapping[str, Publisher]) -> None:
        notified = ""
        while (awaited := self._awaited(publishers)) and not self._stopped.is_set():
            if awaited != notified:
                self._notify(f"waits for {awaited}")
                notified = awaited
            if self._clock() - self._reported_ns >= SECOND_NS:
                self._report(f"waits for {awaited}")
            if self._keys.wait(_LOOK_S) == "quit":
                self._stopped.set()
        if notified and not self._stopped.is_set():
            self._notify("all readers are connected, the play begins")

    def _play(self, publishers: Mapping[str, Publisher]) -> bool:
        """Publish the session once; return whether its end was reached."""
        lap = Lap()
        with _read_ahead(self._messages()) as messages:
            for due in self._scheduled(messages):
                if not self._wait(due.due_ns):
                    return False
                self._publish(publishers[due.message.topic], due.message)
                lap.add(due.message.topic, due.message.header)
        # a player that is too slow begins the next lap now: its delay must not grow from lap to lap
        self._origin_ns = max(self._origin_ns + lap.length_ns, self._clock() - AHEAD_NS)
        return bool(self.published) and not self._stopped.is_set()

    def _scheduled(self, messages: Iterator[Message[Header]]) -> Iterator[Due]:
        return schedule(messages, self._playback.rate or 1.0, self._skew_ns, keep=self._playback.keep_stamps)

    def _publish(self, publisher: Publisher, message: Message[Header]) -> None:
        header, topic = message.header, message.topic
        if not self._playback.keep_stamps:
            self._delay_origin(topic, header)
            header = moved(header, self._origin_ns)
            if isinstance(header, AudioBlock):
                header = self._counters[topic].counted(header, self._origin_ns)
            self._reached[topic] = reached_ns(header), self._origin_ns
        publisher.send(header, message.payload)
        self.published[topic] += 1

    def _delay_origin(self, topic: str, header: Header) -> None:
        """Delay the origin after a pause or step if the stamps of the topic would not rise."""
        before_ns, origin_ns = self._reached.get(topic, (0, self._origin_ns))
        if origin_ns != self._origin_ns:
            next_ns = before_ns + (not isinstance(header, AudioBlock))
            self._origin_ns += max(next_ns - header.stamp_ns - self._origin_ns, 0)

    def _wait(self, due_ns: int) -> bool:
        """Wait until a message is due or a step is requested; return False if the play was stopped."""
        unpaced = self._playback.rate is None
        while not self._stopped.is_set():
            if self._clock() - self._reported_ns >= SECOND_NS:  # a pause may be long, and is no hang
                self._report("paused" if self._paused else "")
            left_ns = 0 if unpaced else self._origin_ns + due_ns - self._clock()
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
        facts[PROCESS] = os.getpid()
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
    notify: Callable[[str], object] = _LOG.info,
) -> Counter[str]:
    """Publish a session file on this host once its readers are connected; return the messages per topic.

    Args:
        file: the session.
        playback: what to play, and how.
        domain: graph to join; without it $PERCEPTION_DOMAIN, else the only one that is up, else `default`.
        keys: pause, step and end it.
        stopped: ends it.
        nodes: readers to wait for, by name, with the patterns of the topics that each reads. None: one reader
            and every live fusion.
        wait: number of readers to wait for instead; 0 begins at once.
        notify: called with a line on the readers it waits for.

    Raises:
        SessionError: the file cannot be read, or holds no such topics.
        BusError: another program publishes a topic.
        PerceptionError: no domain is named, and several graphs are up.
    """
    runtime, clock = domains.find(domain) or Runtime(), HostClock().now_ns

    def publisher(topic: str) -> Publisher:
        return Publisher(topic, source=NODE, runtime=runtime, clock=clock)

    if wait == 0 or (wait is None and nodes == {}):
        notify("begins at once, without waiting for readers")
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
            notify=notify,
        )
        player.run()
        return player.published


def _readers(
    health: Subscriber, runtime: Runtime, nodes: Mapping[str, Sequence[str]] | None, wait: int | None
) -> Readers:
    """Return the readers to wait for; arguments as of `play`."""

    def fusions() -> list[str]:
        return [name_of(topic) for topic in runtime.topics() if kind_of(topic) == "journal"]

    if wait is not None:
        return Readers(health, at_least=wait)
    if nodes is not None:
        return Readers(health, nodes=nodes)
    return Readers(health, alive=fusions, at_least=1)


@contextmanager
def _read_ahead(messages: Iterator[Message[Header]]) -> Iterator[Iterator[Message[Header]]]:
    """Read ahead in a thread: unpacking a chunk takes longer than the interval of two messages."""
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
