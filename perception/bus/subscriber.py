"""Subscribes to topics: sockets are read all the time; the consumer gets what the queue policy has kept.

Threads: every method may be called from any thread; several threads and tasks may receive from one
subscriber, and each message goes to one of them. `__init__` starts one daemon thread (`Drain.run`). It does
not refer to the `Subscriber`, so an unreferenced subscriber is closed by garbage collection.
"""

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perception import topics
from perception.bus import endpoints
from perception.bus.drain import Correct, Drain
from perception.bus.host import Runtime
from perception.bus.inbox import Inbox
from perception.bus.mailbox import Mailbox
from perception.bus.remote_hosts import RemoteClocks
from perception.errors import BusError
from perception.messages import Header, HostTime, InputHealth, Message
from perception.profile.endpoint import parse
from perception.profile.hosts import RemoteHost
from perception.units.closing import Closing

if TYPE_CHECKING:
    from perception.bus.keys import Keys

_CLOSE_S: Final = 2.0


class Subscriber(Closing):
    """Receives all topics that match its patterns. Iterate over it with `for` or `async for`.

    Args:
        patterns: topics, or prefixes of topics that end with `*`, such as `camera/*`.
        runtime: the domain to read; None waits until a graph is up, and reads that one.
        clock: host time in ns.
        connect: topic or pattern -> `tcp://[NAME@]HOST:PORT` of publishers on other hosts; NAME is that of a
            key in the trust file.
        hosts: other hosts by name. Their clocks are estimated, and the times of their messages are corrected
            to `clock`; a host is not read before its clock is known.
        policies: replaces rows of the table of topics, by prefix: a recorder queues every frame,
            where a display reads the latest.
        insecure: allow endpoints off loopback without keys, and publishers of other users on loopback.
        keys: folder of CURVE keys for all of `connect`.

    Raises:
        BusError: a pattern or endpoint is malformed or unsafe.
    """

    def __init__(
        self,
        *patterns: str,
        runtime: Runtime | None,
        clock: Callable[[], int],
        connect: Mapping[str, str] | None = None,
        hosts: Mapping[str, RemoteHost] | None = None,
        policies: Mapping[str, topics.Topic] | None = None,
        insecure: bool = False,
        keys: str | Path | None = None,
    ) -> None:
        pair = None
        if keys is not None:
            from perception.bus.keys import load  # 40 ms of imports

            pair = load(Path(keys))
        read = _overlapping(hosts or {}, patterns)
        remote = _connections(connect or {}, read, pair)
        for pattern, endpoint in remote.items():
            topics.check_pattern(pattern)
            endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        services = {name: _of_host(name, host.clock, pair) for name, host in read.items()}
        for endpoint in services.values():
            endpoints.check(endpoint, encrypted=keys is not None, insecure=insecure)
        self._clock = clock
        self._inbox = Inbox(Mailbox(policies))
        self._clocks = RemoteClocks(services, clock, pair) if services else None
        try:
            self._drain = Drain(
                _checked(patterns),
                runtime,
                clock,
                remote,
                pair,
                self._inbox,
                insecure=insecure,
                lossless=_is_lossless(policies or {}),
                correct=_correction(self._clocks, read),
            )
        except BaseException:
            if self._clocks is not None:
                self._clocks.close()
            raise
        thread = threading.Thread(target=self._drain.run, name=f"bus {' '.join(patterns)}", daemon=True)
        self._finalizer = weakref.finalize(self, _stop, self._inbox, thread, self._clocks)
        thread.start()

    def receive(self, timeout_s: float | None = None) -> Message[Header] | None:
        """Return the next message; None after `timeout_s`, or if the subscriber is closed."""
        return self._drain.receive(timeout_s)

    def __iter__(self) -> Iterator[Message[Header]]:
        while (message := self.receive()) is not None:
            yield message

    async def __aiter__(self) -> AsyncIterator[Message[Header]]:
        while (message := await self._inbox.take_async()) is not None:
            yield message

    def health(self) -> dict[str, InputHealth]:
        """Return the exact counts of every topic, by topic."""
        return self._inbox.health(self._clock())

    def host_times(self) -> dict[str, HostTime]:
        """Return what is known of the clocks of `hosts`, by name."""
        return {} if self._clocks is None else self._clocks.report()

    def close(self) -> None:
        """Disconnect; all waits for a message return None."""
        self._finalizer()


def _stop(inbox: Inbox, thread: threading.Thread, clocks: RemoteClocks | None) -> None:
    inbox.close()
    if clocks is not None:
        clocks.close()
    if thread is not threading.current_thread() and thread.ident is not None:
        thread.join(_CLOSE_S)  # a daemon thread: it does not keep the process alive


def _overlapping(hosts: Mapping[str, RemoteHost], patterns: tuple[str, ...]) -> dict[str, RemoteHost]:
    """Return the hosts, with those of their topics that a pattern matches."""
    read = {
        name: host._replace(
            connect={
                topic: endpoint
                for topic, endpoint in host.connect.items()
                if any(topics.overlap(topic, pattern) for pattern in patterns)
            }
        )
        for name, host in hosts.items()
    }
    return {name: host for name, host in read.items() if host.connect}


def _connections(
    connect: Mapping[str, str], hosts: Mapping[str, RemoteHost], keys: "Keys | None"
) -> dict[str, str]:
    """Return topic or pattern -> endpoint; what `connect` names is read from there.

    A host cannot offer `control/...`: only `connect` names who may control.
    """
    of_hosts = {
        topic: _of_host(name, endpoint, keys)
        for name, host in hosts.items()
        for topic, endpoint in host.connect.items()
        if topics.kind_of(topic) != "control"
    }
    return {**of_hosts, **connect}


def _of_host(name: str, endpoint: str, keys: "Keys | None") -> str:
    """Return an endpoint that names the key of its host, where the trust file has one of this name."""
    parsed = parse(endpoint)
    if keys is None or parsed.name or not keys.trust.holds(name):
        return endpoint
    return parsed._replace(name=name).text


def _correction(clocks: RemoteClocks | None, hosts: Mapping[str, RemoteHost]) -> Correct:
    """Return what gives the correction of a topic's stamp: 0 for topics of no host, None while unknown."""
    host_of = {topic: name for name, host in hosts.items() for topic in host.connect}

    def correct(topic: str, stamp_ns: int) -> int | None:
        host = host_of.get(topic)
        return 0 if host is None or clocks is None else clocks.correction_ns(host, stamp_ns)

    return correct


def _checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    if not patterns:
        raise BusError("nothing to subscribe to; name at least one topic, such as state/fused")
    return tuple(map(topics.check_pattern, patterns))


def _is_lossless(policies: Mapping[str, topics.Topic]) -> bool:
    """Return whether topics with the policy `latest` are queued instead, as a recorder does."""
    return any(
        policies.get(kind, row).policy == "queue"
        for kind, row in topics.TOPICS.items()
        if row.policy == "latest"
    )
