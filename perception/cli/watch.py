"""What a person gets of a run: a view while it lasts, figures at its end."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Final, Self

from rich.console import Console

from perception.bus.subscriber import Subscriber
from perception.cli.panel import Board
from perception.cli.summary import Report, Summary
from perception.cli.summary_tables import print_report
from perception.cli.views import LiveView, PlainView, View
from perception.errors import PerceptionError
from perception.graph.supervisor import Supervisor
from perception.messages import FusedState, Header, Health, Message
from perception.profile import Profile

_RECEIVE_S: Final = 0.05
_LAST_STATES_S: Final = 1.0
"""After the last capture has finished, the fusion still concludes what it has."""


class Countdown:
    """When a run is to end that is to last `seconds`: counted from when the graph does what it is for. Pure.

    That is the first state, or without a fusion the first message of a device. A fusion that fails before
    its first state, or devices that all do, start the count as well, so that every run ends.
    """

    def __init__(self, seconds: float | None, *, fused: bool) -> None:
        """Wait for a state if the graph is `fused`; without `seconds` it never ends."""
        self._seconds = seconds or math.inf
        self._fused = fused
        self._begun_s: float | None = None

    def add(self, message: Message[Header], now_s: float) -> None:
        """Take one message."""
        header = message.header
        counts = not (isinstance(header, Health) and header.node == "recorder")
        if isinstance(header, FusedState) if self._fused else counts:
            self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """Start the count, if it has not begun."""
        self._begun_s = now_s if self._begun_s is None else self._begun_s

    def over(self, now_s: float) -> bool:
        """Return whether the time is up."""
        return self._begun_s is not None and now_s - self._begun_s >= self._seconds


class Watch:
    """Drives the supervisor, shows what the graph says and sums it up; at its end stops the nodes."""

    def __init__(
        self, profile: Profile, supervisor: Supervisor, subscriber: Subscriber, title: str, started_ns: int
    ) -> None:
        """Open the view; `started_ns` is the host time from which the first state is counted."""
        self._fused = profile.fusion is not None
        self._supervisor = supervisor
        self._counted = ["fusion"] if self._fused else [n for n in supervisor.status() if n != "recorder"]
        self._subscriber = subscriber
        self._summary = _summary(profile, started_ns)
        self._board = Board()
        typing = any(text.source == "terminal" for text in profile.text.values())
        self._view = _view(self._board, title, typing=typing)

    def until(self, requests: list[int], seconds: float | None) -> None:
        """Watch until a stop is requested, the time is up, or the run is over by itself.

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
            self._view.update(self._supervisor.status(), time.monotonic())

    def sum_up(self, end_ns: int, json_file: Path | None) -> None:
        """Print the figures of the run that ended at `end_ns`, host time, and write them to the file."""
        report = self._summary.report(end_ns)
        print_report(report, sys.stdout)
        sys.stdout.flush()
        if json_file:
            _write(report, json_file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._supervisor.stop()
        while message := self._subscriber.receive(0.0):
            self._take(message)
        self._logs()
        self._view.close()

    @property
    def states(self) -> int:
        """How many states came."""
        return self._summary.states

    def _take(self, message: Message[Header]) -> None:
        if isinstance(message.header, Health) and message.header.status != "lost":
            self._supervisor.works(message.header.node, message.header.source)
        self._summary.add(message)
        self._board.add(message)

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
