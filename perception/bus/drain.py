"""A subscriber's socket: connects to topics, takes in what comes, and lets one thread after another do it.

Who waits for a message drains the socket itself, which saves waking one thread by another. While no
consumer waits, a thread does it, so that what has become old is dropped and counted meanwhile.
"""

import contextlib
import logging
import math
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import zmq

from perception import topics
from perception.bus import codec, endpoints
from perception.bus.domains import first_to_come
from perception.bus.host import Runtime, base_directory
from perception.bus.inbox import Inbox
from perception.bus.lanes import Lanes
from perception.bus.watch import Watch
from perception.errors import BusError, MalformedMessageError, PerceptionError
from perception.messages import Header, Message, Payload

if TYPE_CHECKING:
    from perception.bus.keys import Keys

_LOG: Final = logging.getLogger(__name__)
_RESCAN_S: Final = 0.1
_WAKE_S: Final = 0.05
_AWAY_S: Final = 0.2
"""So long after its last message a consumer counts as busy; what comes till then waits in the kernel."""
_FRESH_NS: Final = 500_000
"""Behind a message that was sent less than this ago nothing is worth a look that could be newer."""
_RECONNECT_MS: Final = 50
_HEARTBEAT_MS: Final = 1000
_EVENTS: Final = int(zmq.EVENTS)  # plain numbers: arithmetic of enums is slow
_POLLIN: Final = int(zmq.POLLIN)
_MOST_AT_ONCE: Final = 512
"""More than a socket holds: who was stopped for long gets the newest, not what waited first."""
_COPY_BELOW: Final = 4096
_DEAD_AFTER_MS: Final = 5000  # one large frame may keep a slow link busy for seconds


