"""Publish one topic: bind, number, stamp, send. Nobody who is slow to read can hold it up."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import zmq
from msgspec import structs

from perception import topics
from perception.bus import codec, endpoints, lane, packet
from perception.bus.audience import Audience
from perception.bus.host import Runtime
from perception.bus.watch import Watch
from perception.errors import BusError
from perception.messages import Header, Payload, reached_ns
from perception.units.closing import Closing

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

    from perception.bus.codec import Data

Conversion: TypeAlias = Callable[[Header, Payload], tuple[Header, Payload]]
"""Makes of header and payload what is sent instead of them."""
_LOG: Final = logging.getLogger(__name__)
_LINGER_MS: Final = 1000
_COPY_BELOW_BYTES: Final = 64 * 1024  # handing a buffer over costs more than copying a small one
_POLL_MS: Final = 10
_NUMBERED: Final = 1000
"""Readers through ZeroMQ that are told apart: any of them may subscribe as often as it likes."""
_LOOK_S: Final = 0.05
"""So often a publisher looks who has come, at most: each time costs as much as a message does."""


class Publisher(Closing):
    """The one publisher of a topic. Safe to use from several threads."""

    def __init__(
        self,
        topic: str,
        *,
        source: str,
        runtime: Runtime,
        clock: Callable[[], int],
        endpoint: str | None = None,
        insecure: bool = False,
        keys: str | Path | None = None,
        remote: Conversion | None = None,
    ) -> None:
        """Bind the topic's ipc endpoint, and `endpoint` if given.

        Args:
            topic: such as `camera/front`.
            source: name of the publishing node; an id of this incarnation is added to it.
            runtime: the domain to publish in.
            clock: host time in ns.
            endpoint: `tcp://HOST:PORT` for readers elsewhere; port `*` takes a free one.
            insecure: allow an endpoint off loopback without keys.
            keys: folder of CURVE keys; the endpoint then serves only peers that have them.
            remote: makes of header and payload what readers get that do not use the lane, because they are
                on other hosts or in other languages.

        Raises:
            BusError: the topic is published already, the endpoint is busy, malformed or unsafe.
        """
        self.topic = topic
        self.source = f"{source}#{secrets.token_hex(4)}"
        self._clock = clock
        self._remote = remote
        self._published = 0
        self._ring: lane.Ring | None = None
        self._crowded = False
        self._lock = threading.Lock()
        row = topics.lookup(topic)
        self._queued = row.policy == "queue"
        self._coder = codec.coder_of(topic)
        self._closed = False
        self._next_look_s = 0.0
        if endpoint is not None:
            endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        self._runtime = runtime
        self._claim = runtime.claim(topic)
        # A context of its own: ending it waits until what was sent is on its way.
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(zmq.SNDHWM, endpoints.backlog(row))
        self._audience = Audience(self._socket, topic, runtime.base)
        self._guard: ThreadAuthenticator | None = None
        self._watch: Watch | None = None
        """Of the endpoint that others may reach."""
        self._keyed = keys is not None
        self._refused = False
        self.endpoint: str | None = None
        try:
            self._bind(runtime.ipc_endpoint(topic))
            if endpoint is not None:
                self._bind_tcp(endpoint, keys)
        except BaseException:
            self.close()
            raise
        runtime.keeper.add(self._restore)

    @property
    def published(self) -> int:
        """Messages sent so far; the next one gets this `seq`."""
        return self._published

    @property
    def subscribers(self) -> int:
        """Subscriptions to this topic in force now."""
        with self._lock:
            self._audience.update()
            return len(self._audience)

    @property
    def readers(self) -> frozenset[str]:
        """Names of those who subscribe to this topic now, each the same at every publisher it reads.

        Readers through ZeroMQ alone have no names: of these it is their number, `1`, `2` and so on.
        """
        with self._lock:
            self._audience.update()
            named = {name.decode("ascii", "replace") for name in self._audience.near}
            return frozenset({*named, *map(str, range(1, min(self._audience.plain, _NUMBERED) + 1))})

    def wait_for_subscriber(self, timeout_s: float) -> bool:
        """Wait until somebody subscribes; return whether somebody did."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._audience.update()
                if len(self._audience):
                    return True
                if self._closed or time.monotonic() >= deadline:
                    return False
                self._audience.used = True
                self._socket.poll(_POLL_MS)

    def loan(self, size: int) -> lane.Loan:
        """Return memory for a payload of `size` bytes, to be filled and given to `send` once.

        Readers on this host then see it without any copy. A loan that is dropped is given back; where the
        interpreter cannot tell that it was dropped, it is memory of this process, and copied by `send`.
        """
        with self._lock:
            self._look()
            loan = self._lend(size) if lane.COUNTED and self._audience.near else None
        return loan or lane.Loan(memoryview(bytearray(size)))

    def send(self, header: Header, payload: "Data | lane.Loan" = b"", *, now: bool = False) -> Header:
        """Send one message and return its header as sent, with `seq`, `sent_ns` and `source` filled.

        A large payload is not copied if a reader wants it inline: it must not be written to afterwards.
        With `now`, it happens at the moment of sending, and sound ends then: of several threads, no later
        message is older.

        Raises:
            MalformedMessageError: header or payload is not what the topic carries; nothing is sent.
            BusError: the publisher is closed, or a loan has been published before.
        """
        with self._lock:
            if self._closed:
                raise BusError(f"{self.topic}: the publisher is closed")
            if isinstance(payload, lane.Loan):
                loan, data = payload, payload.data
            else:
                self._look()
                loan, data = None, codec.flat(self.topic, payload)
            at_ns = self._clock()
            stamp_ns = at_ns - (reached_ns(header) - header.stamp_ns) if now else header.stamp_ns
            stamped = structs.replace(
                header, seq=self._published, stamp_ns=stamp_ns, sent_ns=at_ns, source=self.source
            )
            packed = self._coder.pack(stamped, len(data))
            if loan is not None:
                loan.spend()
            placed = None if loan is None or loan.ring is None else loan
            if self._audience.near:
                self._send_near(packed, data, placed)
            if self._audience.plain:
                self._send_plain(stamped, packed, data, placed)
            self._published += 1
        return stamped

    def close(self) -> None:
        """Send what is still on its way, for a second at most, and give the topic back."""
        self._runtime.keeper.remove(self._restore)
        with self._lock:
            self._closed = True
            if self._watch is not None:
                self._watch.close()
            self._socket.close()
            self._audience.close()
            if self._guard is not None:
                self._guard.stop()
            self._context.term()
            self._claim.release()

    def _restore(self) -> None:
        """Bind again if the files of this topic are gone: those who are connected stay, new ones find it."""
        with self._lock:
            if self._closed:
                return
            self._look_for_strangers()
            if not self._claim.whole():
                self._runtime.renew(self._claim)
                self._bind(self._runtime.ipc_endpoint(self.topic))
                _LOG.warning("%s: its socket file was removed; bound again", self.topic)
        self._runtime.clock.restore()

    def _look_for_strangers(self) -> None:
        if self._watch is None or self._refused:
            return
        self._watch.given_up()
        if self._watch.strangers():
            self._refused = True
            why = "it has other keys, or none" if self._keyed else "it wants keys, and none are given here"
            _LOG.warning("%s: refused a connection to %s: %s", self.topic, self.endpoint, why)

    def _look(self) -> None:
        if (now_s := time.monotonic()) >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            self._audience.update()

    def _bind(self, endpoint: str) -> None:
        self._socket.set(zmq.IPV6, int("[" in endpoint))
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise BusError(
                    f"{self.topic}: {endpoint} is in use by another program; choose another port"
                ) from error
            raise BusError(f"{self.topic}: cannot bind {endpoint}: {error.strerror}") from error

    def _bind_tcp(self, endpoint: str, folder: str | Path | None) -> None:
        self._watch = Watch(self._socket)
        if folder is None:
            # Where keys are not asked for, this alone refuses ZMTP 1 and 2: `Audience` could be deceived by
            # their notes, which have no address. Nobody need answer for the domain.
            self._socket.set(zmq.ZAP_DOMAIN, b"perception")
            self._bind(endpoint)
        else:
            from perception.bus import keys  # costs a process that needs none 40 ms of imports

            pair = keys.load(Path(folder))
            self._guard = keys.authenticator(self._context, pair)
            with pair.serving(self._socket):
                self._bind(endpoint)
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _send_plain(self, header: Header, packed: bytes, data: memoryview, placed: lane.Loan | None) -> None:
        """Send through ZeroMQ, which reads a payload that is not small after this has returned."""
        parts: list[bytes | memoryview] = [self._coder.name, packed]
        if self._remote is not None:
            parts = codec.encode(self.topic, *self._remote(header, data))
        elif len(data):
            parts.append(data)
        if placed is not None:  # a slot may be lent anew by then
            parts[2:] = map(bytes, parts[2:])
        self._audience.used = True
        self._socket.send_multipart(parts, copy=sum(map(len, parts[2:])) < _COPY_BELOW_BYTES)

    def _send_near(self, packed: bytes, data: memoryview, placed: lane.Loan | None) -> None:
        """Send by the lane, a large payload from where it is `placed` already or now copied to."""
        size = len(data)
        if placed is None and size >= lane.LANE_BYTES:
            placed = self._lend(size)
            if placed is None:
                if not self._crowded:
                    self._crowded = True
                    _LOG.warning("%s: no shared memory left; readers on this host miss messages", self.topic)
                return
            placed.data[:] = data
        if placed is None or (ring := placed.ring) is None:
            ring, message = None, packet.pack(packed, data)
        else:
            message = packet.pack_placed(packed, placed.slot, size, ring.commit(placed.slot))
        for sender in self._audience.near.values():
            sender.send(message, ring)

    def _lend(self, size: int) -> lane.Loan | None:
        """Return a slot with room for `size` bytes, of a new ring if need be; None if there is no memory."""
        ring = self._ring
        if ring is None or ring.stride < size:
            try:
                ring = self._ring = lane.Ring(size)
            except OSError:
                return None
        if self._queued or self._audience.wants_every:
            ring.widen()
        return ring.lend(size)
