"""Limits on the peers of a socket's TCP connections: how many there are, and how much they send.

ZeroMQ limits the size of one part, not the number of parts of a message, of subscriptions or of connections.
It stores a message until its last part has arrived, where no socket option counts it. So the kernel's count
of received bytes is read for each connection, and a connection beyond its limit is shut down; ZeroMQ then
frees what it has stored for it. Only Linux counts these bytes; elsewhere only connections are limited.

Threads: not thread-safe; the holder of the socket's lock calls every method and owns every field.
"""

import contextlib
import os
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

MAX_CONNECTIONS: Final = 512
"""Half of the 1024 files that most systems allow a process to open."""
_COUNTED: Final = sys.platform.startswith("linux")
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of socket(7): closing drops what is unsent, and the peer gets a reset at once."""
_BYTES_RECEIVED: Final = struct.Struct("=128xQ")
"""`tcpi_bytes_received` of struct tcp_info, linux/tcp.h, since Linux 4.1."""


@dataclass(slots=True)
class _Connection:
    descriptor: int
    inode: int
    """Of the socket: a descriptor may be closed and reused before it is shut down here."""
    address: str
    opened_s: float
    base: int = 0
    """Received bytes up to the newest whole message, as of the last check."""
    delivered: bool = False
    """Whether a whole message arrived since the last check."""


class Peers:
    """The connections of one socket. A connection that exceeds a limit is shut down.

    Args:
        most_bytes: how much a peer may send; with `delivered`, how much since its last whole message.
        bytes_per_s: how much more it may send for each second of the connection.
    """

    def __init__(self, most_bytes: int, bytes_per_s: int = 0) -> None:
        self._most_bytes = most_bytes
        self._bytes_per_s = bytes_per_s
        self._connections: dict[int, _Connection] = {}
        self._ended: list[str] = []
        """Reasons that `check` has not returned yet."""

    def __len__(self) -> int:
        return len(self._connections)

    def opened(self, descriptor: int) -> None:
        """Add the connection with this descriptor."""
        with contextlib.suppress(OSError), _duplicate(descriptor) as peer:
            address = str(peer.getpeername()[0])
            inode = os.fstat(peer.fileno()).st_ino
            self._connections[descriptor] = _Connection(descriptor, inode, address, time.monotonic())

    def closed(self, descriptor: int) -> None:
        """Remove a connection."""
        self._connections.pop(descriptor, None)

    def delivered(self, descriptor: int) -> None:
        """Record that a whole message arrived by the connection with this descriptor."""
        if (connection := self._connections.get(descriptor)) is not None:
            connection.delivered = True

    def end(self, descriptor: int, reason: str) -> None:
        """Shut down a connection; the next `check` returns the reason."""
        if (connection := self._connections.get(descriptor)) is not None and self._end(connection):
            self._ended.append(f"{connection.address} {reason}")

    def check(self) -> list[str]:
        """Shut down the connections beyond the limits; return a reason for each that was shut down."""
        ended, self._ended = self._ended, []
        ended += [
            f"{one.address} sent {received} bytes that are no message"
            for one in list(self._connections.values())
            if (received := self._excess(one)) and self._end(one)
        ]
        while len(self._connections) > MAX_CONNECTIONS:
            addresses = Counter(one.address for one in self._connections.values())
            address, count = addresses.most_common(1)[0]
            newest = [one for one in self._connections.values() if one.address == address][-1]
            if self._end(newest):
                ended.append(f"{address} has {count} connections")
        return ended

    def _excess(self, connection: _Connection) -> int:
        """Return how many bytes a peer has sent if they are too many, else 0."""
        try:
            with _duplicate(connection.descriptor) as peer:
                received = _received_bytes(peer)
        except OSError:  # closed; ZeroMQ reports it soon
            return 0
        if connection.delivered:
            connection.base, connection.delivered = received, False
        sent = received - connection.base
        allowed = self._most_bytes + self._bytes_per_s * (time.monotonic() - connection.opened_s)
        return sent if sent > allowed else 0

    def _end(self, connection: _Connection) -> bool:
        """Shut a connection down; return whether it was still open."""
        del self._connections[connection.descriptor]
        with contextlib.suppress(OSError), _duplicate(connection.descriptor) as peer:
            if os.fstat(peer.fileno()).st_ino == connection.inode:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                peer.shutdown(socket.SHUT_RDWR)
                return True
        return False


def _duplicate(descriptor: int) -> socket.socket:
    """Return another descriptor of a socket; OSError if it is closed or none."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _received_bytes(peer: socket.socket) -> int:
    if not _COUNTED:
        return 0
    info = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED.size)
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else 0
