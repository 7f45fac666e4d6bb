"""A publisher on another host, or of another user: a socket of its own, and which topics it is accepted for.

ZeroMQ does not say by which connection of a socket a message came, so each endpoint of `connect` has a
socket. From an endpoint only those topics are accepted that it is named for: the pattern in `connect` that
matches a topic most closely decides which endpoint that is. A `*` at the beginning never stands for
`control/...`. With keys, the publisher must hold the key that the endpoint names, and this key must have the
right to the topic. On loopback without keys, it must be a process of this user: every user of a host can bind
its loopback addresses.

Threads: not thread-safe; the holder of `Drain._socket_lock` calls every method and owns every field.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import zmq

from perception import topics
from perception.bus import owner
from perception.bus.peers import Peers
from perception.bus.watch import Watch
from perception.errors import BusError
from perception.profile.endpoint import parse
from perception.units.bounded import Recent

if TYPE_CHECKING:
    from perception.bus.keys import Keys

_HEARTBEAT_MS: Final = 1000  # a dead host closes no connection
_SOURCE: Final = int(zmq.SRCFD)
_MAX_PARTS: Final = 4
"""Parts of a message that are read; more than a valid message has."""


class Remote:
    """One endpoint of `connect`.

    Args:
        socket: not yet connected, with the settings of all sockets of the subscriber.
        endpoint: `tcp://[NAME@]HOST:PORT`.
        patterns: of `connect`, for this endpoint.
        named_for: returns the patterns of `connect` that match a topic most closely.
        keys: of this host; None: without encryption.
        peers: publishers on other hosts; the caller checks them.
        own_only: accept messages of processes of this user only.

    Raises:
        BusError: the key of the publisher is not known, or the endpoint cannot be connected to.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        endpoint: str,
        patterns: Sequence[str],
        named_for: Callable[[str], Collection[str]],
        keys: "Keys | None",
        peers: Peers,
        *,
        own_only: bool,
    ) -> None:
        self.socket = socket
        self.endpoint = endpoint
        self.patterns = patterns
        self._parsed = parse(endpoint)
        self._named_for = named_for
        self._keys = keys
        self._own_only = own_only
        self._accepted: Recent[str, bool] = Recent()
        self._judged: tuple[int, int, bool] = (-1, 0, True)
        """Descriptor and inode of the connection last checked; whether it is of a process of this user."""
        self._key = self._publisher_key()
        self._connected = False
        self._peers = peers
        self._watch = Watch(socket, self._peers)
        self.descriptor = int(socket.get(zmq.FD))
        socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        socket.set(zmq.IPV6, int(":" in self._parsed.host))
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"{self.patterns[0]}: {self.endpoint}"

    def accepts(self, topic: str) -> bool:
        """Return whether a message of this topic is taken from this endpoint."""
        known = self._accepted.get(topic)
        if known is None:
            known = self._accepted[topic] = self._decide(topic)
        return known

    def receive(self) -> list[zmq.Frame] | None:
        """Return the parts of the next message; None if its publisher may not use this endpoint."""
        frames = [self.socket.recv(copy=False)]
        descriptor = int(frames[0].get(_SOURCE))
        self._peers.delivered(descriptor)
        while frames[-1].more and len(frames) < _MAX_PARTS:
            frames.append(self.socket.recv(copy=False))
        is_trusted = self._is_trusted(descriptor)  # nobody owns a connection that has ended
        if frames[-1].more:
            self._peers.end(descriptor, "sent a message of more than three parts")
            while self.socket.recv(copy=False).more:
                pass
        return frames if is_trusted else None

    def check(self) -> Iterator[str]:
        """Connect again where ZeroMQ does not, or where keys have changed; yield what is wrong."""
        abandoned, failed = bool(self._watch.abandoned()), bool(self._watch.failed_handshakes())
        if self._keys is not None and not self._has_rights():
            yield f"{self}: its key has no right to publish this, or it was revoked"
        elif abandoned:
            self._disconnect()
            self._connect()
        if failed:
            yield f"{self}: {self._handshake_reason()}"
        elif abandoned:
            yield f"{self} broke the protocol; connecting again"

    def close(self) -> None:
        """Disconnect."""
        self._watch.close()
        self.socket.close(linger=0)

    def _decide(self, topic: str) -> bool:
        if not set(self._named_for(topic)) & set(self.patterns):
            return False
        return self._keys is None or self._keys.trust.may_publish(self._key, topic)

    def _publisher_key(self) -> bytes:
        if self._keys is None:
            if self._parsed.name:
                raise BusError(f"{self} names a key; give the folder of keys")
            return b""
        found = {self._keys.trust.publisher_key(self._parsed.name, pattern) for pattern in self.patterns}
        if len(found) > 1:
            raise BusError(f"{self.endpoint}: {', '.join(self.patterns)} are of different hosts")
        return found.pop()

    def _has_rights(self) -> bool:
        """Return whether the publisher's key has a right here; where that changed, disconnect or connect."""
        assert self._keys is not None
        self._accepted.clear()
        try:
            key = self._publisher_key()
        except BusError:
            key = b""
        able = self._keys.trust.may_publish_any(key, self.patterns)
        if self._connected and not (able and key == self._key):
            self._disconnect()
        self._key = key
        if able and not self._connected:
            self._connect()
        return able

    def _is_trusted(self, descriptor: int) -> bool:
        """Return whether the connection with this descriptor may be used; else end it."""
        if not self._own_only:
            return True
        inode = owner.inode_of(descriptor)
        if self._judged[:2] != (descriptor, inode):
            self._judged = descriptor, inode, owner.is_own(descriptor)
        if not self._judged[2]:
            self._peers.end(descriptor, "is a process of another user")
        return self._judged[2]

    def _connect(self) -> None:
        if self._keys is not None:
            self._keys.connect(self.socket, self._key)
        try:
            self.socket.connect(self._parsed.address)
        except zmq.ZMQError as error:
            raise BusError(
                f"{self.patterns[0]}: cannot connect to {self.endpoint}: {error.strerror}"
            ) from error
        self._connected = True

    def _disconnect(self) -> None:
        if self._connected:
            self.socket.disconnect(self._parsed.address)
        self._connected = False

    def _handshake_reason(self) -> str:
        if self._keys:
            return "handshake failed: the publisher has other keys, or none, or gives this host no right"
        return "handshake failed: the publisher requires keys and none are given here, or it is no publisher"


def closest(patterns: Collection[str], topic: str) -> list[str]:
    """Return those patterns of `connect` that match a topic most closely; `*` matches no `control/...`."""
    control = topics.kind_of(topic) == "control"
    found = [one for one in patterns if topics.matches(one, topic) and not (control and one == "*")]
    best = max(map(_closeness, found), default=None)
    return [one for one in found if _closeness(one) == best]


def _closeness(pattern: str) -> tuple[bool, int]:
    return not pattern.endswith("*"), len(pattern)


def filters(patterns: Collection[str], wanted: Collection[str]) -> set[str]:
    """Return the prefixes to subscribe to: of topics that match one of both."""
    pairs = [(one, other) for one in patterns for other in wanted if topics.overlap(one, other)]
    return fewest(max(pair, key=_closeness).removesuffix("*") for pair in pairs)


def fewest(beginnings: Iterable[str]) -> set[str]:
    """Return the fewest prefixes that match the same, so that no topic is subscribed to twice."""
    all_of = set(beginnings)
    return {one for one in all_of if not any(one != other and one.startswith(other) for other in all_of)}
