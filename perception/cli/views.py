"""How `perception up` is shown: a live panel on a terminal, plain lines elsewhere.

A view reads a `Board` and writes to its streams; only the main thread calls it. `update` is called in a loop
and writes when its next time has come. The terminal belongs to `LiveView` from its construction to `close`:
nothing else may write to it between, and lines of nodes go through `log`.
"""

from collections.abc import Mapping, Sequence
from typing import IO, Final, Protocol, TextIO

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from perception.cli.panel import Board, clean, panel_lines, state_line, waiting_line
from perception.errors.credentials import harmless

_REFRESH_S: Final = 0.25
_LINE_EVERY_S: Final = 1.0
_TYPED_ROWS: Final = 2  # the least number of rows that a terminal scrolls
_LOG_ROWS: Final = 3
_UNKNOWN: Final = "\0"
"""No line of a panel."""
_NODE_STYLES: Final = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta")


class View(Protocol):
    """How a run is shown."""

    def log(self, node: str, line: str) -> None:
        """Show a line that a node wrote."""

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Show what has changed, if the next time to draw has come."""

    def close(self) -> None:
        """Restore the terminal."""


class PlainView:
    """Writes a line per second and one at each change of the label; lines of nodes go to `errors`."""

    def __init__(self, board: Board, out: TextIO, errors: TextIO) -> None:
        self._board = board
        self._out = out
        self._errors = Console(file=errors, soft_wrap=True, highlight=False)
        self._styles = NodeStyles()
        self._last = self._shown = ("", -1)
        self._due_s = 0.0

    def log(self, node: str, line: str) -> None:
        """Write a node's line under its name."""
        self._errors.print(self._styles.line(node, line))

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Write a line if one is due."""
        newest = (state.source, state.seq) if (state := self._board.newest) else ("", -1)
        changed = newest != self._last and self._board.label_changed()
        self._last = newest
        if now_s < self._due_s and not changed:
            return
        self._due_s = now_s + _LINE_EVERY_S
        stalled = state is not None and newest == self._shown
        self._shown = newest
        stopped = ", ".join(filter(None, ("no new state", waiting_line(nodes))))
        line = stopped if stalled else state_line(self._board, nodes)
        print(harmless(line), file=self._out, flush=True)

    def close(self) -> None:
        """Do nothing: there is nothing to restore."""


class LiveView:
    """The panel, redrawn in place; lines of nodes scroll above it, typed text is shown below it."""

    def __init__(self, board: Board, console: Console, title: str, *, typing: bool = False) -> None:
        """Prepare the terminal of `console`; `typing`: a node reads lines from it."""
        self._board = board
        self._title = f"{title}   Ctrl-C stops{', type below' if typing else ''}"
        self._console = console
        self._screen = Screen(console.file, console.size, cursor=typing)
        self._styles = NodeStyles()
        self._due_s = 0.0

    def log(self, node: str, line: str) -> None:
        """Write a node's line under its name, above the panel."""
        text = self._styles.line(node, line)
        lines = text.wrap(self._console, self._console.size.width, overflow="fold")
        self._screen.log([self._drawn(clean(part)) for part in lines])

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Redraw the lines that have changed, if the next time to draw has come."""
        if now_s >= self._due_s:
            self._due_s = now_s + _REFRESH_S
            self._screen.resize(self._console.size)
            size = self._screen.room
            lines = panel_lines(self._board, nodes, self._title, width=size.width, height=size.height)
            self._screen.show([self._drawn(line) for line in lines])

    def close(self) -> None:
        """Keep the last panel on the terminal and restore its cursor."""
        self._screen.close()

    def _drawn(self, line: Text) -> str:
        with self._console.capture() as capture:
            self._console.print(line, end="", soft_wrap=True, highlight=False)
        return capture.get()


class Screen:
    """A terminal in three parts: lines that scroll, a panel, and two rows for typed text.

    The cursor stays in the lowest part, and only that part scrolls: the terminal echoes typed text there
    without moving the panel. Rows count from 1.
    """

    def __init__(self, file: IO[str], size: ConsoleDimensions, *, cursor: bool) -> None:
        """Scroll the present text out of the terminal; `cursor`: the cursor is visible."""
        self._file = file
        self._size = size
        self._shown: list[str] = []
        self._write("\n" * size.height, self._confine(), "" if cursor else "\x1b[?25l")

    @property
    def room(self) -> ConsoleDimensions:
        """Size available to a panel."""
        height = max(4, self._size.height - _TYPED_ROWS - _LOG_ROWS)
        return ConsoleDimensions(self._size.width, height)

    def resize(self, size: ConsoleDimensions) -> None:
        """Clear the terminal if its size has changed."""
        if size != self._size:
            self._size, self._shown = size, []
            self._write("\x1b[r\x1b[2J", self._confine())

    def show(self, lines: Sequence[str]) -> None:
        """Show a panel; only lines that differ from those shown are written. Its height never shrinks."""
        blank = " " * self._size.width
        lines = [*([blank] * (len(self._shown) - len(lines))), *lines]
        if (more := len(lines) - len(self._shown)) > 0:
            self._scroll([""] * more)
            self._shown = [*([_UNKNOWN] * more), *self._shown]
        first = self._first_row
        changed = [
            f"\x1b[{first + number};1H{line}"
            for number, (line, before) in enumerate(zip(lines, self._shown, strict=True))
            if line != before
        ]
        self._shown = lines
        if changed:
            self._write("\x1b7", *changed, "\x1b8")

    def log(self, lines: Sequence[str]) -> None:
        """Add lines above the panel; earlier lines scroll up."""
        self._scroll(lines)

    def close(self) -> None:
        """Make the whole terminal scroll again, with the cursor below the panel."""
        self._write("\x1b[r", f"\x1b[{self._size.height};1H\n", "\x1b[?25h")

    @property
    def _first_row(self) -> int:
        return max(3, self._size.height - _TYPED_ROWS - len(self._shown) + 1)

    def _scroll(self, lines: Sequence[str]) -> None:
        last = self._first_row - 1
        added = "".join(f"\r\n{line}" for line in lines)
        confined = f"\x1b[{self._size.height - 1};{self._size.height}r"
        self._write(f"\x1b7\x1b[1;{last}r\x1b[{last};1H", added, confined, "\x1b8")

    def _confine(self) -> str:
        height = self._size.height
        return f"\x1b[{height - 1};{height}r\x1b[{height - 1};1H"

    def _write(self, *parts: str) -> None:
        self._file.write("".join(parts))  # one write, so that the terminal echoes no key between the parts
        self._file.flush()


class NodeStyles:
    """Assigns each node a colour."""

    def __init__(self) -> None:
        self._styles: dict[str, str] = {}

    def line(self, node: str, line: str) -> Text:
        """Return a line of a node, with its name in its colour."""
        style = self._styles.setdefault(node, _NODE_STYLES[len(self._styles) % len(_NODE_STYLES)])
        return clean(Text.assemble((f"{node} | ", style), line))
