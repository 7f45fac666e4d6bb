"""The lane's messages: one packet each, from the thread that publishes straight to the one that waits.

ZeroMQ hands a message to a thread of its own on either side, and each of them wakes the next: three wake-ups
where one does. So a reader on the same host listens on a unix socket in the runtime directory, and names it
where it asks for the lane (see `perception.bus.lanes`). What has been sent lies in the kernel: it arrives
even if its publisher has been killed meanwhile.

A connection's first packet is its topic, all others are `head, header, payload`. A payload in shared memory
is not part of them: the head then says where it lies, and the first packet that needs a ring brings the
ring's file along (SCM_RIGHTS). One that says so goes before it: looking for files takes twice as long.
"""

import contextlib
import os
import re
import secrets
import select
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from perception import topics
from perception.bus import lane
from perception.bus.codec import Coder, coder_named
from perception.bus.lane import Ring
from perception.errors import MalformedMessageError
from perception.messages import Payload

_EVERY: Final = "every"
_NEWEST: Final = "newest"  # after the other in order of names: see `perception.bus.audience`
_NAME: Final = re.compile(rf"({_EVERY}|{_NEWEST})[0-9a-f]{{8}}")
_HEAD: Final = struct.Struct("<IIIQ")
"""Bytes of the header; slot, size and generation of a payload in shared memory, zeros if there is none."""
_HEAD_BYTES: Final = _HEAD.size
_LARGEST: Final = _HEAD_BYTES + topics.MAX_HEADER_BYTES + lane.LANE_BYTES
_A_FILE_COMES: Final = b"+"
_SEND_BUFFER: Final = 212_992  # what systems usually allow at most; it takes some 300 small messages
_UNACCEPTED: Final = 128  # publishers that may have connected since the reader last looked
_FILE: Final = struct.calcsize("i")
_ANCILLARY: Final = socket.CMSG_LEN(_FILE)  # CMSG_SPACE would let a second file in
_WHOLE: Final = int(socket.MSG_TRUNC)  # have the size of the packet, even if that of the buffer is less
_FILE_REFUSED: Final = int(socket.MSG_CTRUNC)  # by the kernel: this process has too many open
_TAKE_FILE: Final = int(socket.MSG_CMSG_CLOEXEC) | _WHOLE
Arrival: TypeAlias = tuple[Coder, bytes, Payload | None]
"""What reads its header, the header, and the payload; None if that is out of reach or overwritten."""


def pack(header: bytes, payload: Payload) -> bytes:
    """Return a message as it travels, its payload included."""
    return b"".join((_HEAD.pack(len(header), 0, 0, 0), header, payload))


def pack_placed(header: bytes, slot: int, size: int, generation: int) -> bytes:
    """Return a message as it travels, its payload being in shared memory."""
    return _HEAD.pack(len(header), slot, size, generation) + header


class Sender:
    """A publisher's way to one reader. Never waits: what the reader has no room for is lost to it."""

    def __init__(self, path: Path, topic: bytes) -> None:
        """Connect, to publish `topic`; OSError if nobody is there."""
        self._socket = _socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._socket.connect(os.fspath(path))
            self._socket.send(topic)
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
                self._send(_A_FILE_COMES)
                socket.send_fds(self._socket, [message], [ring.file])
                self._given = ring
        except OSError:
            return  # full, or its process has just ended

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class _Line:
    """A publisher's connection, from the reader's side."""

    __slots__ = ("coder", "reader", "receive", "socket")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.receive: Callable[[memoryview, int, int], int] = connection.recv_into
        self.coder: Coder | None = None
        self.reader: lane.Reader | None = None


