"""Decides which peers of a publisher's TCP endpoint may subscribe; ends connections of those that may not.

With keys: the holder of a key with the right to subscribe to the topic. ZeroMQ requests the decision during
the handshake (`callback`, in the authenticator's thread); it is repeated for each request, since the right
may be revoked between. Without keys, on loopback: processes of the same user, since every user of a host can
connect to its loopback addresses. Peers of the topic's ipc socket are of this user: its folder is open to no
other.

Threads: `callback` may be called from any thread; all else by the holder of the publisher's lock.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import zmq

from perception.bus import owner
from perception.units.bounded import MAX_NAMES

if TYPE_CHECKING:
    from perception.bus.trust import Trust

_LOG: Final = logging.getLogger(__name__)
_SOURCE: Final = int(zmq.SRCFD)
_IPC: Final = "localhost:"
"""Prefix of the address that ZeroMQ gives to peers of ipc sockets, before their user and process id."""


class Gate:
    """The rights of the peers of one topic.

    Args:
        topic: that is published.
        trust: rights by key; None without keys: peers must be processes of this user.
        is_own: whether a process of this user holds the other end of a connection; replaced in tests.
    """

    def __init__(
        self, topic: str, trust: "Trust | None", is_own: Callable[[int], bool] = owner.is_own
    ) -> None:
        self._topic = topic
        self._trust = trust
        self._is_own = is_own
        self._admitted: dict[int, tuple[int, bytes]] = {}
        """Descriptor -> inode and key of connections that may subscribe; a closed one is replaced."""
        self._named: set[str] = set()
        """Hosts that a warning was logged for."""
        self.refused = 0
        """Requests of peers that may not subscribe."""

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a peer that has proved to own `key` (z85) may connect. Called by pyzmq."""
        assert self._trust is not None
        self._trust.refresh()
        if self._trust.may_subscribe(key, self._topic):
            return True
        if (name := self._trust.name_of(key)) and name not in self._named and len(self._named) < MAX_NAMES:
            self._named.add(name)
            _LOG.warning("%s: refused '%s': its key has no right to subscribe to it", self._topic, name)
        return False

    def admits(self, frame: zmq.Frame) -> bool:
        """Return whether the peer that sent a request may subscribe; else its connection is ended."""
        if str(frame.get("Peer-Address")).startswith(_IPC):
            return True
        descriptor = int(frame.get(_SOURCE))
        inode, key = owner.inode_of(descriptor), self._key(frame)
        if self._admitted.get(descriptor) == (inode, key):
            return True
        if self._may(descriptor, key):
            self._admitted[descriptor] = inode, key
            return True
        self.refused += 1
        owner.cut(descriptor, inode)
        if self._trust is None and self.refused == 1:
            _LOG.warning(
                "%s: refused a process of another user; give keys (perception guide security)", self._topic
            )
        return False

    def cut(self, frame: zmq.Frame) -> None:
        """End the connection of the peer that sent a request; it may connect again."""
        if not str(frame.get("Peer-Address")).startswith(_IPC):
            descriptor = int(frame.get(_SOURCE))
            owner.cut(descriptor, owner.inode_of(descriptor))

    def revoke(self) -> None:
        """End the connections whose key has lost its right since the last call."""
        if self._trust is None:
            return
        self._trust.refresh()
        for descriptor, (inode, key) in list(self._admitted.items()):
            if not self._trust.may_subscribe(key, self._topic):
                del self._admitted[descriptor]
                owner.cut(descriptor, inode)
                _LOG.warning(
                    "%s: disconnected a reader: key %s… lost its right",
                    self._topic,
                    key[:8].decode(),
                )

    def _may(self, descriptor: int, key: bytes) -> bool:
        if self._trust is None:
            return self._is_own(descriptor)
        return self._trust.may_subscribe(key, self._topic)

    def _key(self, frame: zmq.Frame) -> bytes:
        """Return the public key of the peer, z85, as the authenticator wrote it."""
        return str(frame.get("User-Id")).encode() if self._trust is not None else b""
