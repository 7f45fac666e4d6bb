"""The lane's messages: one packet each, from the thread that publishes straight to the one that waits.

ZeroMQ hands a message to a thread of its own on either side, and each of them wakes the next: three wake-ups
where one does. So a reader on the same host listens on a unix socket beside its domain's topics, and names it
where it asks for the lane (see `perception.bus.lanes`). What has been sent lies in the kernel: it arrives
even if its publisher has been killed meanwhile.

A packet is `head, topic, header, payload`. A payload in shared memory is not part of it: the head then says
where it lies, and the first packet that needs a ring brings the ring's file along (SCM_RIGHTS).
"""

import contextlib
import os
import re
import secrets
import select
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from perception import topics
from perception.bus import lane
from perception.bus.lane import Place, Ring
from perception.messages import Payload

_EVERY: Final = "every"
_NEWEST: Final = "newest"  # after the other in order of names: see `perception.bus.audience`
_NAME: Final = re.compile(rf"({_EVERY}|{_NEWEST})[0-9a-f]{{8}}")
_HEAD: Final = struct.Struct("<HI QQIQQ")
_LARGEST: Final = _HEAD.size + topics.MAX_TOPIC_LENGTH + topics.MAX_HEADER_BYTES + lane.LANE_BYTES
_SEND_BUFFER: Final = 212_992  # what systems usually allow at most; it takes some 300 small messages
_UNACCEPTED: Final = 128  # publishers that may have connected since the reader last looked
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
        self._socket = _socket()
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
    """A reader's socket for the packets of all publishers of one domain."""

    def __init__(self, directory: Path, poll: "select.poll", *, every: bool) -> None:
        """Listen in the domain's directory, where the sockets of dead processes are removed.

        Args:
            directory: of the domain.
            poll: is to wait for what comes; `receive` then takes it.
            every: whether this reader is to miss nothing; publishers serve it before the others.

        Raises:
            OSError: it cannot listen there.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _reclaim(directory)
        self.name = f"{_EVERY if every else _NEWEST}{secrets.token_hex(4)}"
        self._path = path(directory, self.name)
        self._poll = poll
        self._listener = _socket()
        self._connections: dict[int, socket.socket] = {}
        unready = self._path.with_suffix("")  # until it listens, it would look like one of the dead
        try:
            self._listener.bind(os.fspath(unready))
            self._listener.listen(_UNACCEPTED)
            unready.rename(self._path)
        except OSError:
            self._listener.close()
            unready.unlink(missing_ok=True)
            raise
        poll.register(self._listener, select.POLLIN)
        self._buffer = memoryview(bytearray(_LARGEST))

    def receive(self, descriptor: int) -> tuple[list[bytes], Place | None, int | None] | None:
        """Return what has come first at a descriptor; None if nothing has, or nothing that makes sense.

        Returns:
            topic, header and, if it is not empty, payload; the place of a payload in shared memory; and the
            descriptor of a file that came along, to be closed by who gets it.
        """
        connection = self._connections.get(descriptor)
        if connection is None:
            self._accept()
            return None
        try:
            size, ancillary, flags, _ = connection.recvmsg_into(
                (self._buffer,), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None
        except OSError:
            size, ancillary, flags = 0, [], 0
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
        if not size:
            self._drop(descriptor)
        return None

    def close(self) -> None:
        """Leave, and leave nothing behind."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection, select.POLLIN)

    def _drop(self, descriptor: int) -> None:
        """Forget a publisher that has gone, all of whose messages have been taken."""
        self._poll.unregister(descriptor)
        self._connections.pop(descriptor).close()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


def wants_every(name: bytes) -> bool:
    """Return whether the reader of this name is to miss nothing."""
    return name.startswith(_EVERY.encode())


def path(directory: Path, name: str | bytes) -> Path:
    """Return the socket file of a reader, OSError if it cannot have that name."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not _NAME.fullmatch(text):
        raise FileNotFoundError(f"no reader can be called {text[:20]!r}")
    return directory / f".{text}.reader"  # no topic's name starts with a dot


def _reclaim(directory: Path) -> None:
    """Remove the socket files of readers that were killed."""
    for file in directory.glob(".*.reader"):
        with _socket() as probe:
            try:
                probe.connect(os.fspath(file))
            except ConnectionRefusedError:
                file.unlink(missing_ok=True)
            except OSError:
                continue
