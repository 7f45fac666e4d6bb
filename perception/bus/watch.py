"""Watches a socket's connections for those that ZeroMQ gives up for good."""

from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)


class Watch:
    """Tells which endpoints must be connected anew.

    ZeroMQ retries after a lost connection, but not after a breach of protocol, such as a message over
    MAXMSGSIZE: without this, the publisher's next incarnation would not be heard.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._events = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)
        self._down: set[str] = set()

    def given_up(self) -> set[str]:
        """Return the endpoints that were down at the call before and that nobody has retried since."""
        before = self._down.copy()
        while int(self._events.get(_EVENTS)) & _POLLIN:
            event = recv_monitor_message(self._events)
            endpoint = event["endpoint"].decode()
            if event["event"] == zmq.EVENT_DISCONNECTED:
                self._down.add(endpoint)
            else:
                self._down.discard(endpoint)
                before.discard(endpoint)
        given_up = before & self._down
        self._down -= given_up
        return given_up

    def close(self) -> None:
        """Stop watching."""
        self._socket.disable_monitor()
        self._events.close()
