"""Packets of the lanes: one per message, from the publishing thread directly to the waiting thread.

ZeroMQ passes a message to its own thread on either side, and each of them wakes the next: three wake-ups
instead of one. So a reader on the same host listens on a unix socket (SOCK_SEQPACKET) in the runtime
directory and names it when it requests a lane (see `perception.bus.lanes`). A sent packet is in the kernel:
it arrives even if its publisher is killed.

Protocol of a connection:
- The first packet is the topic. All others are `head, header, payload`.
- A payload in shared memory is not part of the packet: the head holds slot, size and generation.
- The first packet that refers to a new ring carries the ring's file descriptor (SCM_RIGHTS). The packet `+`
  precedes it, because receiving with descriptors takes twice as long.
- A packet of 0 bytes is the end of the connection.

Threads: `Publisher._lock` guards a `Sender`, `Drain._socket_lock` a `Receiver`. Neither ever waits.
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

_LOSSLESS: Final = "every"
_NEWEST: Final = "newest"  # sorts after "every": see `Audience.lane_readers`
_NAME: Final = re.compile(rf"({_LOSSLESS}|{_NEWEST})[0-9a-f]{{8}}")
_HEAD: Final = struct.Struct("<IIIQ")
"""Header size in bytes; slot, size and generation of a payload in shared memory, else zeros."""
_HEAD_BYTES: Final = _HEAD.size
_MAX_PACKET: Final = _HEAD_BYTES + topics.MAX_HEADER_BYTES + lane.LANE_BYTES
_FILE_FOLLOWS: Final = b"+"
_SEND_BUFFER: Final = 212_992  # usual upper limit of systems; room for some 300 small messages
_LISTEN_BACKLOG: Final = 128  # publishers that may connect between two reads
_FILE: Final = struct.calcsize("i")
_ANCILLARY: Final = socket.CMSG_LEN(_FILE)  # CMSG_SPACE would let a second file in
_FULL_SIZE: Final = int(socket.MSG_TRUNC)  # return the packet's full size even if the buffer is smaller
_FILE_REFUSED: Final = int(
    socket.MSG_CTRUNC
)  # the kernel dropped the descriptor: too many open files in this process
_TAKE_FILE: Final = int(socket.MSG_CMSG_CLOEXEC) | _FULL_SIZE
Arrival: TypeAlias = tuple[Coder, bytes, Payload | None]
"""(coder of the topic, header, payload); payload None if its ring is not open or its slot was reused."""


def pack(header: bytes, payload: Payload) -> bytes:
    """Return the packet of a message with its payload."""
    return b"".join((_HEAD.pack(len(header), 0, 0, 0), header, payload))


def pack_placed(header: bytes, slot: int, size: int, generation: int) -> bytes:
    """Return the packet of a message whose payload is in shared memory."""
    return _HEAD.pack(len(header), slot, size, generation) + header


class Sender:
    """A publisher's connection to one reader. Never waits: without room in the socket a message is lost."""

    def __init__(self, path: Path, topic: bytes) -> None:
        """Connect, to publish `topic`; OSError without a listening reader."""
        self._socket = _socket()
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._socket.connect(os.fspath(path))
            self._socket.send(topic)
        except OSError:
            self._socket.close()
            raise
        self._send = self._socket.send
        self._sent_ring: Ring | None = None

    def send(self, message: bytes, ring: Ring | None) -> None:
        """Send one packet; `ring` holds its payload, None if the packet does."""
        try:
            if ring is None or ring is self._sent_ring:
                self._send(message)
            else:
                self._send(_FILE_FOLLOWS)
                socket.send_fds(self._socket, [message], [ring.file])
                self._sent_ring = ring
        except OSError:
            return  # the socket is full, or the reader's process has ended

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


class _Connection:
    """A publisher's connection, from the reader's side."""

    __slots__ = ("coder", "reader", "receive", "socket")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.receive: Callable[[memoryview, int, int], int] = connection.recv_into
        self.coder: Coder | None = None
        self.reader: lane.Reader | None = None


