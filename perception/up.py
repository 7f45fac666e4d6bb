"""`perception up`: launch a profile, show it while it runs, sum it up when it ends."""

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from rich.console import Console

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.launcher import DomainLock, Supervisor, plan
from perception.messages import Header, Message
from perception.panel import Board, LiveView, PlainView, View
from perception.profile import Profile, load
from perception.report import print_report
from perception.summary import Report, Summary
from perception.topics import TOPICS

_RECEIVE_S: Final = 0.05
_LAST_STATES_S: Final = 1.0
"""After the last capture has finished, the fusion still concludes what it has."""
_EVERY_MESSAGE: Final = {
    prefix: replace(TOPICS[prefix], policy="queue", depth=1024) for prefix in ("state", "health")
}


def run(
    profile_name: str, overrides: tuple[str, ...], *, seconds: float | None, json_file: Path | None
) -> int:
    """Run a profile until it ends, `seconds` have passed or a signal says stop; return the exit code.

    0 after a run, 130 after Ctrl-C, else the code of a node that was down when the run ended.

    Raises:
        PerceptionError: the profile is wrong, or its domain is already up.
    """
    profile = load(profile_name, overrides)
    runtime, clock = Runtime(profile.domain), HostClock()
    started_ns = clock.now_ns()
    nodes = plan(profile, profile_name, overrides, origin_ns=started_ns)
    summary, board = _summary(profile, started_ns), Board()
    with (
        DomainLock(runtime.base / f".{profile.domain}.up.lock", profile.domain) as lock,
        stop_requests() as requests,
    ):
        runtime.sweep()
        with Subscriber(
            *_topics(profile), runtime=runtime, clock=clock.now_ns, policies=_EVERY_MESSAGE
        ) as subscriber:
            supervisor = Supervisor(nodes, inherit=[lock.fileno()])
            view = _view(board, f"perception · {profile_name}")
            watch = _Watch(supervisor, subscriber, view, (summary, board))
            try:
                watch.until(requests, seconds)
                end_ns, code = clock.now_ns(), _exit_code(supervisor, requests)
            finally:
                supervisor.stop()
                watch.drain()
                view.close()
        runtime.sweep()
    report = summary.report(end_ns)
    print_report(report, sys.stdout)
    if json_file:
        _write(report, json_file)
    return code


class _Sink(Protocol):
    def add(self, message: Message[Header]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Watch:
    """Drives the supervisor and brings what the graph says to those who want to know."""

    supervisor: Supervisor
    subscriber: Subscriber
    view: View
    sinks: tuple[_Sink, ...]

    def until(self, requests: list[int], seconds: float | None) -> None:
        """Watch until a stop is requested, the time is up, or the run is over by itself."""
        end_s = time.monotonic() + seconds if seconds else math.inf
        while not requests and time.monotonic() < end_s:
            if not self.supervisor.poll():
                if self.supervisor.exit_code is not None:
                    return
                end_s = min(end_s, time.monotonic() + _LAST_STATES_S)
            if message := self.subscriber.receive(_RECEIVE_S):
                self._take(message)
            self._logs()
            self.view.update(self.supervisor.status(), time.monotonic())

    def drain(self) -> None:
        """Take what still waits after the nodes have ended."""
        while message := self.subscriber.receive(0.0):
            self._take(message)
        self._logs()

    def _take(self, message: Message[Header]) -> None:
        for sink in self.sinks:
            sink.add(message)

    def _logs(self) -> None:
        for node, line in self.supervisor.lines():
            self.view.log(node, line)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying from them, so that the nodes are stopped first."""
    requests: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: requests.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(supervisor: Supervisor, requests: list[int]) -> int:
    if supervisor.exit_code is not None:
        return supervisor.exit_code
    return 128 + signal.SIGINT if signal.SIGINT in requests else supervisor.crashed()


def _summary(profile: Profile, started_ns: int) -> Summary:
    fusion = profile.fusion
    hop_ms, lateness_ms = (fusion.hop_ms, fusion.lateness_ms) if fusion else (1e3, 0.0)
    return Summary(hop_ns=round(hop_ms * 1e6), lateness_ns=round(lateness_ms * 1e6), started_ns=started_ns)


def _topics(profile: Profile) -> tuple[str, ...]:
    states = (f"state/{profile.fusion.name}",) if profile.fusion else ()
    return (*states, "label/*", "health/*")


def _view(board: Board, title: str) -> View:
    if sys.stdout.isatty():
        return LiveView(board, Console(), title)
    return PlainView(board, sys.stdout, sys.stderr)


def _write(report: Report, file: Path) -> None:
    try:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PerceptionError(f"cannot write the summary to {file}: {error.strerror}") from error
