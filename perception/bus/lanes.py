"""A subscriber's side of the lanes: requests them, and leaves them where rings cannot be opened.

A reader requests a lane by a second ZeroMQ subscription, `~NAME/PREFIX`. A publisher on this host finds the
socket NAME in the runtime directory; from then on it sends there and no longer through ZeroMQ. A publisher on
another host does not find it and continues through ZeroMQ. Unsubscribing `~NAME/PREFIX` reverses this.

Threads: not thread-safe; the holder of `Drain._socket_lock` calls every method and owns every field.
"""

import contextlib
import logging
import select
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zmq

from perception.bus import lane
from perception.bus.host import private_directory
from perception.bus.packet import Arrival, Receiver

_LOG: Final = logging.getLogger(__name__)


class Lanes:
    """The lanes of one subscriber, from all publishers on its host."""

    def __init__(
        self, socket: zmq.Socket[bytes], directory: Path, poll: "select.poll", *, lossless: bool
    ) -> None:
        """Listen in the runtime directory; where that fails, all messages come through ZeroMQ.

        Args:
            socket: the subscriber's ZeroMQ socket.
            directory: the user's runtime directory, of all domains.
            poll: sockets of lanes are registered here.
            lossless: whether publishers send to this reader before the others, as to a recorder.
        """
        self._socket = socket
        self._directory = directory
        self._lane_filters: list[tuple[zmq.Socket[bytes], str]] = []
        self._receiver: Receiver | None = None
        self.receive: Callable[[int], Arrival | None] = _no_arrival
        """Returns the next message at a descriptor, None if there is none or it is invalid."""
        if lane.SUPPORTED:
            with contextlib.suppress(OSError):
                self._receiver = Receiver(directory, poll, lossless=lossless, on_unreadable=self._leave)
                self.receive = self._receiver.receive

    def subscribe(self, beginning: str, socket: zmq.Socket[bytes] | None = None) -> None:
        """Subscribe to all topics with this prefix; publishers on this host use the lane.

        Args:
            beginning: prefix of topics.
            socket: that is connected to them; default: the one of this host's topics.
        """
        socket = socket or self._socket
        socket.subscribe(beginning)
        if self._receiver is not None:
            # ZeroMQ sends subscriptions in order of bytes, '~' after all letters: this one comes last
            self._lane_filters.append((socket, f"~{self._receiver.name}/{beginning}"))
            socket.subscribe(self._lane_filters[-1][1])

    def restore(self) -> None:
        """Create the socket file again if it was removed; OSError or BusError if that fails."""
        if self._receiver is not None and not self._receiver.reachable:
            private_directory(self._directory)
            self._receiver.listen()

    def close(self) -> None:
        """Close all lanes and remove the socket file."""
        if self._receiver is not None:
            self._receiver.close()

    def _leave(self, topic: str) -> None:
        if self._lane_filters:
            _LOG.warning("%s: cannot open its shared memory; payloads come through the socket", topic)
        for socket, beginning in self._lane_filters:
            socket.unsubscribe(beginning)
        self._lane_filters.clear()


def _no_arrival(_: int) -> None:
    """Return None: there are no lanes."""
