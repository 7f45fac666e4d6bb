"""`perception up`: launch a profile, show it while it runs, print a summary at the end.

Order of a run: lock the domain, remove what crashed runs left, start the nodes, watch, stop the nodes, remove
their files, print the summary, unlock. A signal handler only appends to the list of `stop_requests`; the main
thread reads that list in `Watch.until`, so that nodes are stopped outside a handler. The keeper thread of the
runtime restores the lock file and the clock anchor if another program removes them.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from perception.bus import packet, role
from perception.bus.host import DOMAIN_VARIABLE, HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli.standard_streams import ignore_lost_readers
from perception.errors import NoStateError
from perception.errors.credentials import harmless, without_credentials
from perception.graph.check import require
from perception.graph.domain_lock import DomainLock
from perception.graph.plan import plan
from perception.graph.supervisor import Supervisor
from perception.messages import SUPERVISOR
from perception.profile import Profile, as_override, load
from perception.profile.hosts import SUPERVISOR_HEALTH, RemoteHost
from perception.topics import TOPICS, kind_of

_EVERY_MESSAGE: Final = {
    prefix: replace(TOPICS[prefix], policy="queue", depth=1024) for prefix in ("state", "health")
}
_SHOWN: Final = ("state", "label", "health")
"""Kinds of topics of other hosts that a run shows."""


def with_host(overrides: tuple[str, ...], host: str | None) -> tuple[str, ...]:
    """Return overrides that also name the host of the profile that this one is."""
    return overrides if host is None else (*overrides, as_override("here", host))


def with_domain(overrides: tuple[str, ...], domain: str | None) -> tuple[str, ...]:
    """Return overrides with a domain: `domain`, else that in `overrides`, else $PERCEPTION_DOMAIN."""
    default = os.environ.get(DOMAIN_VARIABLE) or None
    before, after = (() if name is None else (as_override("domain", name),) for name in (default, domain))
    return (*before, *overrides, *after)


def run(
    profile_name: str, overrides: tuple[str, ...], *, seconds: float | None, json_file: Path | None
) -> int:
    """Run a profile until its nodes end, `seconds` have passed or a signal comes; return the exit code.

    0 after a run, 130 after Ctrl-C, 141 if the reader of its output closed the pipe; the code of a node that
    was failing when the run ended.

    Raises:
        NoStateError: there is a fusion, and it published no state.
        PerceptionError: the profile is wrong, or its domain is already up.
    """
    graph = load(profile_name, overrides)
    profile = graph.on_this_host()
    runtime, clock = Runtime(profile.domain), HostClock()
    _print_warnings(require(graph, profile_name, runtime.topics()))
    started_ns = clock.now_ns()
    nodes = plan(graph, profile_name, overrides, origin_ns=started_ns)
    with (
        DomainLock(lock_file(runtime), profile.domain) as lock,
        runtime.keeper.keeping(lock.restore, clock.restore),
        stop_requests() as requests,
        ignore_lost_readers(lambda: requests.append(signal.SIGPIPE)),
    ):
        sweep(runtime)
        topics = _topics(profile)
        with (
            Subscriber(
                *topics,
                runtime=runtime,
                clock=clock.now_ns,
                hosts=_watched(graph),
                policies=_EVERY_MESSAGE,
                insecure=graph.insecure,
                keys=graph.keys,
            ) as subscriber,
            Publisher(
                SUPERVISOR_HEALTH,
                source=SUPERVISOR,
                runtime=runtime,
                clock=clock.now_ns,
                endpoint=graph.endpoint_of(SUPERVISOR_HEALTH),
                insecure=graph.insecure,
                keys=graph.keys,
            ) as health,
            Supervisor(nodes, inherit=[lock.fileno()]) as supervisor,
        ):
            supervisor.poll()
            # imported here: numpy and rich load while the nodes start
            from perception.cli.watch import Watch

            title = f"perception · {profile_name}"
            with Watch(
                *(profile, supervisor, subscriber, title, started_ns), clock=clock.now_ns, publish=health.send
            ) as watch:
                watch.until(requests, seconds)
                end_ns = clock.now_ns()
                fusion_status = supervisor.status().get("fusion", "")
        sweep(runtime)
        watch.sum_up(end_ns, json_file)
    code = supervisor.exit_code or supervisor.failing()
    if profile.fusion is not None and not watch.states and not code:
        waited = f"{(end_ns - started_ns) / 1e9:.0f} s"
        raise NoStateError(f"the fusion published no state in {waited}: it was {fusion_status}")
    return code or _code_of_signals(requests)


def lock_file(runtime: Runtime) -> Path:
    """Return the file that the launcher of a domain locks."""
    return runtime.base / f".{runtime.domain}.up.lock"


def sweep(runtime: Runtime) -> None:
    """Remove what ended processes of the domain left."""
    role.sweep(runtime.directory)
    packet.remove_dead(runtime.base)
    runtime.sweep()


def _print_warnings(warnings: Iterable[object]) -> None:
    for warning in warnings:
        sys.stderr.write(f"perception: {harmless(without_credentials(str(warning)))}\n")


def _code_of_signals(requests: Sequence[int]) -> int:
    """Return 128 + the signal that ended a run, 0 if it ended by itself, by its end or by a hang-up."""
    ended_by = next((number for number in requests if number in (signal.SIGINT, signal.SIGPIPE)), None)
    return 128 + ended_by if ended_by and signal.SIGHUP not in requests else 0


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list, so that the caller can stop the nodes first.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    requests: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: requests.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _topics(profile: Profile) -> tuple[str, ...]:
    return (f"state/{profile.fusion.name}", "label/*", "health/*") if profile.fusion else ("*",)


def _watched(graph: Profile) -> dict[str, RemoteHost]:
    """Return the other hosts, with what is shown of them."""
    return {
        name: host._replace(connect={one: at for one, at in host.connect.items() if kind_of(one) in _SHOWN})
        for name, host in graph.other_hosts().items()
    }
