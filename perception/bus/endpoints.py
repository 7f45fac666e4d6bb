"""What a socket is given: an endpoint that is well-formed and safe, a bound on what may pile up."""

import ipaddress
import logging
from typing import Final

from perception.errors import BusError
from perception.profile.endpoint import parse
from perception.topics import Topic

_LOG: Final = logging.getLogger(__name__)
# A recorder may be stopped for a second; a late reader drains them all and takes the last.
_LATEST_BACKLOG: Final = 32


def backlog(row: Topic) -> int:
    """Return how many messages ZeroMQ may hold on either side of a connection (its high-water mark)."""
    return row.depth if row.policy == "queue" else _LATEST_BACKLOG


def check(endpoint: str, *, encrypted: bool, insecure: bool) -> None:
    """Refuse an endpoint that is malformed, or that leaves the host in the clear unasked; BusError."""
    if not is_safe(endpoint, encrypted=encrypted, insecure=insecure):
        raise BusError(unsafe(endpoint))
    if not is_safe(endpoint, encrypted=encrypted, insecure=False):
        _LOG.warning("INSECURE: %s is neither encrypted nor authenticated", endpoint)


def is_safe(endpoint: str, *, encrypted: bool, insecure: bool) -> bool:
    """Return whether an endpoint stays on this host, is encrypted or need not; BusError if malformed."""
    return _is_loopback(parse(endpoint).host) or encrypted or insecure


def unsafe(endpoint: str) -> str:
    """Say why an endpoint is refused, and what to do."""
    return (
        f"{endpoint} leaves this host unencrypted; give a keys folder (perception keys new), "
        "or set insecure = true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")
