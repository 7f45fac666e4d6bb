"""What a socket is given: an endpoint that is well-formed and safe, a bound on what may pile up."""

import ipaddress
import logging
from typing import Final

from perception.endpoint import parse
from perception.errors import BusError
from perception.topics import Topic

_LOG: Final = logging.getLogger(__name__)
# A recorder may be stopped for a second; a late reader drains them all and takes the last.
_LATEST_BACKLOG: Final = 32


def backlog(row: Topic) -> int:
    """Return how many messages ZeroMQ may hold on either side of a connection (its high-water mark)."""
    return row.depth if row.policy == "queue" else _LATEST_BACKLOG


def check(endpoint: str, *, encrypted: bool, insecure: bool) -> None:
    """Refuse an endpoint that is malformed, or that leaves the host in the clear unasked; BusError."""
    host = parse(endpoint).host
    if encrypted or _is_loopback(host):
        return
    if not insecure:
        raise BusError(
            f"{endpoint} leaves this host unencrypted; give a keys folder (perception keys new), "
            "or set insecure = true"
        )
    _LOG.warning("INSECURE: %s is neither encrypted nor authenticated", endpoint)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")
