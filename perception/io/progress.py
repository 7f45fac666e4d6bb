"""Progress of long work on stderr: a bar on a terminal, else one line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from perception.errors.credentials import harmless

LINE_S: Final = 10.0
"""Seconds between two lines where stderr is a file or a pipe; shorter work writes no line there."""


class Advance(Protocol):
    """Counts finished pieces of work."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished pieces; `note` replaces the text after the bar, an empty one keeps it."""


@contextmanager
def progress(
    title: str,
    total: int | None = None,
    *,
    hidden: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show progress while the context is open; a terminal is cleared afterwards.

    Args:
        title: name of the work.
        total: number of pieces; None if unknown.
        hidden: show nothing.
        stream: where to show it; default stderr.
        clock: seconds, for the lines.
    """
    if hidden:
        yield nothing
        return
    title = harmless(title)
    console = Console(file=stream, stderr=stream is None)
    if not console.is_terminal:
        yield _lines(title, total, console, clock)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task(title, total=total, note="")

        def advance(count: int = 1, note: str = "") -> None:
            shown.update(task, advance=count)
            if note:
                shown.update(task, note=harmless(note))

        yield advance


def nothing(count: int = 1, note: str = "") -> None:
    """Show nothing: the Advance of hidden progress."""


def _lines(title: str, total: int | None, console: Console, clock: Callable[[], float]) -> Advance:
    start_s = written_s = clock()
    done, last = 0, ""

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal written_s, done, last
        done += count
        last = note or last
        now_s = clock()
        if now_s - written_s >= LINE_S:
            written_s = now_s
            of = "" if total is None else f" of {total}"
            behind = f", {harmless(last)}" if last else ""
            console.file.write(f"perception: {title}: {done}{of}, {now_s - start_s:.0f} s{behind}\n")
            console.file.flush()

    return advance
