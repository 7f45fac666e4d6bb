"""The bus in two functions: `perception.subscribe(...)` and `perception.publish(...)`."""

import atexit
import logging
import sys
import threading
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from perception import topics
from perception.bus import domains
from perception.bus.host import HostClock, Runtime, base_directory
from perception.bus.publisher import Publisher
from perception.bus.remote_hosts import serving
from perception.bus.subscriber import Subscriber
from perception.errors import MalformedMessageError
from perception.messages import MAX_BLOCK_NS, checked, reached_ns

if TYPE_CHECKING:
    from perception.bus.codec import Data

_FIRST_SUBSCRIBER_S: Final = 1.0
SETTLE_S: Final = 0.2  # twice the time in which a subscriber finds and connects to a new topic
_LOG: Final = logging.getLogger(__name__)
_joined: Final[dict[Path, str]] = {}
"""Runtime directory -> domain of the graph that `publish` selected because none was named."""
_publishers: Final[dict[tuple[Path, str], Publisher]] = {}
"""(directory of the domain, topic) -> publisher. Lock: `_lock`."""
_lock: Final = threading.Lock()


def subscribe(
    *patterns: str,
    domain: str | None = None,
    connect: Mapping[str, str] | str | None = None,
    insecure: bool = False,
    keys: str | Path | None = None,
) -> Subscriber:
    """Return a subscriber to iterate over, with `for` or `async for`.

    Args:
        patterns: topics such as `state/fused`, or `camera/*`, or `*`.
        domain: default: $PERCEPTION_DOMAIN, else that of the only graph, now or once one is up.
        connect: topic -> `tcp://HOST:PORT` of publishers on other hosts; or `HOST` or `HOST:PORT` of the time
            service of one host, which is read instead of this one, with its times on this host's clock.
        insecure: allow endpoints off loopback without keys.
        keys: folder of CURVE keys for `connect`.

    Raises:
        BusError: a pattern, the domain or an endpoint is invalid.
        PerceptionError: no domain is named, and several graphs are up; or the host serves no such topic.
    """
    if isinstance(connect, str):
        host = serving(patterns, connect, insecure=insecure, keys=keys)
        return Subscriber(
            *host.connect,
            runtime=Runtime(domain),
            clock=_clock().now_ns,
            hosts={connect: host},
            insecure=insecure,
            keys=keys,
        )
    elsewhere = set(patterns) <= set(connect or ())
    runtime = Runtime(domain) if elsewhere else domains.find(domain)
    subscriber = Subscriber(
        *patterns,
        runtime=runtime,
        clock=_clock().now_ns,
        connect=connect,
        insecure=insecure,
        keys=keys,
    )
    if runtime is None:
        _LOG.warning("%s; waiting for one to read %s", domains.NONE_UP, ", ".join(patterns))
    return subscriber


def publish(
    topic: str,
    payload: "Data" = b"",
    *,
    domain: str | None = None,
    stamp_ns: int | None = None,
    **fields: Any,
) -> int:
    """Publish one message and return the number of subscribers it was sent to.

    The first call for a topic binds it until the process ends, and waits up to a second for a first
    subscriber, so that a single message is not lost.

    Args:
        topic: such as `text/say`.
        payload: pixels or samples, where the topic has them.
        domain: default: $PERCEPTION_DOMAIN, else that of the only graph that is up, else `default`.
        stamp_ns: event time in ns of the host clock; default: the time of sending. Sound: time of the first
            sample; by default the last sample ends at the time of sending.
        fields: of the topic's message, for example `text="come here"`.

    Raises:
        BusError: not a topic, or another process publishes it.
        PerceptionError: no domain is named, and several graphs are up.
        MalformedMessageError: fields or payload do not fit the topic, or a block of sound is longer than
            MAX_BLOCK_NS. It is a ValueError.
    """
    kind = topics.lookup(topic).message
    try:
        header = checked(kind, {"stamp_ns": clock_now_ns() if stamp_ns is None else stamp_ns, **fields})
    except ValueError as error:
        raise MalformedMessageError(f"{topic}: {error}") from error
    if (lasts_ns := reached_ns(header) - header.stamp_ns) > MAX_BLOCK_NS:
        raise MalformedMessageError(
            f"{topic}: a block of {lasts_ns / 1e9:.1f} s of sound; at most {MAX_BLOCK_NS / 1e9:g} s is "
            "allowed: cut it into blocks, and publish each when it ends"
        )
    publisher = _publisher(topic, _runtime(domain))
    subscribers = publisher.subscribers  # before `send`: later ones do not receive it
    publisher.send(header, payload, now=stamp_ns is None)  # stamped after the wait for a subscriber
    if not subscribers and not domains.named(domain) and base_directory() not in _joined:
        _warn_once(f"{topic}: nobody listens, and {domains.NONE_UP}")
    return subscribers


def clock_now_ns() -> int:
    """Return the host time: UNIX-like nanoseconds that never step, equal in all processes."""
    return _clock().now_ns()


@cache
def _clock() -> HostClock:
    return HostClock()


def _runtime(domain: str | None) -> Runtime:
    """Return the domain to publish in. A graph that was selected once is kept while it is up."""
    if domains.named(domain):
        return Runtime(domain)
    base = base_directory()
    if (before := _joined.get(base)) is not None and before in domains.graphs_up(base):
        return Runtime(before, base)
    if (runtime := domains.find()) is None:
        return Runtime()
    _joined[base] = runtime.domain
    return runtime


@cache
def _warn_once(text: str) -> None:
    _LOG.warning("%s", text)


def _publisher(topic: str, runtime: Runtime) -> Publisher:
    with _lock:
        publisher = _publishers.get((runtime.directory, topic))
        if publisher is None:
            source = Path(sys.argv[0]).stem or "python"
            publisher = Publisher(topic, source=source, runtime=runtime, clock=clock_now_ns)
            _publishers[runtime.directory, topic] = publisher
            if publisher.wait_for_subscriber(_FIRST_SUBSCRIBER_S):
                time.sleep(SETTLE_S)
        return publisher


@atexit.register
def close() -> None:
    """Release all topics that `publish` has bound; a later call binds them again."""
    with _lock:
        for publisher in _publishers.values():
            publisher.close()
        _publishers.clear()
        _joined.clear()
