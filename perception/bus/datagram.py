"""The lane's messages: one datagram each, from the thread that publishes straight to the one that waits.

ZeroMQ hands a message to a thread of its own on either side, and each of them wakes the next: three wake-ups
where one does. So a reader on the same host binds a unix datagram socket beside its domain's topics, and
names it where it asks for the lane (see `perception.bus.lanes`).

A datagram is `head, topic, header, payload`. A payload in shared memory is not part of it: the head then says
where it lies, and the first datagram that needs a ring brings the ring's file along (SCM_RIGHTS), so that
it can be opened even if its publisher has ended meanwhile.
"""

import array
import contextlib
import os
import re
import secrets
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from perception import topics
from perception.bus import lane
from perception.bus.lane import Place, Ring
from perception.messages import Payload

_NAME: Final = re.compile(r"[0-9a-f]{16}")
_HEAD: Final = struct.Struct("<HI QQIQQ")
_LARGEST: Final = _HEAD.size + topics.MAX_TOPIC_LENGTH + topics.MAX_HEADER_BYTES + lane.LANE_BYTES
_SEND_BUFFER: Final = 212_992  # the system's usual most; it doubles the figure, which takes the largest
_FILE: Final = struct.calcsize("i")
_NOWHERE: Final = Place(0, 0, 0, 0, 0)


class Datagram(NamedTuple):
    """One message as it arrived."""

    topic: bytes
    header: bytes
    payload: bytes
    place: Place | None
    """Where the payload is if it is in shared memory."""
    file: int | None
    """Descriptor of the ring's file, to be closed by who takes the datagram."""


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
        self._given: Ring | None = None

    def send(self, topic: Payload, header: Payload, payload: Payload | tuple[Ring, Place]) -> None:
        """Send one message; the payload is either bytes or where it lies."""
        ring, place = payload if isinstance(payload, tuple) else (None, _NOWHERE)
        parts = [_HEAD.pack(len(topic), len(header), *place), topic, header]
        if not isinstance(payload, tuple):
            parts.append(payload)
        with contextlib.suppress(OSError):  # full, or its process has just ended
            if ring is None or ring is self._given:
                self._socket.sendmsg(parts)
            else:
                file = array.array("i", [ring.file])
                self._socket.sendmsg(parts, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, file)])
                self._given = ring

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

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def receive(self) -> Datagram | None:
        """Return what has come first; None if nothing has, or nothing that makes sense."""
        try:
            size, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._buffer], socket.CMSG_SPACE(_FILE), socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        file = int.from_bytes(ancillary[0][2][:_FILE], "little", signed=True) if ancillary else None
        if size >= _HEAD.size and not flags & socket.MSG_TRUNC:
            topic_bytes, header_bytes, *where = _HEAD.unpack_from(self._buffer)
            place = Place(*where)
            begins, ends = _HEAD.size + topic_bytes, _HEAD.size + topic_bytes + header_bytes
            if ends <= size and (place == _NOWHERE or (place.is_sound() and ends == size)):
                data = self._buffer
                return Datagram(
                    bytes(data[_HEAD.size : begins]),
                    bytes(data[begins:ends]),
                    bytes(data[ends:size]),
                    None if place == _NOWHERE else place,
                    file,
                )
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