class Receiver:
    """A reader's socket for the packets of all publishers on this host."""

    def __init__(
        self, directory: Path, poll: "select.poll", *, every: bool, unreadable: Callable[[str], None]
    ) -> None:
        """Listen in the runtime directory, where the sockets of dead processes are removed.

        Args:
            directory: of all domains of the user.
            poll: is to wait for what comes; `receive` then takes it.
            every: whether this reader is to miss nothing; publishers serve it before the others.
            unreadable: is told the topic whose shared memory this reader cannot open.

        Raises:
            OSError: it cannot listen there.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _reclaim(directory)
        self.name = f"{_EVERY if every else _NEWEST}{secrets.token_hex(4)}"
        self._path = path(directory, self.name)
        self._poll = poll
        self._unreadable = unreadable
        self._listener = _listening(self._path)
        self._lines: dict[int, _Line] = {}
        poll.register(self._listener, select.POLLIN)
        self._buffer = memoryview(bytearray(_LARGEST))

    @property
    def found(self) -> bool:
        """Whether publishers find this reader: nobody has removed its socket file."""
        return self._path.exists()

    def listen(self) -> None:
        """Listen again where nobody finds this reader any more; OSError if it cannot. Lines stay."""
        listener = _listening(self._path)
        while self._accept():
            pass
        self._poll.unregister(self._listener)
        self._listener.close()
        self._listener = listener
        self._poll.register(listener, select.POLLIN)

    def receive(self, descriptor: int) -> Arrival | None:
        """Return what has come first at a descriptor; None if nothing has, or nothing that makes sense."""
        line = self._lines.get(descriptor)
        if line is None:
            self._accept()
            return None
        try:
            size = line.receive(self._buffer, _LARGEST, _WHOLE)
        except BlockingIOError:
            return None
        except OSError:
            size = 0
        if not _HEAD_BYTES <= size <= _LARGEST or line.coder is None:
            self._control(line, descriptor, size)
            return None
        header_bytes, slot, payload_bytes, generation = _HEAD.unpack_from(self._buffer)
        ends = _HEAD_BYTES + header_bytes
        if ends > size:
            return None
        header = self._buffer[_HEAD_BYTES:ends].tobytes()
        if not generation:
            return line.coder, header, self._buffer[ends:size].tobytes()
        reader = line.reader
        return line.coder, header, None if reader is None else reader.payload(slot, payload_bytes, generation)

    def close(self) -> None:
        """Leave, and leave nothing behind."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for line in self._lines.values():
            line.socket.close()
        self._lines.clear()

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return False
        self._lines[connection.fileno()] = _Line(connection)
        self._poll.register(connection, select.POLLIN)
        return True

    def _open(self, line: _Line, file: int) -> None:
        """Read what is to come from the ring of this file."""
        try:
            line.reader = lane.Reader(file)
        except (OSError, ValueError):
            self._lose(line)
        finally:
            os.close(file)

    def _lose(self, line: _Line) -> None:
        """Read no more from the ring before: places in the new one would be taken for places in it."""
        line.reader = None
        if line.coder is not None:
            self._unreadable(line.coder.topic)

    def _control(self, line: _Line, descriptor: int, size: int) -> None:
        """Take what is no message: the topic, word that a file comes, or the end, all having been taken."""
        if not size:
            self._poll.unregister(descriptor)
            self._lines.pop(descriptor).socket.close()
        elif line.coder is None:
            with contextlib.suppress(MalformedMessageError):
                line.coder = coder_named(self._buffer[:size].tobytes())
        elif self._buffer[:size].tobytes() == _A_FILE_COMES:
            line.receive = partial(self._receive_with_file, line)

    def _receive_with_file(self, line: _Line, buffer: memoryview, *_: int) -> int:
        size, ancillary, flags, _ = line.socket.recvmsg_into((buffer,), _ANCILLARY, _TAKE_FILE)
        line.receive = line.socket.recv_into
        if ancillary:
            self._open(line, int.from_bytes(ancillary[0][2][:_FILE], sys.byteorder))
        elif flags & _FILE_REFUSED:
            self._lose(line)
        return size


def _listening(path: Path) -> socket.socket:
    """Return a socket that publishers find at a path; OSError if there cannot be one."""
    listener = _socket()
    unready = path.with_suffix("")  # until it listens, it would look like one of the dead
    try:
        listener.bind(os.fspath(unready))
        listener.listen(_UNACCEPTED)
        unready.rename(path)
    except OSError:
        listener.close()
        unready.unlink(missing_ok=True)
        raise
    return listener


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
