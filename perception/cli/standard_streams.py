"""Lines for people on standard output and error, and what happens when these streams are closed."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

import click

from perception.errors.credentials import harmless


def show(*lines: str, err: bool = False) -> None:
    """Write lines for people; control characters in them are replaced, so that each stays one line."""
    for line in lines:
        click.echo(harmless(line), err=err)


def open_closed_streams() -> None:
    """Open those of the three standard streams that are closed, as after `>&-`.

    Without this the next socket or lock would get their descriptor. Standard output, if closed, then writes
    to standard error; standard error, if closed, discards.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    # Python sets a closed stream to None
    sys.stdin = cast("TextIO | None", sys.stdin) or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stderr = cast("TextIO | None", sys.stderr) or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.stdout = cast("TextIO | None", sys.stdout) or sys.stderr


class _LossyStream:
    """A text stream that drops text after its reader has closed the pipe; calls `lost` once."""

    def __init__(self, stream: TextIO, lost: Callable[[], None]) -> None:
        self._stream = stream
        self._lost = lost
        self._is_lost = False

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, unless the reader is lost."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, act: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            act()
        except OSError:
            self._is_lost = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # Python writes the rest of its buffer at exit
            os.close(null)
            self._lost()


@contextmanager
def ignore_lost_readers(lost: Callable[[], None]) -> Iterator[None]:
    """Drop what is written to standard output or error after its reader closed it; then call `lost` once."""
    before = sys.stdout, sys.stderr
    sys.stdout = cast(TextIO, _LossyStream(before[0], lost))
    sys.stderr = cast(TextIO, _LossyStream(before[1], lost))
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
