"""What a command reads: a graph of this host, or with `--connect` the topics that another host serves."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from perception.bus import domains
from perception.bus.host import Runtime
from perception.bus.remote_hosts import serving
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.topics import kind_of, name_of

_CLOCK_S: Final = 10.0
_LOOK_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Source:
    """Arguments of a `Subscriber`, except its clock."""

    topics: tuple[str, ...]
    """Topics or patterns."""
    options: Mapping[str, Any]
    host: str = ""
    """Address of the other host, empty for this one."""

    @property
    def runtime(self) -> Runtime | None:
        """The domain that is read, None until a graph is up."""
        runtime: Runtime | None = self.options["runtime"]
        return runtime

    def published(self) -> str:
        """Return in words what is published there."""
        if self.host:
            return f"{self.host} serves {', '.join(self.topics)}"
        if self.runtime is None:
            return domains.NONE_UP
        return f"published in domain '{self.runtime.domain}': {', '.join(self.runtime.topics()) or 'nothing'}"


def source_of(
    patterns: Sequence[str], domain: str | None, address: str | None, keys: str | None, *, insecure: bool
) -> Source:
    """Return what to read.

    Args:
        patterns: topics or patterns.
        domain: of this host, as given to `domains.find`.
        address: of another host, as given to `serving`; None for this one.
        keys: folder of CURVE keys for the other host.
        insecure: allow another host without keys.

    Raises:
        BusError: the address or a pattern is malformed, the host does not answer, or keys are needed.
        PerceptionError: the host serves no such topic; or several graphs are up here.
    """
    if address is None:
        if keys is not None or insecure:
            raise PerceptionError("--keys and --insecure are for another host: name it by --connect HOST")
        return Source(tuple(patterns), {"runtime": domains.find(domain)})
    host = serving(patterns, address, keys=keys, insecure=insecure)
    options = {
        "runtime": Runtime(domain),  # all topics are named and of the other host: nothing here is read
        "hosts": {address: host},
        "keys": keys,
        "insecure": insecure,
    }
    return Source(tuple(host.connect), options, address)


def await_clocks(subscriber: Subscriber, source: Source) -> None:
    """Wait until another host is read; PerceptionError if its clock does not become known."""
    deadline_s = time.monotonic() + _CLOCK_S
    while any(known.offset_ms is None for known in subscriber.host_times().values()):
        if time.monotonic() > deadline_s:
            raise PerceptionError(f"{source.host}: its time service answers no requests for the time")
        time.sleep(_LOOK_S)


def health_of(
    domain: str | None, address: str | None, keys: str | None, *, insecure: bool
) -> tuple[Source, list[str]]:
    """Return where the health of all nodes is read, and their names; arguments as of `source_of`.

    Raises PerceptionError if no graph is up, or no node is alive.
    """
    source = source_of(("health/*",), domain, address, keys, insecure=insecure)
    if source.host:
        return source, [name_of(topic) for topic in source.topics]
    runtime = domains.joined(domain)
    published = runtime.topics()
    names = [name_of(topic) for topic in published if kind_of(topic) == "health"]
    if not names:
        raise PerceptionError(
            f"no node is alive in domain '{runtime.domain}'; published: {', '.join(published) or 'nothing'}"
        )
    return source, names
