"""Standard streams that are closed, or that lose their reader while a program still has something to end.

And what is said there to people.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import click

from perception.errors.credentials import harmless


def show(*lines: str, err: bool = False) -> None:
    """Write lines for people. Whatever they quote, each stays one line, and a terminal obeys none of it."""
    for line in lines:
        click.echo(harmless(line), err=err)


def open_closed_streams() -> None:
    """Give a process its three standard streams where it was started without, as by `>&-`.

    Else what it opens next, a socket or a lock, would get their numbers. What goes to a closed standard
    output goes to standard error instead, and what goes to a closed standard error nowhere.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # None is what Python makes of a closed one
    sys.stdin = cast("TextIO | None", sys.stdin) or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stderr = cast("TextIO | None", sys.stderr) or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.stdout = cast("TextIO | None", sys.stdout) or sys.stderr


class _Enduring:
    """A text stream that goes on taking text once its reader is gone, and says so once."""

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self._stream = stream
        self._lost = lost
        self._silent = False

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush what can be."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self._silent:
            return
        try:
            act()
        except OSError:
            self._silent = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # what is buffered is written when Python ends
            os.close(null)
            self._lost()


@contextmanager
def enduring(lost: Callable[[], None]) -> Iterator[None]:
    """Let nothing raise that is written to standard output or error; `lost` is called when a reader went."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _Enduring(before[0], lost))
    sys.stderr = cast(TextIO, _Enduring(before[1], lost))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
