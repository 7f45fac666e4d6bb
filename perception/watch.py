"""What a person gets of a run: a view while it lasts, figures at its end."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Final, Self

from rich.console import Console

from perception.bus.subscriber import Subscriber
from perception.errors import PerceptionError
from perception.launcher import Supervisor
from perception.messages import Header, Message
from perception.panel import Board, LiveView, PlainView, View
from perception.profile import Profile
from perception.report import print_report
from perception.summary import Report, Summary

_RECEIVE_S: Final = 0.05
_LAST_STATES_S: Final = 1.0
"""After the last capture has finished, the fusion still concludes what it has."""


class Watch:
    """Drives the supervisor, shows what the graph says and sums it up; at its end stops the nodes."""

    def __init__(
        self, profile: Profile, supervisor: Supervisor, subscriber: Subscriber, title: str, started_ns: int
    ) -> None:
        """Open the view; `started_ns` is the host time from which the first state is counted."""
        self._supervisor = supervisor
        self._subscriber = subscriber
        self._summary = _summary(profile, started_ns)
        self._board = Board()
        self._view = _view(self._board, title)

    def until(self, requests: list[int], seconds: float | None) -> None:
        """Watch until a stop is requested, the time is up, or the run is over by itself."""
        end_s = time.monotonic() + seconds if seconds else math.inf
        while not requests and time.monotonic() < end_s:
            if not self._supervisor.poll():
                if self._supervisor.exit_code is not None:
                    return
                end_s = min(end_s, time.monotonic() + _LAST_STATES_S)
            if message := self._subscriber.receive(_RECEIVE_S):
                self._take(message)
            self._logs()
            self._view.update(self._supervisor.status(), time.monotonic())

    def sum_up(self, end_ns: int, json_file: Path | None) -> None:
        """Print the figures of the run that ended at `end_ns`, host time, and write them to the file."""
        report = self._summary.report(end_ns)
        print_report(report, sys.stdout)
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

    def _take(self, message: Message[Header]) -> None:
        self._summary.add(message)
        self._board.add(message)

    def _logs(self) -> None:
        for node, line in self._supervisor.lines():
            self._view.log(node, line)


def _summary(profile: Profile, started_ns: int) -> Summary:
    fusion = profile.fusion
    hop_ms, lateness_ms = (fusion.hop_ms, fusion.lateness_ms) if fusion else (1e3, 0.0)
    return Summary(hop_ns=round(hop_ms * 1e6), lateness_ns=round(lateness_ms * 1e6), started_ns=started_ns)


def _view(board: Board, title: str) -> View:
    if sys.stdout.isatty():
        return LiveView(board, Console(), title)
    return PlainView(board, sys.stdout, sys.stderr)


def _write(report: Report, file: Path) -> None:
    try:
        file.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise PerceptionError(f"cannot write the summary to {file}: {error.strerror}") from error
