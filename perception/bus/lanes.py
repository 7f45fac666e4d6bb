"""A subscriber's side of the lane: asks for it, and gives it up where rings cannot be opened.

A reader asks by a second subscription, `~NAME/` before the beginning of topics: its publishers find the
socket of that name in the runtime directory, unless they are on another host, and from then on send
there and no longer through ZeroMQ.
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
    """What one subscriber receives from publishers on its host."""

    def __init__(
        self, socket: zmq.Socket[bytes], directory: Path, poll: "select.poll", *, every: bool
    ) -> None:
        """Listen in the runtime directory, or have all messages come through the ZeroMQ socket.

        Args:
            socket: the subscriber's.
            directory: the user's runtime directory, of all domains.
            poll: is to wait for what comes by the lane.
            every: whether no message is to be missed, rather than the newest to come soon.
        """
        self._socket = socket
        self._directory = directory
        self._asked: list[str] = []
        self._receiver: Receiver | None = None
        self.receive: Callable[[int], Arrival | None] = _nothing
        """Return what came first at a descriptor, if anything did that makes sense."""
        if lane.SUPPORTED:
            with contextlib.suppress(OSError):
                self._receiver = Receiver(directory, poll, every=every, unreadable=self._give_up)
                self.receive = self._receiver.receive

    def subscribe(self, beginning: str) -> None:
        """Subscribe to all topics that begin so, by the lane from publishers on this host."""
        self._socket.subscribe(beginning)
        if self._receiver is not None:
            # ZeroMQ tells publishers in order of bytes, '~' after all letters, so that this one prevails
            self._asked.append(f"~{self._receiver.name}/{beginning}")
            self._socket.subscribe(self._asked[-1])

    def restore(self) -> None:
        """Let publishers find this reader again if its socket file is gone; OSError or BusError if not."""
        if self._receiver is not None and not self._receiver.found:
            private_directory(self._directory)
            self._receiver.listen()

    def close(self) -> None:
        """Leave nothing behind."""
        if self._receiver is not None:
            self._receiver.close()

    def _give_up(self, topic: str) -> None:
        if self._asked:
            _LOG.warning("%s: cannot open its shared memory; payloads come through the socket", topic)
        for beginning in self._asked:
            self._socket.unsubscribe(beginning)
        self._asked.clear()


def _nothing(_: int) -> None:
    """Without a lane nothing comes by it."""
