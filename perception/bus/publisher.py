"""Publish one topic: bind, number, stamp, send. Nobody who is slow to read can hold it up."""

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import zmq

from perception import topics
from perception.bus import codec, endpoints
from perception.bus.host import Runtime
from perception.errors import BusError
from perception.messages import Header

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

    from perception.bus.codec import Data

_LINGER_MS: Final = 1000
_COPY_BELOW_BYTES: Final = 64 * 1024  # handing a buffer over costs more than copying a small one
_POLL_MS: Final = 10
_MAX_NOTE_BYTES: Final = 1024  # readers send subscriptions only; a CURVE handshake takes some 300


class Publisher:
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
        keys: Path | None = None,
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

        Raises:
            BusError: the topic is published already, the endpoint is busy, malformed or unsafe.
        """
        self.topic = topic
        self.source = f"{source}#{secrets.token_hex(4)}"
        self._clock = clock
        self._published = 0
        self._subscribers = 0
        self._lock = threading.Lock()
        row = topics.lookup(topic)
        if endpoint is not None:
            endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        self._claim = runtime.claim(topic)
        # A context of its own: ending it waits until what was sent is on its way.
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.set(zmq.LINGER, _LINGER_MS)
        self._socket.set(zmq.SNDHWM, endpoints.backlog(row))
        self._socket.set(zmq.XPUB_VERBOSER, 1)  # report every subscription, so that they can be counted
        self._socket.set(zmq.MAXMSGSIZE, _MAX_NOTE_BYTES)
        self._guard: ThreadAuthenticator | None = None
        self.endpoint: str | None = None
        try:
            self._bind(runtime.ipc_endpoint(topic))
            if endpoint is not None:
                self._bind_tcp(endpoint, keys)
        except BaseException:
            self.close()
            raise

    @property
    def published(self) -> int:
        """Messages sent so far; the next one gets this `seq`."""
        return self._published

    @property
    def subscribers(self) -> int:
        """Subscriptions to this topic in force now."""
        with self._lock:
            self._count_subscribers()
            return self._subscribers

    def wait_for_subscriber(self, timeout_s: float) -> bool:
        """Wait until somebody subscribes; return whether somebody did."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._count_subscribers()
                if self._subscribers:
                    return True
                if self._socket.closed or time.monotonic() >= deadline:
                    return False
                self._socket.poll(_POLL_MS)

    def send(self, header: Header, payload: "Data" = b"") -> Header:
        """Send one message and return its header as sent, with `seq`, `sent_ns` and `source` filled.

        A large payload is not copied: it must not be written to afterwards.

        Raises:
            MalformedMessageError: header or payload is not what the topic carries; nothing is sent.
            BusError: the publisher is closed.
        """
        with self._lock:
            if self._socket.closed:
                raise BusError(f"{self.topic}: the publisher is closed")
            self._count_subscribers()
            stamped = header.model_copy(
                update={"seq": self._published, "sent_ns": self._clock(), "source": self.source}
            )
            parts = codec.encode(self.topic, stamped, payload)
            small = len(parts) < 3 or len(parts[2]) < _COPY_BELOW_BYTES
            self._socket.send_multipart(parts, copy=small)
            self._published += 1
            return stamped

    def close(self) -> None:
        """Send what is still on its way, for a second at most, and give the topic back."""
        with self._lock:
            self._socket.close()
            if self._guard is not None:
                self._guard.stop()
            self._context.term()
            self._claim.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

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

    def _bind_tcp(self, endpoint: str, folder: Path | None) -> None:
        if folder is None:
            self._bind(endpoint)
        else:
            from perception.bus import keys  # costs a process that needs none 40 ms of imports

            pair = keys.load(folder)
            self._guard = keys.authenticator(self._context, pair)
            with pair.serving(self._socket):
                self._bind(endpoint)
        self.endpoint = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def _count_subscribers(self) -> None:
        while not self._socket.closed and int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            note = self._socket.recv()
            if note[:1] in (b"\0", b"\1") and self.topic.encode().startswith(note[1:]):
                self._subscribers += 1 if note[:1] == b"\1" else -1
