"""Publishes one topic: bind, number, stamp, send. A slow reader never blocks it.

Threads: every public method may be called from any thread. `_lock` guards the ZeroMQ socket, the audience,
the ring and all fields marked with it; `Keeper`'s thread calls `_restore`, which takes the lock too. `send`
never waits for a reader: ZeroMQ drops beyond its high-water mark, a lane drops when its socket is full. Both
are seq gaps that the reader counts as lost.

After `__init__` the topic is claimed and its socket file bound; after `close` both are released. A process
that is killed leaves its files; the next publisher of the topic finds the lock free and replaces them.
"""

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
from perception.bus.gate import Gate
from perception.bus.host import Runtime
from perception.bus.peers import Peers
from perception.bus.watch import Watch
from perception.errors import BusError
from perception.messages import Header, Payload, reached_ns
from perception.units.closing import Closing

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

    from perception.bus.codec import Data

Conversion: TypeAlias = Callable[[Header, Payload], tuple[Header, Payload]]
"""Returns the header and payload to send instead of the given ones."""
_LOG: Final = logging.getLogger(__name__)
_LINGER_MS: Final = 1000
_COPY_BELOW_BYTES: Final = 64 * 1024  # passing a buffer without a copy costs more than copying a small one
_POLL_MS: Final = 10
_REQUEST_BYTES: Final = 512 * 1024
"""How much a peer of the TCP endpoint may send: far more than subscriptions take."""
_HEARTBEAT_BYTES_PER_S: Final = 256
"""How much more each second: four times what encrypted heartbeats take."""
_RECEIVE_BUFFER: Final = 2048
"""Of the kernel, for each peer of the TCP endpoint: slows down one that floods, until it is disconnected."""
_HANDSHAKE_MS: Final = 5000
_MAX_UNNAMED: Final = 1000
"""Most names given to readers through ZeroMQ: one reader may subscribe any number of times."""
_UPDATE_S: Final = 0.05
"""Shortest time between two reads of subscriptions in `send`: each costs as much as a message."""


