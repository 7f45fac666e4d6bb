"""Where a run shows itself: a live panel on a terminal, plain lines elsewhere."""

from collections.abc import Mapping, Sequence
from typing import IO, Final, Protocol, TextIO

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from perception.cli.panel import Board, clean, panel_lines, state_line
from perception.errors.credentials import harmless

_REFRESH_S: Final = 0.25
_LINE_EVERY_S: Final = 1.0
_TYPED_ROWS: Final = 2  # what the terminal scrolls at least
_LOG_ROWS: Final = 3
_UNKNOWN: Final = "\0"
"""No line of a panel."""
_NODE_STYLES: Final = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta")


class View(Protocol):
    """Where a run shows itself."""

    def log(self, node: str, line: str) -> None:
        """Show a line that a node wrote."""

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Show what changed; called often, draws seldom."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


class PlainView:
    """A line per second, and one whenever the label changes; the nodes' own lines go to `errors`."""

    def __init__(self, board: Board, out: TextIO, errors: TextIO) -> None:
        self._board = board
        self._out = out
        self._errors = Console(file=errors, soft_wrap=True, highlight=False)
        self._styles = NodeStyles()
        self._seen = self._shown = ("", -1)
        self._due_s = 0.0

    def log(self, node: str, line: str) -> None:
        """Write a node's line under its name."""
        self._errors.print(self._styles.line(node, line))

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Write a line if one is due."""
        newest = (state.source, state.seq) if (state := self._board.newest) else ("", -1)
        changed = newest != self._seen and self._board.label_changed()
        self._seen = newest
        if now_s < self._due_s and not changed:
            return
        self._due_s = now_s + _LINE_EVERY_S
        stalled = state is not None and newest == self._shown
        self._shown = newest
        line = "no new state" if stalled else state_line(self._board, nodes)
        print(harmless(line), file=self._out, flush=True)

    def close(self) -> None:
        """Leave nothing to undo."""


class LiveView:
    """The panel, redrawn in place; the nodes' own lines scroll by above it, what is typed stands below it."""

    def __init__(self, board: Board, console: Console, title: str, *, typing: bool = False) -> None:
        """Take over the terminal of `console`; `typing` says that a node reads lines from it."""
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
        """Redraw what has changed if it is time."""
        if now_s >= self._due_s:
            self._due_s = now_s + _REFRESH_S
            self._screen.resize(self._console.size)
            size = self._screen.room
            lines = panel_lines(self._board, nodes, self._title, width=size.width, height=size.height)
            self._screen.show([self._drawn(line) for line in lines])

    def close(self) -> None:
        """Leave the last panel standing and give the cursor back."""
        self._screen.close()

    def _drawn(self, line: Text) -> str:
        with self._console.capture() as capture:
            self._console.print(line, end="", soft_wrap=True, highlight=False)
        return capture.get()


class Screen:
    """A terminal in three parts: lines that scroll by, a panel, and two rows for what is typed.

    The cursor stays in the lowest part, to which scrolling is confined: the terminal itself shows there what
    is typed, and never moves the panel. Rows count from 1.
    """

    def __init__(self, file: IO[str], size: ConsoleDimensions, *, cursor: bool) -> None:
        """Move what stands on the terminal out of the way; `cursor` shows where one types."""
        self._file = file
        self._size = size
        self._shown: list[str] = []
        self._write("\n" * size.height, self._confine(), "" if cursor else "\x1b[?25l")

    @property
    def room(self) -> ConsoleDimensions:
        """What a panel may take."""
        height = max(4, self._size.height - _TYPED_ROWS - _LOG_ROWS)
        return ConsoleDimensions(self._size.width, height)

    def resize(self, size: ConsoleDimensions) -> None:
        """Start over if the terminal is of another size now."""
        if size != self._size:
            self._size, self._shown = size, []
            self._write("\x1b[r\x1b[2J", self._confine())

    def show(self, lines: Sequence[str]) -> None:
        """Show a panel: only the lines that differ from those shown are written. It never gets lower."""
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
        """Add lines above the panel; those above them scroll up."""
        self._scroll(lines)

    def close(self) -> None:
        """Let the whole terminal scroll again, below what it shows."""
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
        self._file.write("".join(parts))  # at once: the terminal echoes keys in between
        self._file.flush()


class NodeStyles:
    """Each node in a colour of its own."""

    def __init__(self) -> None:
        self._styles: dict[str, str] = {}

    def line(self, node: str, line: str) -> Text:
        """Return a node's line under its name."""
        style = self._styles.setdefault(node, _NODE_STYLES[len(self._styles) % len(_NODE_STYLES)])
        return clean(Text.assemble((f"{node} | ", style), line))
