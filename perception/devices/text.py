"""Text commands: lines typed in a terminal, or a file of timed lines."""

import codecs
import errno
import os
import select
import sys
import threading
from collections import Counter, deque
from pathlib import Path
from typing import Final

from perception.devices.device import CapturedLabel, CapturedText, Device, DeviceReport
from perception.errors import DeviceError
from perception.io.text_file import read_text
from perception.profile import ScriptConfig, TextConfig
from perception.units import Clock
from perception.units.closing import Closing

MAX_LENGTH: Final = 4096
_READ_BYTES: Final = 65536


def open_text(
    config: TextConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int
) -> Device[CapturedText | CapturedLabel]:
    """Open the text source that a profile names; DeviceError if that fails.

    Args:
        config: its section of the profile.
        script: what a scripted source plays.
        clock: host time in ns.
        origin_ns: host time at which a script or file starts.
    """
    if config.source == "scripted":
        from perception.devices.scripted import open_scripted_text

        return open_scripted_text(script, clock=clock, origin_ns=origin_ns)
    if config.source == "terminal":
        if sys.stdin is None:
            raise DeviceError("text 'terminal': standard input is closed; give a file of timed lines instead")
        return TerminalText(sys.stdin.fileno(), clock=clock)
    return TimedText(Path(config.source), clock=clock, origin_ns=origin_ns)


class TerminalText(Closing):
    """Lines typed in a terminal. Empty lines are skipped; too long ones are refused and counted.

    Args:
        descriptor: open file descriptor of the terminal or pipe; `close` leaves it open.
        clock: host time in ns; a line's stamp is when its end was read.
    """

    def __init__(self, descriptor: int, *, clock: Clock) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._partial = b""
        self._overlong = False
        self._ended = False
        self._lines: deque[CapturedText] = deque()
        self._counts: Counter[str] = Counter()

    def read(self, timeout_s: float) -> CapturedText | None:
        """Return the next line, None after `timeout_s`; EOFError once the input is closed."""
        if not self._lines and not self._ended:
            readable, _, _ = select.select([self._descriptor], [], [], timeout_s)
            if readable:
                self._split(_read(self._descriptor))
        if self._lines:
            return self._lines.popleft()
        if self._ended:
            raise EOFError("end of input")
        return None

    def report(self) -> DeviceReport:
        """Return the number of refused lines."""
        return DeviceReport(dict(self._counts), {"source": "terminal"})

    def close(self) -> None:
        """Do nothing: the descriptor belongs to the caller."""

    def _split(self, data: bytes) -> None:
        self._ended = not data
        *lines, self._partial = (self._partial + (data or b"\n")).split(b"\n")
        for line in lines:
            self._accept(line, refuse=self._overlong)
            self._overlong = False
        if len(self._partial) > MAX_LENGTH * 4:
            self._partial, self._overlong = b"", True

    def _accept(self, line: bytes, *, refuse: bool) -> None:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace").strip()
        if refuse or len(text) > MAX_LENGTH:
            self._counts["too_long"] += 1
        elif text:
            self._lines.append(CapturedText(text, self._clock()))


def _read(descriptor: int) -> bytes:
    """Return the typed bytes; empty at the end of the input, also after the terminal has hung up."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except OSError as error:
        if error.errno == errno.EIO:
            return b""
        raise


class TimedText(Closing):
    """A file of lines `SECONDS<TAB>TEXT`, each due that many seconds after the origin.

    Lines that were due before the file was opened are left out and counted. A line that is read late is
    stamped with the time of reading.
    """

    def __init__(self, path: Path, *, clock: Clock, origin_ns: int) -> None:
        self._path = path
        self._clock = clock
        lines = sorted(_timed_lines(path), key=lambda line: line[0])
        due = [CapturedText(text, origin_ns + round(seconds * 1e9)) for seconds, text in lines]
        now_ns = clock()
        self._lines = deque(line for line in due if line.stamp_ns >= now_ns)
        self._passed = len(due) - len(self._lines)
        self._closed = threading.Event()

    def read(self, timeout_s: float) -> CapturedText | None:
        """Return the next line when it is due, None after `timeout_s`; EOFError after the last."""
        if not self._lines:
            raise EOFError("end of file")
        wait_s = (self._lines[0].stamp_ns - self._clock()) / 1e9
        if wait_s > timeout_s:
            self._closed.wait(timeout_s)
            return None
        self._closed.wait(max(wait_s, 0))
        line = self._lines.popleft()
        return CapturedText(line.text, max(line.stamp_ns, self._clock()))

    def report(self) -> DeviceReport:
        """Return the number of lines that were due before the file was opened."""
        return DeviceReport({"passed": self._passed}, {"source": str(self._path)})

    def close(self) -> None:
        """End a wait in `read`."""
        self._closed.set()


def _timed_lines(path: Path) -> list[tuple[float, str]]:
    try:
        lines = read_text(path).splitlines()
    except UnicodeDecodeError:
        raise DeviceError(f"{path}: not a text file in UTF-8 or UTF-16") from None
    except OSError as error:
        raise DeviceError(f"{path}: cannot be read: {error.strerror}") from error
    return [_timed_line(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _timed_line(where: str, line: str) -> tuple[float, str]:
    seconds, _, text = line.partition("\t")
    try:
        at_s = float(seconds)
    except ValueError:
        at_s = -1.0
    if not 0 <= at_s < 1e9 or not 0 < len(text.strip()) <= MAX_LENGTH:
        raise DeviceError(f"{where}: expected SECONDS<TAB>TEXT, got '{line[:60]}'")
    return at_s, text.strip()