class Publisher(Closing):
    """The only publisher of a topic on this host and domain. Any thread may use it.

    It binds the topic's ipc endpoint, and `endpoint` if given.

    Args:
        topic: such as `camera/front`.
        source: name of the publishing node; the publisher id is this name, `#` and a random number.
        runtime: the domain to publish in.
        clock: host time in ns.
        endpoint: `tcp://HOST:PORT` for readers on other hosts; port `*` selects a free one.
        insecure: allow an endpoint off loopback without keys, and processes of other users on loopback.
        keys: folder of CURVE keys; the endpoint then accepts only peers that it trusts.
        remote: converts messages for readers through ZeroMQ: on other hosts or in other languages.

    Raises:
        BusError: the topic is already published, or the endpoint is in use, malformed or unsafe.
    """

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
        self.topic = topic
        self.source = f"{source}#{secrets.token_hex(4)}"
        self._clock = clock
        self._remote = remote
        self._lock = threading.Lock()
        # Lock of all fields that change below: `_lock`.
        self._published = 0
        self._ring: lane.Ring | None = None
        self._memory_warned = False
        row = topics.lookup(topic)
        self._queued = row.policy == "queue"
        self._coder = codec.coder_of(topic)
        self._closed = False
        self._next_update_s = 0.0
        if endpoint is not None:
            endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        self._runtime = runtime
        self._claim = runtime.claim(topic)
        # A separate context: `term` waits until sent messages have left the process.
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(zmq.SNDHWM, endpoints.backlog(row))
        self._audience = Audience(self._socket, topic, runtime.base)
        self._authenticator: ThreadAuthenticator | None = None
        self._gate: Gate | None = None
        """Rights of the peers of `endpoint`; None: every peer may subscribe. Lock: `_lock`."""
        self._watch: Watch | None = None
        """Watches the endpoint for other hosts."""
        self._peers = Peers(_REQUEST_BYTES, _HEARTBEAT_BYTES_PER_S)
        self._keyed = keys is not None
        self._refusal_warned = self._excess_warned = False
        self.endpoint: str | None = None
        self._open(endpoint, keys, insecure=insecure)

    @property
    def published(self) -> int:
        """Number of messages sent; the `seq` of the next one."""
        return self._published

    @property
    def subscribers(self) -> int:
        """Number of subscriptions to this topic now."""
        with self._lock:
            self._audience.update()
            return len(self._audience)

    @property
    def readers(self) -> frozenset[str]:
        """Names of the readers of this topic now; a reader on this host has the same name at every publisher.

        Readers through ZeroMQ have no names; they are numbered `1`, `2` and so on.
        """
        with self._lock:
            self._audience.update()
            named = {name.decode("ascii", "replace") for name in self._audience.lane_readers}
            return frozenset({*named, *map(str, range(1, min(self._audience.zmq_readers, _MAX_UNNAMED) + 1))})

    def wait_for_subscriber(self, timeout_s: float) -> bool:
        """Wait for a first subscriber; return whether there is one."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._audience.update()
                if len(self._audience):
                    return True
                if self._closed or time.monotonic() >= deadline:
                    return False
                self._audience.socket_used = True
                self._socket.poll(_POLL_MS)

    def loan(self, size: int) -> lane.Loan:
        """Return memory for a payload of `size` bytes: fill it, then pass it to `send` once.

        Readers on this host read it without a copy. A loan without references is free again. Where the
        interpreter does not count references exactly, the loan is private memory, which `send` copies.
        """
        with self._lock:
            self._update_audience()
            loan = self._lend(size) if lane.COUNTED and self._audience.lane_readers else None
        return loan or lane.Loan(memoryview(bytearray(size)))

    def send(self, header: Header, payload: "Data | lane.Loan" = b"", *, now: bool = False) -> Header:
        """Send one message; return its header as sent, with `seq`, `sent_ns` and `source` set.

        For readers through ZeroMQ a large payload is not copied: do not write to it afterwards.

        Args:
            header: of the topic's message type.
            payload: bytes, array or a loan of this publisher.
            now: set `stamp_ns` to the time of sending; sound then ends at that time. Stamps of several
                threads are then in order of `seq`.

        Raises:
            MalformedMessageError: header or payload does not fit the topic; nothing is sent.
            BusError: the publisher is closed, or the loan has already been published.
        """
        with self._lock:
            if self._closed:
                raise BusError(f"{self.topic}: the publisher is closed")
            if isinstance(payload, lane.Loan):
                loan, data = payload, payload.data
            else:
                self._update_audience()
                loan, data = None, codec.flat(self.topic, payload)
            at_ns = self._clock()
            stamp_ns = at_ns - (reached_ns(header) - header.stamp_ns) if now else header.stamp_ns
            stamped = structs.replace(
                header,
                seq=self._published,
                stamp_ns=stamp_ns,
                sent_ns=at_ns,
                source=self.source,
                correction_ns=0,
            )
            packed = self._coder.pack(stamped, len(data))
            if loan is not None:
                loan.mark_published()
            placed = None if loan is None or loan.ring is None else loan
            if self._audience.lane_readers:
                self._send_by_lane(packed, data, placed)
            if self._audience.zmq_readers:
                self._send_by_zmq(stamped, packed, data, placed)
            self._published += 1
        return stamped

    def close(self) -> None:
        """Wait up to a second until sent messages have left the process, then release the topic."""
        self._runtime.keeper.remove(self._restore)
        with self._lock:
            self._closed = True
            if self._watch is not None:
                self._watch.close()
            self._socket.close()
            self._audience.close()
            if self._authenticator is not None:
                self._authenticator.stop()
            self._context.term()
            self._claim.release()

    def _open(self, endpoint: str | None, keys: str | Path | None, *, insecure: bool) -> None:
        """Bind the topic's ipc endpoint, and `endpoint` if given; close everything if that fails."""
        try:
            self._bind(self._runtime.ipc_endpoint(self.topic))
            if endpoint is not None:
                self._bind_tcp(endpoint, keys, insecure=insecure)
        except BaseException:
            self.close()
            raise
        self._runtime.keeper.add(self._restore)

    def _restore(self) -> None:
        """Bind again if the topic's files were removed; connections stay. Called by `Keeper`'s thread."""
        with self._lock:
            if self._closed:
                return
            self._check_peers()
            if self._gate is not None:
                self._gate.revoke()
            if not self._claim.intact():
                self._runtime.renew(self._claim)
                self._bind(self._runtime.ipc_endpoint(self.topic))
                _LOG.warning("%s: its socket file was removed; bound again", self.topic)
        self._runtime.clock.restore()

    def _check_peers(self) -> None:
        """Disconnect peers that send too much; log the first one, and the first one that was refused."""
        if self._watch is None:
            return
        self._watch.abandoned()
        if ended := self._peers.check():
            self._audience.socket_used = True
            self._audience.update()  # ZeroMQ closes a connection once its requests are read
            if not self._excess_warned:
                self._excess_warned = True
                _LOG.warning("%s: disconnected a peer of %s: %s", self.topic, self.endpoint, ended[0])
        if self._watch.failed_handshakes() and not self._refusal_warned:
            self._refusal_warned = True
            why = (
                "has other keys, or none"
                if self._keyed
                else "requires keys, and none are given here, or speaks ZMTP 1 or 2"
            )
            _LOG.warning("%s: refused a connection to %s: the peer %s", self.topic, self.endpoint, why)

    def _update_audience(self) -> None:
        if (now_s := time.monotonic()) >= self._next_update_s:
            self._next_update_s = now_s + _UPDATE_S
            self._audience.update()
            self._check_peers()

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

    def _bind_tcp(self, endpoint: str, folder: str | Path | None, *, insecure: bool) -> None:
        self._watch = Watch(self._socket, self._peers)
        self._socket.set(zmq.RCVBUF, _RECEIVE_BUFFER)
        self._socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        if folder is None:
            # Without keys, only this setting refuses ZMTP 1 and 2: their subscriptions have no address, which
            # `Audience` needs. The domain needs no ZAP handler.
            self._socket.set(zmq.ZAP_DOMAIN, b"perception")
            if not insecure:
                self._gate = Gate(self.topic, None)
            self._audience.gate = self._gate
            self._bind(endpoint)
        else:
            from perception.bus import keys  # 40 ms of imports

            pair = keys.load(Path(folder))
            self._gate = Gate(self.topic, pair.trust)
            self._authenticator = keys.authenticator(self._context, self._gate)
            self._audience.gate = self._gate
            with pair.serving(self._socket):
                self._bind(endpoint)
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _send_by_zmq(self, header: Header, packed: bytes, data: memoryview, placed: lane.Loan | None) -> None:
        """Send through ZeroMQ, which reads a large payload after this has returned."""
        parts: list[bytes | memoryview] = [self._coder.name, packed]
        if self._remote is not None:
            parts = codec.encode(self.topic, *self._remote(header, data))
        elif len(data):
            parts.append(data)
        if placed is not None:  # the slot may be reused before ZeroMQ has read it
            parts[2:] = map(bytes, parts[2:])
        self._audience.socket_used = True
        self._socket.send_multipart(parts, copy=sum(map(len, parts[2:])) < _COPY_BELOW_BYTES)

    def _send_by_lane(self, packed: bytes, data: memoryview, placed: lane.Loan | None) -> None:
        """Send by the lanes: a large payload is in the slot `placed`, or copied to a slot here."""
        size = len(data)
        if placed is None and size >= lane.LANE_BYTES:
            placed = self._lend(size)
            if placed is None:
                if not self._memory_warned:
                    self._memory_warned = True
                    _LOG.warning("%s: no shared memory left; readers on this host miss messages", self.topic)
                return
            placed.data[:] = data
        if placed is None or (ring := placed.ring) is None:
            ring, message = None, packet.pack(packed, data)
        else:
            message = packet.pack_placed(packed, placed.slot, size, ring.commit(placed.slot))
        for sender in self._audience.lane_readers.values():
            sender.send(message, ring)

    def _lend(self, size: int) -> lane.Loan | None:
        """Return a slot for `size` bytes, of a new ring if slots are too small; None without memory."""
        ring = self._ring
        if ring is None or ring.stride < size:
            try:
                ring = self._ring = lane.Ring(size)
            except OSError:
                return None
        if self._queued or self._audience.lossless:
            ring.use_more_groups()
        return ring.lend(size)