class Receiver:
    """A reader's listening socket and its connections from all publishers on this host."""

    def __init__(
        self, directory: Path, poll: "select.poll", *, lossless: bool, on_unreadable: Callable[[str], None]
    ) -> None:
        """Listen in the runtime directory, and remove the socket files of ended processes there.

        Args:
            directory: the user's runtime directory, of all domains.
            poll: sockets are registered here; call `receive` for each that is ready.
            lossless: whether publishers send to this reader before the others.
            on_unreadable: called with the topic whose shared memory cannot be opened.

        Raises:
            OSError: it cannot listen there.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_dead(directory)
        self.name = f"{_LOSSLESS if lossless else _NEWEST}{secrets.token_hex(4)}"
        self._path = path(directory, self.name)
        self._poll = poll
        self._on_unreadable = on_unreadable
        self._listener = _listening(self._path)
        self._connections: dict[int, _Connection] = {}
        poll.register(self._listener, select.POLLIN)
        self._buffer = memoryview(bytearray(_MAX_PACKET))

    @property
    def reachable(self) -> bool:
        """Whether publishers can find this reader: its socket file exists."""
        return self._path.exists()

    def listen(self) -> None:
        """Create the socket file again; connections stay. OSError if that fails."""
        listener = _listening(self._path)
        while self._accept():
            pass
        self._poll.unregister(self._listener)
        self._listener.close()
        self._listener = listener
        self._poll.register(listener, select.POLLIN)

    def receive(self, descriptor: int) -> Arrival | None:
        """Return the next message at a descriptor; None if there is none, or it is not a message."""
        peer = self._connections.get(descriptor)
        if peer is None:
            self._accept()
            return None
        try:
            size = peer.receive(self._buffer, _MAX_PACKET, _FULL_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            size = 0
        if not _HEAD_BYTES <= size <= _MAX_PACKET or peer.coder is None:
            self._handle_control(peer, descriptor, size)
            return None
        header_bytes, slot, payload_bytes, generation = _HEAD.unpack_from(self._buffer)
        ends = _HEAD_BYTES + header_bytes
        if ends > size:
            return None
        header = self._buffer[_HEAD_BYTES:ends].tobytes()
        if not generation:
            return peer.coder, header, self._buffer[ends:size].tobytes()
        reader = peer.reader
        return peer.coder, header, None if reader is None else reader.payload(slot, payload_bytes, generation)

    def close(self) -> None:
        """Close all connections and remove the socket file."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for peer in self._connections.values():
            peer.socket.close()
        self._connections.clear()

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return False
        self._connections[connection.fileno()] = _Connection(connection)
        self._poll.register(connection, select.POLLIN)
        return True

    def _open(self, peer: _Connection, file: int) -> None:
        """Read later payloads from the ring in this file descriptor."""
        try:
            peer.reader = lane.Reader(file)
        except (OSError, ValueError):
            self._drop_ring(peer)
        finally:
            os.close(file)

    def _drop_ring(self, peer: _Connection) -> None:
        """Close the previous ring: slot numbers now refer to a ring that cannot be opened."""
        peer.reader = None
        if peer.coder is not None:
            self._on_unreadable(peer.coder.topic)

    def _handle_control(self, peer: _Connection, descriptor: int, size: int) -> None:
        """Process a packet that is no message: the topic, `+`, or the end of the connection."""
        if not size:
            self._poll.unregister(descriptor)
            self._connections.pop(descriptor).socket.close()
        elif peer.coder is None:
            with contextlib.suppress(MalformedMessageError):
                peer.coder = coder_named(self._buffer[:size].tobytes())
        elif self._buffer[:size].tobytes() == _FILE_FOLLOWS:
            peer.receive = partial(self._receive_with_file, peer)

    def _receive_with_file(self, peer: _Connection, buffer: memoryview, *_: int) -> int:
        size, ancillary, flags, _ = peer.socket.recvmsg_into((buffer,), _ANCILLARY, _TAKE_FILE)
        peer.receive = peer.socket.recv_into
        if ancillary:
            self._open(peer, int.from_bytes(ancillary[0][2][:_FILE], sys.byteorder))
        elif flags & _FILE_REFUSED:
            self._drop_ring(peer)
        return size


def _listening(path: Path) -> socket.socket:
    """Return a socket that listens at a path; OSError if that fails."""
    listener = _socket()
    unready = path.with_suffix("")  # renamed once it listens: before, it looks like that of an ended process
    try:
        listener.bind(os.fspath(unready))
        listener.listen(_LISTEN_BACKLOG)
        unready.rename(path)
    except OSError:
        listener.close()
        unready.unlink(missing_ok=True)
        raise
    return listener


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)


def is_lossless(name: bytes) -> bool:
    """Return whether the reader of this name must receive every message."""
    return name.startswith(_LOSSLESS.encode())


def path(directory: Path, name: str | bytes) -> Path:
    """Return the socket file of a reader; OSError if the name is not one of a reader."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not _NAME.fullmatch(text):
        raise FileNotFoundError(f"not the name of a reader: {text[:20]!r}")
    return directory / f".{text}.reader"  # no topic's name starts with a dot


def remove_dead(directory: Path) -> None:
    """Remove the socket files of ended readers."""
    for file in directory.glob(".*.reader"):
        with _socket() as probe:
            try:
                probe.connect(os.fspath(file))
            except ConnectionRefusedError:
                file.unlink(missing_ok=True)
            except OSError:
                continue
