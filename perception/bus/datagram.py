"""The lane's messages: one datagram each, from the thread that publishes straight to the one that waits.

ZeroMQ hands a message to a thread of its own on either side, and each of them wakes the next: three wake-ups
where one does. So a reader on the same host binds a unix datagram socket beside its domain's topics, and
names it where it asks for the lane (see `perception.bus.lanes`).

A datagram is `head, topic, header, payload`. A payload in shared memory is not part of it: the head then says
where it lies, and the first datagram that needs a ring brings the ring's file along (SCM_RIGHTS), so that
it can be opened even if its publisher has ended meanwhile.
"""

import os
import re
import secrets
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from perception import topics
from perception.bus import lane
from perception.bus.lane import Place, Ring
from perception.messages import Payload

_NAME: Final = re.compile(r"[0-9a-f]{16}")
_HEAD: Final = struct.Struct("<HI QQIQQ")
_LARGEST: Final = _HEAD.size + topics.MAX_TOPIC_LENGTH + topics.MAX_HEADER_BYTES + lane.LANE_BYTES
_SEND_BUFFER: Final = 212_992  # the system's usual most; it doubles the figure, which takes the largest
_FILE: Final = struct.calcsize("i")
_ANCILLARY: Final = socket.CMSG_SPACE(_FILE)
_TRUNCATED: Final = int(socket.MSG_TRUNC)
_NOWHERE: Final = Place(0, 0, 0, 0, 0)


def pack(topic: bytes, header: Payload, payload: Payload | Place) -> bytes:
    """Return a message as it travels; the payload is either bytes or where it lies."""
    if isinstance(payload, Place):
        return b"".join((_HEAD.pack(len(topic), len(header), *payload), topic, header))
    return b"".join((_HEAD.pack(len(topic), len(header), *_NOWHERE), topic, header, payload))


class Sender:
    """A publisher's way to one reader. Never waits: what the reader has no room for is lost to it."""

    def __init__(self, path: Path) -> None:
        """Connect; OSError if nobody is there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise
        self._send = self._socket.send
        self._given: Ring | None = None

    def send(self, message: bytes, ring: Ring | None) -> None:
        """Send one message; `ring` is where its payload lies, None if in the message."""
        try:
            if ring is None or ring is self._given:
                self._send(message)
            else:
                socket.send_fds(self._socket, [message], [ring.file])
                self._given = ring
        except OSError:
            return  # full, or its process has just ended

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class Receiver:
    """A reader's socket for the datagrams of all publishers of one domain."""

    def __init__(self, directory: Path) -> None:
        """Bind in the domain's directory, where those of dead processes are removed; OSError if it cannot."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _reclaim(directory)
        self.name = secrets.token_hex(8)
        self._path = path(directory, self.name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(os.fspath(self._path))
        except OSError:
            self._socket.close()
            raise
        self._buffer = memoryview(bytearray(_LARGEST))
        self._receive = self._socket.recvmsg_into

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def receive(self) -> tuple[list[bytes], Place | None, int | None] | None:
        """Return what has come first; None if nothing has, or nothing that makes sense.

        Returns:
            topic, header and, if it is not empty, payload; the place of a payload in shared memory; and the
            descriptor of a file that came along, to be closed by who gets it.
        """
        try:
            size, ancillary, flags, _ = self._receive((self._buffer,), _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        file = int.from_bytes(ancillary[0][2][:_FILE], sys.byteorder) if ancillary else None
        if size >= _HEAD.size and not flags & _TRUNCATED:
            topic_bytes, header_bytes, *place = _HEAD.unpack_from(self._buffer)
            begins = _HEAD.size + topic_bytes
            ends = begins + header_bytes
            if ends <= size:
                data = self._buffer[:size]
                parts = [bytes(data[_HEAD.size : begins]), bytes(data[begins:ends])]
                if ends < size:
                    parts.append(bytes(data[ends:]))
                return parts, Place._make(place) if place[0] else None, file
        if file is not None:
            os.close(file)
        return None

    def close(self) -> None:
        """Leave, and leave nothing behind."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


def path(directory: Path, name: str | bytes) -> Path:
    """Return the socket file of a reader, OSError if it cannot have that name."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not _NAME.fullmatch(text):
        raise FileNotFoundError(f"no reader can be called {text[:20]!r}")
    return directory / f".{text}.reader"  # no topic's name starts with a dot


def _reclaim(directory: Path) -> None:
    """Remove the socket files of readers that were killed."""
    for file in directory.glob(".*.reader"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(os.fspath(file))
            except ConnectionRefusedError:
                file.unlink(missing_ok=True)
            except OSError:
                continue
