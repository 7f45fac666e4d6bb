"""Publish a session as if live: at its own pace or another, in a loop, paused and stepped by keys."""

import os
import queue
import select
import sys
import termios
import threading
import time
import tty
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from msgspec import structs

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.errors import SessionError
from perception.messages import Header, Health, Label, Message
from perception.profile import ReplayConfig
from perception.session.reader import Session, matches

RAW_TOPICS: Final[tuple[str, ...]] = ReplayConfig.model_fields["topics"].default
"""What no fusion makes itself, and so cannot clash with one that listens."""
NODE: Final = "replayer"
SETTLE_S: Final = 0.3
"""Subscribers find new topics within 0.1 s, and connect."""
_AHEAD: Final = 256
_SECOND_NS: Final = 1_000_000_000
Key = Literal["pause", "step", "quit"]
_KEYS: Final[dict[str, Key]] = {" ": "pause", ".": "step", "q": "quit"}


@dataclass(frozen=True, slots=True)
class Playback:
    """What to play, and how."""

    rate: float | None = 1.0
    """Times real time; None is as fast as it goes: whoever is slower loses what the policies say."""
    loop: bool = False
    keep_stamps: bool = False
    """Else all stamps are moved so that the first message happens now."""
    start_s: float = 0.0
    """Seconds into the session."""
    end_s: float | None = None
    topics: tuple[str, ...] = RAW_TOPICS


class Keyboard(Protocol):
    """Where pausing and stepping come from."""

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for a key, no longer than this."""


class NoKeyboard:
    """Nobody is there to pause."""

    def wait(self, timeout_s: float) -> Key | None:
        """Only wait."""
        time.sleep(timeout_s)
        return None


class Terminal:
    """Single keys from a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def wait(self, timeout_s: float) -> Key | None:
        """Wait for one of the keys."""
        if not select.select([self._descriptor], [], [], timeout_s)[0]:
            return None
        return _KEYS.get(os.read(self._descriptor, 1).decode(errors="replace"))


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Take single keys while this is open, if somebody sits at a terminal."""
    if not sys.stdin.isatty():
        yield NoKeyboard()
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield Terminal(sys.stdin.fileno())
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Pace:
    """When each message is due: absolute times, so that no delay adds up. Pure."""

    def __init__(self, first_ns: int, now_ns: int, rate: float | None) -> None:
        """The message that arrived at `first_ns` is due now."""
        self._first_ns = first_ns
        self._begin_ns = now_ns
        self._rate = rate

    def due_ns(self, arrival_ns: int) -> int:
        """Return when a message is due that arrived at this time then."""
        if self._rate is None:
            return self._begin_ns
        return self._begin_ns + round((arrival_ns - self._first_ns) / self._rate)

    def hold(self, for_ns: int) -> None:
        """Move all that is still due."""
        self._begin_ns += for_ns


def moved(message: Message[Header], by_ns: int) -> Message[Header]:
    """Return the message as if it had happened so much later."""
    header = message.header
    update = {"stamp_ns": header.stamp_ns + by_ns}
    if isinstance(header, Label):
        update |= {"start_ns": header.start_ns + by_ns, "end_ns": header.end_ns + by_ns}
    return structs.replace(message, header=structs.replace(header, **update))


class Player:
    """Publishes a session."""

    def __init__(
        self,
        session: Session,
        playback: Playback,
        publisher: Callable[[str], Publisher],
        *,
        clock: Callable[[], int],
        stopped: threading.Event,
        keys: Keyboard | None = None,
    ) -> None:
        """`publisher` opens the publisher of a topic; `stopped` ends the play between two messages."""
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
        self._paused = False
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
        """Publish until the end, or until stopped."""
        with ExitStack() as stack:
            publishers = {name: stack.enter_context(self._open(name)) for name in self.topics()}
            self._health = stack.enter_context(self._open(f"health/{NODE}"))
            self._keys.wait(SETTLE_S)
            while self._play(publishers) and self._playback.loop:
                pass
            self._report("at the end")

    def _play(self, publishers: dict[str, Publisher]) -> bool:
        """Publish the session once; tell whether it came to its end."""
        pace: Pace | None = None
        shift_ns = 0
        with _ahead(self._messages()) as messages:
            for message in messages:
                if pace is None:
                    now_ns = self._clock()
                    pace = Pace(message.received_ns, now_ns, self._playback.rate)
                    shift_ns = 0 if self._playback.keep_stamps else now_ns - message.received_ns
                elif not self._wait(pace, message):
                    return False
                if shift_ns:
                    message = moved(message, shift_ns)
                publishers[message.topic].send(message.header, message.payload)
                self.published[message.topic] += 1
                if self._clock() - self._reported_ns >= _SECOND_NS:
                    self._report("")
        return pace is not None and not self._stopped.is_set()

    def _wait(self, pace: Pace, message: Message[Header]) -> bool:
        """Wait until a message is due, or stepped to; tell whether to go on."""
        while not self._stopped.is_set():
            left_ns = pace.due_ns(message.received_ns) - self._clock()
            if self._paused or left_ns > 0:
                begun_ns = self._clock()
                key = self._keys.wait(0.1 if self._paused else min(left_ns / 1e9, 0.1))
                if self._paused:
                    pace.hold(self._clock() - begun_ns)
                if key == "quit":
                    self._stopped.set()
                elif key == "pause":
                    self._paused = not self._paused
                elif key == "step" and self._paused:
                    pace.hold(min(0, self._clock() - pace.due_ns(message.received_ns)))
                    return True
            else:
                self.late_ms = -left_ns / 1e6
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
        span = self._session.times_ns
        if span is None:
            return iter(())
        start_ns = span[0] + round(self._playback.start_s * _SECOND_NS)
        end_s = self._playback.end_s
        end_ns = None if end_s is None else span[0] + round(end_s * _SECOND_NS)
        return self._session.messages(self._playback.topics, start_ns, end_ns)


def play(
    file: Path | str,
    playback: Playback,
    *,
    domain: str | None = None,
    keys: Keyboard | None = None,
    stopped: threading.Event | None = None,
) -> Counter[str]:
    """Publish a session file on this host; return how many messages of each topic.

    Raises:
        SessionError: the file cannot be read, or holds no such topics.
        BusError: a topic is published by somebody else.
    """
    runtime, clock = Runtime(domain), HostClock().now_ns

    def publisher(topic: str) -> Publisher:
        return Publisher(topic, source=NODE, runtime=runtime, clock=clock)

    with Session(file) as session:
        player = Player(
            session, playback, publisher, clock=clock, stopped=stopped or threading.Event(), keys=keys
        )
        player.run()
        return player.published


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
