"""Who listens to one topic, and whether by the lane or through ZeroMQ."""

import select
from pathlib import Path
from typing import Final

import zmq

from perception.bus import packet

_POLLIN: Final = int(zmq.POLLIN)  # plain numbers: arithmetic of enums is slow
_EVENTS: Final = int(zmq.EVENTS)
_MAX_NOTE_BYTES: Final = 1024  # readers send subscriptions only; a CURVE handshake takes some 300
_NOTES_AT_ONCE: Final = 256
"""A flood of notes delays no message by more than a millisecond; the others wait in ZeroMQ."""


class Audience:
    """Answers the subscriptions that reach an XPUB socket.

    A reader that subscribes to a topic and then asks for the lane gets one of them only: ZeroMQ's manual
    mode lets the publisher decide what each connection is subscribed to.

    ZeroMQ does not say which connection a note came from, and any peer may send any note. So nothing is
    taken from the count of subscriptions but by the end of a connection, which only ZeroMQ itself can tell.
    """

    def __init__(self, socket: zmq.Socket[bytes], topic: str, directory: Path) -> None:
        """Watch `socket`, which publishes `topic`; readers on this host listen in the runtime directory."""
        socket.set(zmq.XPUB_MANUAL, 1)
        socket.set(zmq.MAXMSGSIZE, _MAX_NOTE_BYTES)
        self._socket = socket
        self._astray = False
        """Whether ZeroMQ attributes notes to the wrong connections, until there are none left."""
        self._notes = select.poll()
        self._notes.register(int(socket.get(zmq.FD)), select.POLLIN)
        self.used = True
        """Whether the socket has been used since `update`: then it may hide that there are notes."""
        self._topic = topic.encode()
        self._directory = directory
        self._joined = 0
        """Subscriptions of connections that have not ended, those of `near` readers included."""
        self._behind = False
        """Whether notes are left for the next call of `update`: half of a reader may have gone."""
        self.near: dict[bytes, packet.Sender] = {}
        """Readers that are served by the lane, in order of name: those who are to miss nothing come first.

        Whoever is served later can then have nothing that a recorder lacks, even if this process is killed.
        """
        self.wants_every = False
        """Whether a reader on this host is to miss nothing."""

    def __len__(self) -> int:
        return self.plain + len(self.near)

    @property
    def plain(self) -> int:
        """Subscriptions that are served through ZeroMQ, never fewer than there are.

        One that is given up is counted until its publisher ends, if its connection outlives it.
        """
        return max(self._joined - len(self.near), int(self._behind))

    def update(self) -> None:
        """Take in what readers have sent since the last call."""
        if not self.used and not self._notes.poll(0):  # a fifth of the time of asking ZeroMQ
            return
        self.used = self._behind = True
        for _ in range(_NOTES_AT_ONCE):
            if self._socket.closed or not int(self._socket.get(_EVENTS)) & _POLLIN:
                self.used = self._behind = self._astray = False
                return
            self._take(self._socket.recv(copy=False))

    def close(self) -> None:
        """Let go of the readers on this host."""
        for sender in self.near.values():
            sender.close()
        self.near.clear()

    def _take(self, frame: zmq.Frame) -> None:
        note = frame.bytes
        is_note = note[:1] in (b"\0", b"\1")
        # ZeroMQ keeps the connections of notes apart from the notes, and takes one off for anything it reads:
        # what is no note puts those that wait out of step. Whoever is next then gets all of the topic.
        self._astray |= not is_note
        if self._astray:
            self._socket.set(zmq.SUBSCRIBE, self._topic)
        if not is_note:
            return
        joins, beginning = note[0] == 1, note[1:]
        if beginning[:1] == b"~":
            name, _, beginning = beginning[1:].partition(b"/")
            if self._topic.startswith(beginning) and not (joins and self._astray):
                self._change_lane(joins, name, beginning)
        elif self._topic.startswith(beginning):
            if joins or not _is_from_peer(frame):
                self._joined += 1 if joins else -1
            self._set(joins, beginning)

    def _change_lane(self, joins: bool, name: bytes, beginning: bytes) -> None:
        if joins == (name in self.near):
            return
        if joins:
            try:
                self.near[name] = packet.Sender(packet.path(self._directory, name), self._topic)
            except OSError:
                return  # a reader elsewhere
            self.near = dict(sorted(self.near.items()))
        else:
            self.near.pop(name).close()
        self.wants_every = packet.wants_every(next(iter(self.near), b""))
        self._set(not joins, beginning)

    def _set(self, joins: bool, beginning: bytes) -> None:
        if not self._astray:
            self._socket.set(zmq.SUBSCRIBE if joins else zmq.UNSUBSCRIBE, beginning)


def _is_from_peer(frame: zmq.Frame) -> bool:
    """Return whether a peer sent this, rather than ZeroMQ because the peer's connection has ended."""
    try:
        frame.get("Peer-Address")
    except zmq.ZMQError:
        return False
    return True
