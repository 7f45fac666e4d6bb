"""Progress: a bar on a descriptor that is cleared at the end, a line every ten seconds in a file."""

import io
import os
import pty
from contextlib import suppress

from perception.io.progress import LINE_S, progress


def test_in_a_file_a_line_comes_now_and_then() -> None:
    now_s, stream = [100.0], io.StringIO()
    with progress("encoding", 4, stream=stream, clock=lambda: now_s[0]) as advance:
        for step in range(4):
            now_s[0] += LINE_S * 0.6
            advance(note=f"play-{step}")
    assert stream.getvalue().splitlines() == [
        "perception: encoding: 2 of 4, 12 s, play-1",
        "perception: encoding: 4 of 4, 24 s, play-3",
    ]


def test_short_work_and_hidden_work_say_nothing_in_a_file() -> None:
    stream = io.StringIO()
    with progress("short", stream=stream) as advance:
        advance(10)
    with progress("hidden", hidden=True, stream=stream, clock=iter((0.0, 99.0)).__next__) as advance:
        advance()
    assert stream.getvalue() == ""


def test_a_terminal_shows_count_and_total_and_ends_with_an_empty_line() -> None:
    controller, descriptor = pty.openpty()
    with open(descriptor, "w") as terminal, progress("encoding", 3, stream=terminal) as advance:
        advance(2, "kitchen")
    shown = ""
    with suppress(OSError):  # a terminal raises it at its end
        while part := os.read(controller, 1 << 16):
            shown += part.decode(errors="replace")
    os.close(controller)
    assert "encoding" in shown
    assert "2/3" in shown
    assert "kitchen" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # its line is erased
