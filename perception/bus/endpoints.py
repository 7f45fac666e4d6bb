"""Settings of sockets: checks that an endpoint is well-formed and safe; high-water marks."""

import logging
from typing import Final

from perception.errors import BusError
from perception.profile.endpoint import is_loopback, parse
from perception.topics import Topic

_LOG: Final = logging.getLogger(__name__)
# A recorder may stop for a second; a late reader reads them all and returns the last.
_LATEST_BACKLOG: Final = 32


def backlog(row: Topic) -> int:
    """Return ZeroMQ's high-water mark: messages that may wait on each side of a connection."""
    return row.depth if row.policy == "queue" else _LATEST_BACKLOG


def check(endpoint: str, *, encrypted: bool, insecure: bool) -> None:
    """Raise BusError if the endpoint is malformed, or off loopback without keys or `insecure`."""
    if not is_safe(endpoint, encrypted=encrypted, insecure=insecure):
        raise BusError(unsafe(endpoint))
    if not is_safe(endpoint, encrypted=encrypted, insecure=False):
        _LOG.warning("INSECURE: %s is neither encrypted nor authenticated", endpoint)


def is_safe(endpoint: str, *, encrypted: bool, insecure: bool) -> bool:
    """Return whether an endpoint is on loopback, encrypted or allowed as insecure; BusError if malformed."""
    return is_loopback(parse(endpoint).host) or encrypted or insecure


def unsafe(endpoint: str) -> str:
    """Return why an unsafe endpoint is refused, and what to do."""
    return (
        f"{endpoint} leaves this host unencrypted; give a keys folder (perception keys new), "
        "or set insecure = true (--insecure)"
    )
