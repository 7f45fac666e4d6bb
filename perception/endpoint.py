"""The form of an endpoint, `tcp://HOST:PORT`: one rule for profiles and for the bus."""

import re
from dataclasses import dataclass
from typing import Final

from perception.errors import BusError

_TCP: Final = re.compile(
    r"tcp://(?:\[(?P<v6>[0-9A-Fa-f:%.\w]+)\]|(?P<host>\*|\w[\w.-]*)):(?P<port>\*|\d{1,5})"
)
_HIGHEST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a publisher of another host is found, or what one binds."""

    host: str
    """Name or address, `*` for every interface."""
    port: str
    """Number, or `*` for a free one."""

    @property
    def bindable_only(self) -> bool:
        """Whether it names no single place, so that nobody can connect to it."""
        return self.port in ("*", "0") or self.host in ("*", "0.0.0.0", "::")


def parse(endpoint: str) -> Endpoint:
    """Return the parts of `tcp://HOST:PORT`; BusError if it is none."""
    match = _TCP.fullmatch(endpoint)
    if match is None or (match["port"] != "*" and int(match["port"]) > _HIGHEST_PORT):
        raise BusError(f"'{endpoint[:80]}' is no endpoint; expected tcp://HOST:PORT")
    return Endpoint(match["v6"] or match["host"], match["port"])
