"""Limits on the peers of a socket's TCP connections: how many there are, what they send, whether they read.

ZeroMQ limits the size of one part, not the number of parts of a message, of subscriptions or of connections.
It stores a message until its last part has arrived, where no socket option counts it. So the kernel's count
of received bytes is read for each connection, and a connection beyond its limit is shut down; ZeroMQ then
frees what it has stored for it. So is one whose peer stops to read: each stores messages of its own. Only
Linux counts these bytes; elsewhere only connections are limited.

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

from perception.bus.owner import duplicate

MAX_CONNECTIONS: Final = 512
"""Half of the 1024 files that most systems allow a process to open."""
_COUNTED: Final = sys.platform.startswith("linux")
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 11)
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER of socket(7): closing drops what is unsent, and the peer gets a reset at once."""
_INFO: Final = struct.Struct("=120xQQ8xI")
"""`tcpi_bytes_acked`, `tcpi_bytes_received`, `tcpi_notsent_bytes` of linux/tcp.h, since Linux 4.6."""
STALL_S: Final = 5.0
"""A peer that takes none of the bytes that wait for it for so long is disconnected; it may connect again."""


@dataclass(slots=True)
class _Connection:
    descriptor: int
    inode: int
    """Of the socket: a descriptor may be closed and reused before it is shut down here."""
    address: str
    opened_s: float
    base: int = 0
    """Received bytes up to the newest whole message, as of the last check."""
    acked: int = 0
    """Bytes that the peer has taken, as of the last check."""
    stalled_s: float | None = None
    """Since when bytes wait for it and it takes none."""
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
        self._stall_s = STALL_S
        self._connections: dict[int, _Connection] = {}
        self._ended: list[str] = []
        """Reasons that `check` has not returned yet."""

    def __len__(self) -> int:
        return len(self._connections)

    def opened(self, descriptor: int) -> None:
        """Add the connection with this descriptor."""
        with contextlib.suppress(OSError), duplicate(descriptor) as peer:
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
        now_s = time.monotonic()
        ended += [
            f"{one.address} {reason}"
            for one in list(self._connections.values())
            if (reason := self._excess(one, now_s)) and self._end(one)
        ]
        while len(self._connections) > MAX_CONNECTIONS:
            addresses = Counter(one.address for one in self._connections.values())
            address, count = addresses.most_common(1)[0]
            newest = [one for one in self._connections.values() if one.address == address][-1]
            if self._end(newest):
                ended.append(f"{address} has {count} connections")
        return ended

    def _excess(self, connection: _Connection, now_s: float) -> str:
        """Return what a peer does too much, empty if nothing."""
        try:
            with duplicate(connection.descriptor) as peer:
                acked, received, waiting = _counts(peer)
        except OSError:  # closed; ZeroMQ reports it soon
            return ""
        if connection.delivered:
            connection.base, connection.delivered = received, False
        sent = received - connection.base
        if sent > self._most_bytes + self._bytes_per_s * (now_s - connection.opened_s):
            return f"sent {sent} bytes that are no message"
        stalls = waiting > 0 and acked == connection.acked
        connection.acked = acked
        connection.stalled_s = (connection.stalled_s or now_s) if stalls else None
        if connection.stalled_s is not None and now_s - connection.stalled_s > self._stall_s:
            return f"read nothing for {self._stall_s:g} s"
        return ""

    def _end(self, connection: _Connection) -> bool:
        """Shut a connection down; return whether it was still open."""
        del self._connections[connection.descriptor]
        with contextlib.suppress(OSError), duplicate(connection.descriptor) as peer:
            if os.fstat(peer.fileno()).st_ino == connection.inode:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                peer.shutdown(socket.SHUT_RDWR)
                return True
        return False


def _counts(peer: socket.socket) -> tuple[int, int, int]:
    """Return how many bytes the peer has taken and sent, and how many wait for it."""
    if not _COUNTED:
        return 0, 0, 0
    info = peer.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size)
    if len(info) < _INFO.size:
        return 0, 0, 0
    acked, received, waiting = _INFO.unpack(info)
    return int(acked), int(received), int(waiting)
