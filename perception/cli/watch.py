"""A supervised run for a person: a view while it lasts, a summary at its end.

All of it runs in the main thread of `perception up`, which also polls the supervisor: `Watch.until` is its
only loop. Leaving the context of `Watch` stops the nodes first, then reads the messages and lines that are
left, then restores the terminal. `sum_up` is called after that.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from msgspec import structs
from rich.console import Console

from perception.bus.subscriber import Subscriber
from perception.cli.panel import Board
from perception.cli.summary import Report, Summary
from perception.cli.summary_tables import print_report
from perception.cli.views import LiveView, PlainView, View
from perception.errors import PerceptionError
from perception.graph.supervisor import Supervisor
from perception.messages import SUPERVISOR, FusedState, Header, Health, Message, is_supervisor
from perception.profile import Profile
from perception.units import Clock

_RECEIVE_S: Final = 0.05
_REPORT_S: Final = 1.0
_LAST_STATES_S: Final = 1.0
"""Time for the last states after the last capture has ended."""


class Countdown:
    """When a run of `seconds` ends. Pure.

    The seconds count from the first state, or without a fusion from the first message of a device. If the
    fusion, or without one every device, fails before that, `begin` starts the count, so that every run ends.
    """

    def __init__(self, seconds: float | None, *, fused: bool) -> None:
        """Count from a state if the graph is `fused`; without `seconds` there is no end."""
        self._seconds = seconds or math.inf
        self._fused = fused
        self._begun_s: float | None = None

    def add(self, message: Message[Header], now_s: float) -> None:
        """Add one message."""
        header = message.header
        counts = not (
            isinstance(header, Health) and (header.node == "recorder" or is_supervisor(header.node))
        )
        if isinstance(header, FusedState) if self._fused else counts:
            self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Start the count if it has not started."""
        self._begun_s = now_s if self._begun_s is None else self._begun_s

    def over(self, now_s: float) -> bool:
        """Return whether the time is up."""
        return self._begun_s is not None and now_s - self._begun_s >= self._seconds


class Watch:
    """Polls the supervisor, shows what the graph publishes and sums it up; stops the nodes at the end."""

    def __init__(
        self,
        profile: Profile,
        supervisor: Supervisor,
        subscriber: Subscriber,
        title: str,
        started_ns: int,
        *,
        clock: Clock,
        publish: Callable[[Health], object],
    ) -> None:
        """Open the view.

        Args:
            profile: of the run.
            supervisor: runs its nodes.
            subscriber: receives states, labels and health.
            title: first line of the panel.
            started_ns: host time from which the time to the first state is measured.
            clock: host time in ns.
            publish: publishes the supervisor's health.
        """
        self._fused = profile.fusion is not None
        self._supervisor = supervisor
        self._counted = ["fusion"] if self._fused else [n for n in supervisor.status() if n != "recorder"]
        self._subscriber = subscriber
        self._summary = _summary(profile, started_ns)
        self._board = Board()
        self._name = SUPERVISOR if profile.here is None else f"{SUPERVISOR}-{profile.here}"
        self._clock = clock
        self._publish = publish
        self._reported_s = -math.inf
        self._kinds: list[str] = []
        """First words of the statuses that were reported last."""
        typing = any(text.source == "terminal" for text in profile.text.values())
        self._view = _view(self._board, title, typing=typing)

    def until(self, requests: list[int], seconds: float | None) -> None:
        """Watch until a stop is requested, the time is up, or all nodes have ended.

        `seconds` count from the first state, or from the first message where there is no fusion.
        """
        countdown, end_s = Countdown(seconds, fused=self._fused), math.inf
        while not requests and (now_s := time.monotonic()) < end_s and not countdown.over(now_s):
            if not self._supervisor.poll():
                if self._supervisor.exit_code is not None:
                    return
                end_s = min(end_s, now_s + _LAST_STATES_S)
            if all(map(self._supervisor.crashes, self._counted)):
                countdown.begin(now_s)
            if message := self._subscriber.receive(_RECEIVE_S):
                self._take(message)
                countdown.add(message, time.monotonic())
            self._logs()
            status = self._supervisor.status()
            self._report(status, time.monotonic())
            self._board.now_ns = self._clock()
            self._view.update(status, time.monotonic())

    def sum_up(self, end_ns: int, json_file: Path | None) -> None:
        """Print the summary of the run that ended at `end_ns`, host time, and write it to the file."""
        report = self._summary.report(end_ns)
        print_report(report, sys.stdout)
        sys.stdout.flush()
        if json_file:
            _write(report, json_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._summary.add_nodes(self._supervisor.status())
        self._supervisor.stop()
        while message := self._subscriber.receive(0.0):
            self._take(message)
        self._logs()
        self._view.close()

    @property
    def states(self) -> int:
        """Number of states received."""
        return self._summary.states

    def _take(self, message: Message[Header]) -> None:
        if isinstance(message.header, Health):
            self._supervisor.beat(message.header)
        self._summary.add(message)
        self._board.add(message)

    def _report(self, status: Mapping[str, str], now_s: float) -> None:
        """Publish the status of the processes once a second, and at once when one of them changed."""
        kinds = [words.split(" ", 1)[0] for words in status.values()]
        if now_s - self._reported_s >= _REPORT_S or kinds != self._kinds:
            self._reported_s, self._kinds = now_s, kinds
            health = structs.replace(self._supervisor.health(), stamp_ns=self._clock(), node=self._name)
            self._publish(health)

    def _logs(self) -> None:
        for node, line in self._supervisor.lines():
            self._view.log(node, line)


def _summary(profile: Profile, started_ns: int) -> Summary:
    fusion = profile.fusion
    hop_ms, lateness_ms = (fusion.hop_ms, fusion.lateness_ms) if fusion else (1e3, 0.0)
    return Summary(hop_ns=round(hop_ms * 1e6), lateness_ns=round(lateness_ms * 1e6), started_ns=started_ns)


def _view(board: Board, title: str, *, typing: bool) -> View:
    if sys.stdout.isatty() and not (console := Console()).is_dumb_terminal:
        return LiveView(board, console, title, typing=typing)
    return PlainView(board, sys.stdout, sys.stderr)


def _write(report: Report, file: Path) -> None:
    try:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PerceptionError(f"cannot write the summary to {file}: {error.strerror}") from error