class Drain:
    """The socket, and whose turn it is. Never refers to the Subscriber, so that may be collected."""

    def __init__(
        self,
        patterns: tuple[str, ...],
        runtime: Runtime | None,
        clock: Callable[[], int],
        remote: Mapping[str, str],
        keys: "Keys | None",
        inbox: Inbox,
        *,
        every: bool,
    ) -> None:
        self._patterns = patterns
        self._runtime = runtime
        """None until a graph is up."""
        self._base = base_directory() if runtime is None else runtime.base
        self._clock = clock
        self._remote = remote
        self._keys = keys
        self._inbox = inbox
        self._topics: set[str] = set()
        self._endpoints: dict[str, str] = {}
        self._complained: set[str] = set()
        self._turn = threading.Lock()
        """Held by who uses the socket."""
        self._attended_s = -math.inf
        """When a consumer last used it; infinity while one does."""
        self._next_scan_s = time.monotonic()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._watch = Watch(self._socket)
        self._waited = False
        """Whether anything came but a message sent just now, so that more may wait behind it."""
        self._unread = True
        """Whether to look at the ZeroMQ socket before waiting: it wakes only for what comes afterwards."""
        self._descriptor = int(self._socket.get(zmq.FD))
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._lanes = Lanes(self._socket, self._base, self._poll, every=every)
        try:
            self._open()
        except BaseException:
            self._close()
            raise

    def run(self) -> None:
        """Drain while no consumer does, until the inbox is closed."""
        try:
            while not self._inbox.closed:
                if self._inbox.waiting:
                    self._attended_s = time.monotonic()
                    self._inbox.wake()
                away_s = time.monotonic() - self._attended_s
                if away_s < _AWAY_S:
                    self._inbox.rest(_AWAY_S - max(away_s, 0.0))
                elif self._turn.acquire(timeout=_WAKE_S):
                    try:
                        self._stand_in()
                    finally:
                        self._turn.release()
        finally:
            self._inbox.close()
            with self._turn:
                self._close()

    def receive(self, timeout_s: float | None) -> Message[Header] | None:
        """Return the next message; None if none came in time, or once the inbox is closed."""
        now_s = time.monotonic()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        while not self._inbox.closed:
            if self._turn.acquire(blocking=False) or self._wait_for_turn(now_s, deadline_s):
                try:
                    message = self._attend(now_s, deadline_s)
                finally:
                    self._turn.release()
                if self._inbox.waiting:
                    self._inbox.wake()  # the turn is free
                return message
            if (message := self._inbox.take()) is not None:
                return message
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return None
            self._inbox.wait(
                min(deadline_s - now_s, threading.TIMEOUT_MAX), vain=lambda: not self._turn.locked()
            )
            now_s = time.monotonic()
        return None

    def _wait_for_turn(self, now_s: float, deadline_s: float) -> bool:
        """Wait for who looks at the socket, if what waits in the inbox may be old; return whether to look."""
        return self._inbox.outdated(now_s) and self._turn.acquire(
            timeout=min(_WAKE_S, max(deadline_s - now_s, 0.0))
        )

    def _attend(self, now_s: float, deadline_s: float) -> Message[Header] | None:
        """Drain until there is a message to return."""
        self._attended_s = math.inf
        try:
            while True:
                if now_s >= self._next_scan_s:
                    self._scan(now_s)
                left_s = 0.0 if self._inbox.filled else deadline_s - now_s
                self._waited = False
                message = self._take_in_what_comes(_WAKE_S if left_s > _WAKE_S else left_s)
                if self._waited:
                    message = self._catch_up(message)
                message = self._inbox.take() if message is None else self._inbox.pass_on(message)
                if message is not None:
                    return message
                now_s = self._inbox.looked_s = time.monotonic()
                if now_s >= deadline_s or self._inbox.closed:
                    return None
        finally:
            self._attended_s = self._inbox.looked_s = time.monotonic()

    def _stand_in(self) -> None:
        """Drain for a while, and refer to nothing afterwards: what is referred to keeps its slot."""
        if (now_s := time.monotonic()) >= self._next_scan_s:
            self._scan(now_s)
        ready = self._wait(_WAKE_S)
        with self._inbox.lock:  # nobody takes what is about to be superseded
            self._waited = False
            message = self._take_in(ready)
            if self._waited:
                message = self._catch_up(message)
            if message is not None:
                self._inbox.put(message)
            self._inbox.looked_s = time.monotonic()

    def _catch_up(self, message: Message[Header] | None) -> Message[Header] | None:
        """Take in all that waits behind a message, which may supersede it; return the last, as below.

        Nobody can take a message meanwhile: after a pause of this process, all but the last are old.
        """
        with self._inbox.lock:
            for _ in range(_MOST_AT_ONCE):
                if message is not None:
                    self._inbox.put(message)
                self._waited = False
                message = self._take_in_what_comes(0.0)
                if not self._waited:
                    break
        return message

    def _take_in_what_comes(self, timeout_s: float) -> Message[Header] | None:
        """Wait for messages and take in some; return the last that came by the lane, not taken in yet."""
        return self._take_in(self._wait(timeout_s))

    def _wait(self, timeout_s: float) -> list[tuple[int, int]]:
        return self._poll.poll(0 if self._unread or timeout_s <= 0 else timeout_s * 1e3)

    def _take_in(self, ready: list[tuple[int, int]]) -> Message[Header] | None:
        message = None
        for descriptor, _ in ready:
            if message is not None:
                self._inbox.put(message)
                message = None
            if descriptor == self._descriptor:
                self._unread = True
            elif (arrival := self._lanes.receive(descriptor)) is None:
                self._unread = self._waited = True  # the lane may have been given up, which uses the socket
            else:
                message = self._message(*arrival)
                if message is None or not 0 <= message.received_ns - message.header.sent_ns < _FRESH_NS:
                    self._waited = True
        if self._unread:
            self._unread = self._take_in_from_socket()
        return message

    def _take_in_from_socket(self) -> bool:
        """Take in what ZeroMQ has; return whether there may be more."""
        for _ in range(_MOST_AT_ONCE):
            if not int(self._socket.get(_EVENTS)) & _POLLIN:
                return False
            self._waited = True
            frames = self._socket.recv_multipart(copy=False)
            self._take_in_parts(
                [frame.buffer if len(frame) > _COPY_BELOW else frame.bytes for frame in frames]
            )
        return True

    def _open(self) -> None:
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVTIMEO, round(_WAKE_S * 1e3))
        self._socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, _DEAD_AFTER_MS)
        self._socket.set(zmq.MAXMSGSIZE, codec.MAX_PART_BYTES)
        # Once: ZeroMQ applies a later change to the connections in use, and where it shrinks they may fall
        # silent for good.
        self._socket.set(zmq.RCVHWM, max(endpoints.backlog(row) for row in _rows(self._patterns)))
        for beginning in _filters(self._patterns):
            self._lanes.subscribe(beginning)
        for pattern, endpoint in self._remote.items():
            if any(topics.overlap(pattern, wanted) for wanted in self._patterns):
                self._connect(pattern, endpoint, remote=True)
        self._follow_named()

    def _why_strange(self) -> str:
        if self._keys:
            return "handshake failed: the publisher has other keys, or none"
        return "handshake failed: it wants keys and none are given here, or it is no publisher"

    def _follow_named(self) -> None:
        for topic in [*self._patterns, *filter(self._wants, self._remote)]:
            if not topic.endswith("*"):
                self._follow(topic)

    def _scan(self, now_s: float) -> None:
        """Connect to topics that are new, and once more to endpoints that ZeroMQ has given up."""
        self._next_scan_s = now_s + _RESCAN_S
        try:
            if self._runtime is None:
                self._runtime = first_to_come(self._base, self._wants)
                self._follow_named()
            if self._runtime is not None and any(pattern.endswith("*") for pattern in self._patterns):
                for topic in filter(self._wants, self._runtime.topics()):
                    self._follow(topic)
            given_up = self._watch.given_up() & self._endpoints.keys()
            strangers = self._watch.strangers()
            for endpoint in strangers & self._endpoints.keys():
                self._complain(endpoint, f"{self._endpoints[endpoint]}: {endpoint}: {self._why_strange()}")
            for endpoint in given_up:
                topic = self._endpoints.pop(endpoint)
                if endpoint not in strangers:
                    self._complain(topic, f"{topic}: {endpoint} sent what no topic allows; connecting again")
                self._socket.disconnect(endpoint)
                self._connect(topic, endpoint, remote=topic in self._remote)
            self._lanes.restore()
        except (PerceptionError, OSError, zmq.ZMQError) as error:
            self._complain("", f"cannot connect to what is new: {error}")

    def _follow(self, topic: str) -> None:
        """Take in a topic: from this host, unless it is named and published on another."""
        if topic in self._topics:
            return
        named = topic in self._remote or topic in self._patterns
        if not (named and self._is_remote(topic)):
            if self._runtime is None:
                return  # later
            self._connect(topic, self._runtime.ipc_endpoint(topic), remote=False)
        self._expect(topic)

    def _expect(self, topic: str) -> None:
        self._topics.add(topic)
        self._inbox.expect(topic)

    def _is_remote(self, topic: str) -> bool:
        return any(topics.matches(pattern, topic) for pattern in self._remote)

    def _connect(self, topic: str, endpoint: str, *, remote: bool) -> None:
        self._unread = True
        if endpoint in self._endpoints:
            return  # two topics of one publisher
        self._socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS if remote else 0)  # a dead host sends no goodbye
        self._socket.set(zmq.IPV6, int("[" in endpoint))
        try:
            with self._keys.connecting(self._socket) if remote and self._keys else contextlib.nullcontext():
                self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise BusError(f"{topic}: cannot connect to {endpoint}: {error.strerror}") from error
        self._endpoints[endpoint] = topic

    def _wants(self, topic: str) -> bool:
        return any(topics.matches(pattern, topic) for pattern in self._patterns)

    def _take_in_parts(self, parts: Sequence[Payload]) -> None:
        try:
            message = self._message(*codec.opened(parts))
        except MalformedMessageError as error:
            self._refuse(bytes(parts[0][: topics.MAX_TOPIC_LENGTH + 1]).decode("utf-8", "replace"), error)
        else:
            if message is not None:
                self._inbox.put(message)

    def _message(self, coder: codec.Coder, header: bytes, payload: Payload | None) -> Message[Header] | None:
        """Return a message; None, having counted it, if it cannot be used."""
        if coder.topic not in self._topics:
            if not (self._wants(coder.topic) and self._is_remote(coder.topic)):
                return None  # ZeroMQ matches beginnings: camera/a lets camera/ab through
            self._expect(coder.topic)  # the first of a topic that only a pattern of `connect` names
        if payload is None:
            self._inbox.refuse(coder.topic, "overwritten")
            self._unread = True  # as above
            return None
        try:
            return coder.unpack(header, payload, self._clock())
        except MalformedMessageError as error:
            self._refuse(coder.topic, error)
            return None

    def _refuse(self, topic: str, error: MalformedMessageError) -> None:
        if topic in self._topics:
            self._inbox.refuse(topic)
            self._complain(topic, f"refused a message: {error}; further ones are only counted")

    def _complain(self, topic: str, text: str) -> None:
        if topic not in self._complained:
            self._complained.add(topic)
            _LOG.warning("%s", text)

    def _close(self) -> None:
        self._lanes.close()
        self._watch.close()
        self._context.destroy(linger=0)


def _rows(patterns: tuple[str, ...]) -> list[topics.Topic]:
    """Return the rows of the kinds of topics that may match."""
    kinds = {topics.kind_of(pattern) for pattern in patterns}
    return [row for prefix, row in topics.TOPICS.items() if "*" in kinds or prefix in kinds]


def _filters(patterns: tuple[str, ...]) -> set[str]:
    """Return the fewest beginnings that cover `patterns`, so that no topic is subscribed to twice."""
    beginnings = {pattern.removesuffix("*") for pattern in patterns}
    return {
        one for one in beginnings if not any(one != other and one.startswith(other) for other in beginnings)
    }
