"""Typed lines through a real pipe, and files of timed lines."""

import os
import pty
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perception.devices.text import MAX_LENGTH, TerminalText, TimedText
from perception.errors import DeviceError

NOW_NS = 1_790_000_000_000_000_000


def now() -> int:
    return NOW_NS


class Terminal:
    """A pipe with text at one end and the device at the other."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.text = TerminalText(self.reading, clock=now)

    def type(self, data: bytes) -> None:
        os.write(self.writing, data)

    def lines(self) -> list[str]:
        read = []
        while (line := self.text.read(0.0)) is not None:
            read.append(line.text)
        return read


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    for descriptor in (terminal.reading, terminal.writing):
        with suppress(OSError):
            os.close(descriptor)


def test_a_line_is_published_when_its_end_is_typed(terminal: Terminal) -> None:
    terminal.type(b"come ")
    assert terminal.text.read(0.0) is None
    terminal.type(b"here\nstop\n\n  \n")
    line = terminal.text.read(0.0)
    assert line is not None
    assert (line.text, line.stamp_ns) == ("come here", NOW_NS)
    assert terminal.lines() == ["stop"]


def test_letters_split_between_reads_stay_whole_and_bad_bytes_do_no_harm(terminal: Terminal) -> None:
    terminal.type("gr\u00fc".encode()[:3])
    assert terminal.lines() == []
    terminal.type("gr\u00fc".encode()[3:] + b"n\n\xff\xfe\n")
    assert terminal.lines() == ["gr\u00fcn", "\ufffd\ufffd"]


def test_an_overlong_line_is_refused_and_counted(terminal: Terminal) -> None:
    terminal.type(b"x" * (MAX_LENGTH + 1) + b"\nfine\n")
    assert terminal.lines() == ["fine"]
    for _ in range(6):
        terminal.type(b"y" * MAX_LENGTH)
        assert terminal.lines() == []
    terminal.type(b"\nfine again\n")
    assert terminal.lines() == ["fine again"]
    assert terminal.text.report().counts == {"too_long": 2}


def test_closing_the_terminal_ends_the_device_after_the_last_line(terminal: Terminal) -> None:
    terminal.type(b"last words")
    os.close(terminal.writing)
    assert terminal.text.read(1.0) is None
    line = terminal.text.read(1.0)
    assert line is not None
    assert line.text == "last words"
    with pytest.raises(EOFError):
        terminal.text.read(0.0)


def test_timed_lines_come_at_their_time_with_their_stamp(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("2.5\tlater\n\n0.5\tcome here\n")
    time_ns = [NOW_NS]
    with TimedText(path, clock=lambda: time_ns[0], origin_ns=NOW_NS) as text:
        assert text.read(0.0) is None
        time_ns[0] += 500_000_000
        first = text.read(0.0)
        time_ns[0] += 2_000_000_000
        second = text.read(0.0)
        assert first is not None
        assert second is not None
        assert (first.text, first.stamp_ns - NOW_NS) == ("come here", 500_000_000)
        assert (second.text, second.stamp_ns - NOW_NS) == ("later", 2_500_000_000)
        with pytest.raises(EOFError):
            text.read(0.0)


def test_a_line_that_is_read_late_is_stamped_when_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("0.1\tcome\n0.2\there\n")
    time_ns = [NOW_NS]
    with TimedText(path, clock=lambda: time_ns[0], origin_ns=NOW_NS) as text:
        time_ns[0] += 300_000_000  # like a node that waits until its readers are connected
        first = text.read(0.0)
        time_ns[0] += 1
        second = text.read(0.0)
    assert first is not None
    assert second is not None
    assert [line.stamp_ns - NOW_NS for line in (first, second)] == [300_000_000, 300_000_001]


def test_lines_whose_time_had_passed_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("1\tpassed\n9\tto come\n")
    text = TimedText(path, clock=now, origin_ns=NOW_NS - 8_000_000_000)
    assert text.report().counts == {"passed": 1}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"1\tfine\nsoon\tno\n", "lines.txt:2: expected SECONDS<TAB>TEXT, got 'soon\tno'"),
        (b"1 no tab\n", "lines.txt:1: expected SECONDS<TAB>TEXT"),
        (b"nan\tno\n", "lines.txt:1: expected SECONDS<TAB>TEXT"),
        (b"-1\tno\n", "lines.txt:1: expected SECONDS<TAB>TEXT"),
        (b"1\t\n", "lines.txt:1: expected SECONDS<TAB>TEXT"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(content)
    with pytest.raises(DeviceError, match=re.escape(complaint)):
        TimedText(path, clock=now, origin_ns=NOW_NS)


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"none\.txt: cannot be read: No such file or directory"):
        TimedText(tmp_path / "none.txt", clock=now, origin_ns=NOW_NS)


def test_a_terminal_that_hangs_up_is_the_end_of_its_input() -> None:
    controller, terminal = pty.openpty()
    os.close(controller)
    with TerminalText(terminal, clock=now) as text, pytest.raises(EOFError):
        text.read(1.0)
    os.close(terminal)
