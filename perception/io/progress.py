"""Progress of long work on stderr: a bar on a terminal, a line now and then where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from perception.errors.credentials import harmless

LINE_S: Final = 10.0
"""Between two lines where stderr is a file or a pipe; shorter work is silent there."""


class Advance(Protocol):
    """Counts what is done."""

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Add `count` to what is done; `note` replaces the text behind it, empty keeps it."""


@contextmanager
def progress(
    title: str,
    total: int | None = None,
    *,
    hidden: bool = False,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Show how far work has come while the context is open; nothing of it stays on a terminal.

    Args:
        title: what is done.
        total: how many pieces there are; None if that is not known.
        hidden: shows nothing.
        stream: to show it on; default stderr.
        clock: seconds, for the lines.
    """
    title = harmless(title)
    console = Console(file=stream, stderr=stream is None)
    if hidden or not console.is_terminal:
        yield _lines(title, total, console, clock) if not hidden else nothing
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
    """Show nothing: an Advance for those who do not ask."""


def _lines(title: str, total: int | None, console: Console, clock: Callable[[], float]) -> Advance:
    begun_s = said_s = clock()
    done, last = 0, ""

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal said_s, done, last
        done += count
        last = note or last
        now_s = clock()
        if now_s - said_s >= LINE_S:
            said_s = now_s
            of = "" if total is None else f" of {total}"
            behind = f", {harmless(last)}" if last else ""
            console.file.write(f"perception: {title}: {done}{of}, {now_s - begun_s:.0f} s{behind}\n")
            console.file.flush()

    return advance
