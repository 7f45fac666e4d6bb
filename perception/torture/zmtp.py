"""Peers that write ZMTP 3.1 by hand, to send what no library would."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Final

LONG_S: Final = 60.0
GREETING: Final = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01NULL" + bytes(16) + bytes(32)
PING: Final = b"\x04\x09\x04PING\0\0me"
PONG: Final = b"\x04\x07\x04PONGme"


def frame(data: bytes, *, more: bool = False) -> bytes:
    """One part of a message."""
    return (
        struct.pack(">BB", more, len(data)) + data
        if len(data) < 256
        else struct.pack(">BQ", 2 | more, len(data)) + data
    )


def read(peer: socket.socket, size: int) -> bytes:
    """Return so many bytes, fewer if the peer ends the connection."""
    data = b""
    while len(data) < size and (more := peer.recv(size - len(data))):
        data += more
    return data


def greet(peer: socket.socket, kind: bytes) -> None:
    """Shake hands as a socket of this kind, SUB or PUB; ConnectionError if the peer refuses."""
    peer.settimeout(LONG_S)
    peer.sendall(GREETING)
    if len(read(peer, len(GREETING))) < len(GREETING):
        raise ConnectionError("no greeting")
    peer.sendall(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03" + kind)
    size = read(peer, 2)
    if len(size) < 2 or b"READY" not in read(peer, size[1]):
        raise ConnectionError("not ready")


def connected(endpoint: str | None) -> socket.socket:
    """Return a connection to a publisher, before the handshake; ConnectionError if it has no endpoint."""
    if endpoint is None:
        raise ConnectionError("no endpoint")
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=LONG_S)


@contextlib.contextmanager
def subscriber(endpoint: str | None, requests: bytes = b"") -> Iterator[socket.socket]:
    """Connect as a subscriber that sends `requests`."""
    with connected(endpoint) as peer:
        greet(peer, b"SUB")
        peer.sendall(requests)
        yield peer


@contextlib.contextmanager
def publisher() -> Iterator[tuple[str, socket.socket]]:
    """Listen as a publisher; yield the endpoint and the listening socket: `accept`, then `greet`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG_S)
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}", listener


def sent_until_disconnected(peer: socket.socket, data: bytes, most: int) -> int:
    """Send `data` again and again until the peer ends the connection or `most` bytes are sent."""
    peer.settimeout(LONG_S)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            peer.sendall(data)
            sent += len(data)
    return sent


FLOODS: Final = {
    "parts of 1000 bytes of one request": frame(b"x" * 1000, more=True) * 100,
    "parts of one byte of one request": frame(b"x", more=True) * 10_000,
    "subscriptions to ever new topics": b"".join(frame(b"\1t%09d" % n) for n in range(5000)),
    "subscriptions to one topic": frame(b"\1text/say") * 5000,
    "unsubscriptions": frame(b"\0text/say") * 5000,
    "requests that are none": frame(b"nonsense") * 5000,
    "commands": (bytes([4, 15]) + b"\x06CANCELtext/say") * 5000,
    "pings": PING * 5000,
}
"""What a subscriber sends again and again, by what it is."""
