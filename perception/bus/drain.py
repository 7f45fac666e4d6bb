"""A subscriber's sockets: connects to topics and receives messages, in one thread at a time.

Threads:
- `Drain.run` is the body of the subscriber's own thread. `Drain.receive` may be called from any thread.
- Only the holder of `_socket_lock` uses the ZeroMQ socket, the lanes and the fields marked with that lock.
  The lock is held from `poll` to the last message read.
- A consumer in `receive` takes the lock and reads the sockets itself: no other thread has to be woken.
- The own thread reads while no consumer has done so for 0.2 s, so that old messages are dropped and counted.
- Order of locks: first `_socket_lock`, then `Inbox.lock`. A consumer that does not get `_socket_lock` waits
  in `Inbox.wait`; the holder wakes it after release.

Before a message is returned that is older than 0.5 ms, the messages behind it are read, at most 512 at once:
a newer one may supersede it. After `run` returns, the inbox and the sockets are closed.
"""

import logging
import math
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import zmq
from msgspec import structs

from perception import topics
from perception.bus import codec, endpoints
from perception.bus.domains import first_domain
from perception.bus.host import Runtime, base_directory
from perception.bus.inbox import Inbox
from perception.bus.lanes import Lanes
from perception.bus.peers import Peers
from perception.bus.remote import Remote, closest, fewest, filters
from perception.bus.watch import Watch
from perception.errors import BusError, MalformedMessageError, PerceptionError
from perception.messages import MAX_TIME_NS, Header, Message, Payload, corrected
from perception.units.bounded import MAX_NAMES, Recent

if TYPE_CHECKING:
    from perception.bus.keys import Keys

_LOG: Final = logging.getLogger(__name__)
_RESCAN_S: Final = 0.1
_POLL_S: Final = 0.05
_CONSUMER_PAUSE_S: Final = 0.2
"""For this long after a consumer's last read, the own thread does not read; messages wait in the kernel."""
_FRESH_NS: Final = 500_000
"""After a message sent less than this ago, the sockets are not read again for newer ones."""
_RECONNECT_MS: Final = 50
_EVENTS: Final = int(zmq.EVENTS)  # plain numbers: arithmetic of enums is slow
_POLLIN: Final = int(zmq.POLLIN)
_MAX_BATCH: Final = 512
"""More messages than a socket holds: after a long stop the newest is returned, not the oldest."""
_COPY_BELOW: Final = 4096
_UNFINISHED_BYTES: Final = 3 * codec.MAX_PART_BYTES
"""How much of one message a publisher on another host may send: more than a valid message has."""
_DEAD_AFTER_MS: Final = 5000  # one large frame may keep a slow link busy for seconds

Correct: TypeAlias = Callable[[str, int], int | None]
"""Returns what to add to a stamp of a topic, None while the clock of its host is not known."""


