"""The form of an endpoint, `tcp://[NAME@]HOST:PORT`: one rule for profiles and for the bus."""

import ipaddress
import re
from typing import Final, NamedTuple

from perception.errors import BusError

_TCP: Final = re.compile(
    r"tcp://(?:(?P<name>[A-Za-z0-9_-]{1,64})@)?(?:\[(?P<v6>[^\[\]\s]+)\]|(?P<host>\*|[\w.-]+)):(?P<port>\*|\d{1,5})",
    re.ASCII,
)
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[\w-]{0,61}[A-Za-z0-9_])?", re.ASCII)
"""One part of a host's name, or of an interface's (RFC 1123, and the `_` of containers' names)."""
_LONGEST_NAME: Final = 253
_HIGHEST_PORT: Final = 65535


class Endpoint(NamedTuple):
    """Address that a publisher binds and readers on other hosts connect to."""

    host: str
    """Name or address, `*` for every interface."""
    port: str
    """Number, or `*` for a free one."""
    name: str = ""
    """Of the publisher's key in the trust file; empty if none is named."""

    @property
    def text(self) -> str:
        """The endpoint as a profile writes it."""
        return self.address.replace("//", f"//{self.name}@") if self.name else self.address

    @property
    def address(self) -> str:
        """The endpoint as ZeroMQ takes it."""
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"

    @property
    def bindable_only(self) -> bool:
        """Whether it is not a single address, so that a reader cannot connect to it."""
        return self.port in ("*", "0") or _is_unspecified(self.host)


def parse(endpoint: str) -> Endpoint:
    """Return the parts of `tcp://[NAME@]HOST:PORT`; BusError if it is malformed."""
    match = _TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > _HIGHEST_PORT):
        raise BusError(f"'{endpoint[:80]}' is no endpoint; expected tcp://HOST:PORT")
    if match["v6"] and not _is_address(match["v6"], ipaddress.IPv6Address):
        raise BusError(f"'{endpoint[:80]}' is no endpoint: [{match['v6'][:60]}] is no IPv6 address")
    if match["host"] and not _is_host(match["host"]):
        raise BusError(f"'{endpoint[:80]}' is no endpoint: '{match['host'][:60]}' is no host")
    return Endpoint(match["v6"] or match["host"], match["port"], match["name"] or "")


def endpoint_at(address: str, port: int | str) -> str:
    """Return the endpoint of a port at a name or address; IPv6 addresses get their brackets."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a name or address is that of this host to itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "lo")


def _is_host(host: str) -> bool:
    """Return whether it is `*`, an IPv4 address or a name; digits alone are not a name."""
    parts = host.removesuffix(".").split(".")
    if all(map(str.isdigit, parts)):
        return _is_address(host, ipaddress.IPv4Address)
    return host == "*" or (len(host) <= _LONGEST_NAME and all(map(_LABEL.fullmatch, parts)))


def _is_unspecified(host: str) -> bool:
    try:
        return host == "*" or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True