class Drain:
    """The sockets of one subscriber. It never refers to the `Subscriber`, which can be garbage-collected."""

    def __init__(
        self,
        patterns: tuple[str, ...],
        runtime: Runtime | None,
        clock: Callable[[], int],
        remote: Mapping[str, str],
        keys: "Keys | None",
        inbox: Inbox,
        *,
        insecure: bool = False,
        lossless: bool,
        correct: Correct = lambda topic, stamp_ns: 0,
    ) -> None:
        self._patterns = patterns
        self._correct = correct
        """Returns the correction of the times of what arrives from other hosts."""
        self._runtime = runtime
        """None until a graph is up. Lock: `_socket_lock`."""
        self._base = base_directory() if runtime is None else runtime.base
        self._clock = clock
        self._connect_to = remote
        self._keys = keys
        self._insecure = insecure
        self._remotes: dict[int, Remote] = {}
        """By descriptor. Lock: `_socket_lock`."""
        self._inbox = inbox
        self._topics: Recent[str, None] = Recent()
        """Topics to accept. Lock: `_socket_lock`."""
        self._endpoints: dict[str, str] = {}
        """Connected endpoint of this host -> topic. Lock: `_socket_lock`."""
        self._warned: set[str] = set()
        """Topics and endpoints that a warning was logged for. Lock: `_socket_lock`."""
        self._socket_lock = threading.Lock()
        """Held while a thread uses the sockets."""
        self._consumer_s = -math.inf
        """When a consumer last read, infinity while one reads. Written under `_socket_lock`, or by `run`."""
        self._next_scan_s = time.monotonic()
        """When to look for new topics next. Lock: `_socket_lock`."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._peers = Peers(_UNFINISHED_BYTES)
        """Publishers on other hosts. Lock: `_socket_lock`."""
        self._watch = Watch(self._socket, self._peers)
        self._more = False
        """Whether a message was read that was not sent just now: more may wait. Lock: `_socket_lock`."""
        self._unread = True
        """Whether to read the ZeroMQ socket before waiting: its descriptor signals later events only.

        Lock: `_socket_lock`.
        """
        self._descriptor = int(self._socket.get(zmq.FD))
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._lanes = Lanes(self._socket, self._base, self._poll, lossless=lossless)
        try:
            self._open()
        except BaseException:
            self._close()
            raise

    def run(self) -> None:
        """Read while no consumer does, until the inbox is closed; then close the sockets. Own thread only."""
        try:
            while not self._inbox.closed:
                if self._inbox.waiting:
                    self._consumer_s = time.monotonic()
                    self._inbox.wake()
                away_s = time.monotonic() - self._consumer_s
                if away_s < _CONSUMER_PAUSE_S:
                    self._inbox.sleep(_CONSUMER_PAUSE_S - max(away_s, 0.0))
                elif self._socket_lock.acquire(timeout=_POLL_S):
                    try:
                        self._drain_to_inbox()
                    finally:
                        self._socket_lock.release()
        finally:
            self._inbox.close()
            with self._socket_lock:
                self._close()

    def receive(self, timeout_s: float | None) -> Message[Header] | None:
        """Return the next message; None after `timeout_s`, or if the inbox is closed. Any thread."""
        now_s = time.monotonic()
        deadline_s = math.inf if timeout_s is None else now_s + timeout_s
        while not self._inbox.closed:
            if self._socket_lock.acquire(blocking=False) or self._wait_for_socket(now_s, deadline_s):
                try:
                    message = self._drain_for_consumer(now_s, deadline_s)
                finally:
                    self._socket_lock.release()
                if self._inbox.waiting:
                    self._inbox.wake()  # the lock is free
                return message
            if (message := self._inbox.take()) is not None:
                return message
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return None
            self._inbox.wait(
                min(deadline_s - now_s, threading.TIMEOUT_MAX), unless=lambda: not self._socket_lock.locked()
            )
            now_s = time.monotonic()
        return None

    def _wait_for_socket(self, now_s: float, deadline_s: float) -> bool:
        """Return whether `_socket_lock` was acquired; wait for it only if the inbox is outdated."""
        return self._inbox.outdated(now_s) and self._socket_lock.acquire(
            timeout=min(_POLL_S, max(deadline_s - now_s, 0.0))
        )

    def _drain_for_consumer(self, now_s: float, deadline_s: float) -> Message[Header] | None:
        """Read until there is a message to return. Lock: `_socket_lock`."""
        self._consumer_s = math.inf
        try:
            while True:
                if now_s >= self._next_scan_s:
                    self._scan(now_s)
                left_s = 0.0 if self._inbox.filled else deadline_s - now_s
                self._more = False
                message = self._poll_and_receive(_POLL_S if left_s > _POLL_S else left_s)
                if self._more:
                    message = self._catch_up(message)
                message = self._inbox.take() if message is None else self._inbox.put_and_take(message)
                if message is not None:
                    return message
                now_s = self._inbox.drained_s = time.monotonic()
                if now_s >= deadline_s or self._inbox.closed:
                    return None
        finally:
            self._consumer_s = self._inbox.drained_s = time.monotonic()

    def _drain_to_inbox(self) -> None:
        """Read once. Keep no reference to a message afterwards: a reference keeps its slot locked.

        Lock: `_socket_lock`.
        """
        if (now_s := time.monotonic()) >= self._next_scan_s:
            self._scan(now_s)
        ready = self._wait(_POLL_S)
        with self._inbox.lock:  # no consumer takes a message that is about to be superseded
            self._more = False
            message = self._receive_ready(ready)
            if self._more:
                message = self._catch_up(message)
            if message is not None:
                self._inbox.put(message)
            self._inbox.drained_s = time.monotonic()

    def _catch_up(self, message: Message[Header] | None) -> Message[Header] | None:
        """Read all messages behind this one, which may supersede it; return the last, not yet in the inbox.

        `Inbox.lock` is held: after a stop of this process all messages but the last are old, and no consumer
        may take one.
        """
        with self._inbox.lock:
            for _ in range(_MAX_BATCH):
                if message is not None:
                    self._inbox.put(message)
                self._more = False
                message = self._poll_and_receive(0.0)
                if not self._more:
                    break
        return message

    def _poll_and_receive(self, timeout_s: float) -> Message[Header] | None:
        """Wait and read some messages; return the last one of a lane, which is not yet in the inbox."""
        return self._receive_ready(self._wait(timeout_s))

    def _wait(self, timeout_s: float) -> list[tuple[int, int]]:
        return self._poll.poll(0 if self._unread or timeout_s <= 0 else timeout_s * 1e3)

    def _receive_ready(self, ready: list[tuple[int, int]]) -> Message[Header] | None:
        message = None
        for descriptor, _ in ready:
            if message is not None:
                self._inbox.put(message)
                message = None
            if descriptor == self._descriptor or descriptor in self._remotes:
                self._unread = True
            elif (arrival := self._lanes.receive(descriptor)) is None:
                self._unread = self._more = True  # a lane that is left uses the socket
            else:
                message = self._message(*arrival)
                if message is None or not 0 <= message.received_ns - message.header.sent_ns < _FRESH_NS:
                    self._more = True
        if self._unread:
            self._unread = self._receive_zmq()
        return message

    def _receive_zmq(self) -> bool:
        """Put the messages of the ZeroMQ sockets into the inbox; return whether there may be more."""
        more = self._receive_from(self._socket, None)
        for remote in self._remotes.values():
            more |= self._receive_from(remote.socket, remote)
        return more

    def _receive_from(self, socket: zmq.Socket[bytes], remote: Remote | None) -> bool:
        """Put the messages of one socket into the inbox; return whether there may be more."""
        for _ in range(_MAX_BATCH):
            if not int(socket.get(_EVENTS)) & _POLLIN:
                return False
            self._more = True
            if (frames := remote.receive() if remote else socket.recv_multipart(copy=False)) is None:
                continue
            parts = [frame.buffer if len(frame) > _COPY_BELOW else frame.bytes for frame in frames]
            self._put_parts(parts, remote)
        return True

    def _open(self) -> None:
        self._set_options(self._socket)
        for beginning in fewest(pattern.removesuffix("*") for pattern in self._patterns):
            self._lanes.subscribe(beginning)
        self._connect_remote()
        self._add_named_topics()

    def _connect_remote(self) -> None:
        """Connect to other hosts; where times are corrected, once the clock there is known."""
        connected = {remote.endpoint for remote in self._remotes.values()}
        named: dict[str, list[str]] = {}
        for pattern, endpoint in self._connect_to.items():
            wanted = any(topics.overlap(pattern, one) for one in self._patterns)
            if wanted and endpoint not in connected and self._correct(pattern, 0) is not None:
                named.setdefault(endpoint, []).append(pattern)
        for endpoint, patterns in named.items():
            self._add_remote(endpoint, patterns)

    def _set_options(self, socket: zmq.Socket[bytes]) -> None:
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, round(_POLL_S * 1e3))
        socket.set(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.set(zmq.HEARTBEAT_TIMEOUT, _DEAD_AFTER_MS)
        socket.set(zmq.MAXMSGSIZE, codec.MAX_PART_BYTES)
        # Set once: ZeroMQ applies later changes to open connections, and a smaller value may stop them
        # permanently.
        socket.set(zmq.RCVHWM, max(endpoints.backlog(row) for row in _rows(self._patterns)))

    def _add_remote(self, endpoint: str, patterns: list[str]) -> None:
        """Connect to publishers on another host, named for these patterns."""
        socket = self._context.socket(zmq.SUB)
        self._set_options(socket)
        for beginning in filters(patterns, self._patterns):
            self._lanes.subscribe(beginning, socket)
        own_only = self._keys is None and not self._insecure
        named_for = partial(closest, tuple(self._connect_to))
        remote = Remote(socket, endpoint, patterns, named_for, self._keys, self._peers, own_only=own_only)
        self._remotes[remote.descriptor] = remote
        self._poll.register(remote.descriptor, select.POLLIN)

    def _add_named_topics(self) -> None:
        for topic in [*self._patterns, *filter(self._matches, self._connect_to)]:
            if not topic.endswith("*"):
                self._add_topic(topic)

    def _scan(self, now_s: float) -> None:
        """Connect to new topics, and again to endpoints that ZeroMQ has abandoned."""
        self._next_scan_s = now_s + _RESCAN_S
        try:
            if self._runtime is None:
                self._runtime = first_domain(self._base, self._matches)
                self._add_named_topics()
            if self._runtime is not None and any(pattern.endswith("*") for pattern in self._patterns):
                for topic in filter(self._matches, self._runtime.topics()):
                    self._add_topic(topic)
            self._connect_remote()
            for endpoint in self._watch.abandoned() & self._endpoints.keys():
                topic = self._endpoints.pop(endpoint)
                self._warn_once(topic, f"{topic}: {endpoint} broke the protocol; connecting again")
                self._socket.disconnect(endpoint)
                self._connect(topic, endpoint)
            self._check_remotes()
            self._lanes.restore()
        except (PerceptionError, OSError, zmq.ZMQError) as error:
            self._warn_once("", f"cannot connect to new topics: {error}")

    def _check_remotes(self) -> None:
        if self._keys is not None:
            self._keys.trust.refresh()
        for reason in self._peers.check():
            self._warn_once(reason.partition(" ")[0], f"disconnected a publisher: {reason}")
        for remote in self._remotes.values():
            for problem in remote.check():
                self._warn_once(problem, problem)
            self._unread = True

    def _add_topic(self, topic: str) -> None:
        """Connect to a topic of this host, unless `connect` names it: then only expect it."""
        if topic in self._topics:
            return
        named = topic in self._connect_to or topic in self._patterns
        if not (named and self._is_remote(topic)):
            if self._runtime is None:
                return  # later
            self._connect(topic, self._runtime.ipc_endpoint(topic))
        self._expect(topic)

    def _expect(self, topic: str) -> None:
        self._topics[topic] = None
        self._inbox.expect(topic)

    def _is_remote(self, topic: str) -> bool:
        return bool(closest(tuple(self._connect_to), topic))

    def _connect(self, topic: str, endpoint: str) -> None:
        """Connect to a topic of this host."""
        self._unread = True
        if endpoint in self._endpoints:
            return
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise BusError(f"{topic}: cannot connect to {endpoint}: {error.strerror}") from error
        self._endpoints[endpoint] = topic

    def _matches(self, topic: str) -> bool:
        return any(topics.matches(pattern, topic) for pattern in self._patterns)

    def _put_parts(self, parts: Sequence[Payload], remote: Remote | None) -> None:
        try:
            message = self._message(*codec.split(parts), remote)
        except MalformedMessageError as error:
            self._refuse(bytes(parts[0][: topics.MAX_TOPIC_LENGTH + 1]).decode("utf-8", "replace"), error)
        else:
            if message is not None and remote is not None:
                message = self._corrected(message)
            if message is not None:
                self._inbox.put(message)

    def _corrected(self, message: Message[Header]) -> Message[Header] | None:
        """Return a message of another host, with its times on this host's clock; None without them."""
        by_ns = self._correct(message.topic, message.header.stamp_ns)
        if by_ns is None:
            self._inbox.refuse(message.topic, "clock unknown")
            return None
        if not by_ns:
            return message
        header = corrected(message.header, by_ns)
        if max(abs(header.stamp_ns), abs(header.sent_ns), abs(header.correction_ns)) > MAX_TIME_NS:
            self._inbox.refuse(message.topic, "malformed")
            return None
        return structs.replace(message, header=header)

    def _message(
        self, coder: codec.Coder, header: bytes, payload: Payload | None, remote: Remote | None = None
    ) -> Message[Header] | None:
        """Return a message; None if it cannot be used, which is counted.

        Args:
            coder: of the message.
            header: packed.
            payload: None if it was overwritten before it was read.
            remote: where it came from, None from this host.
        """
        if remote is not None and not remote.accepts(coder.topic):
            self._refuse_foreign(coder.topic, remote)
            return None
        if coder.topic not in self._topics:
            if not self._matches(coder.topic):
                return None  # ZeroMQ matches prefixes: camera/a also matches camera/ab
            self._expect(coder.topic)  # first message of a topic that a pattern matches
        if payload is None:
            self._inbox.refuse(coder.topic, "overwritten")
            self._unread = True  # a lane that is left uses the socket
            return None
        try:
            return coder.unpack(header, payload, self._clock())
        except MalformedMessageError as error:
            self._refuse(coder.topic, error)
            return None

    def _refuse_foreign(self, topic: str, remote: Remote) -> None:
        """Count a message that this endpoint has no right to."""
        if topic in self._topics:
            self._inbox.refuse(topic, "no right")
        if self._matches(topic):
            self._warn_once(
                f"{remote} {topic}", f"{remote}: refused messages of {topic}: no right to publish them here"
            )

    def _refuse(self, topic: str, error: MalformedMessageError) -> None:
        if topic in self._topics:
            self._inbox.refuse(topic)
            self._warn_once(topic, f"refused a message: {error}; further ones are only counted")

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned and len(self._warned) < MAX_NAMES:
            self._warned.add(topic)
            _LOG.warning("%s", text)

    def _close(self) -> None:
        self._lanes.close()
        for remote in self._remotes.values():
            remote.close()
        self._watch.close()
        self._context.destroy(linger=0)


def _rows(patterns: tuple[str, ...]) -> list[topics.Topic]:
    """Return the rows of all topics that may match."""
    prefixes = {topics.kind_of(pattern) for pattern in patterns}
    return [row for prefix, row in topics.TOPICS.items() if "*" in prefixes or prefix in prefixes]
