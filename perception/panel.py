"""What a person watches while a graph runs: one live panel on a terminal, plain lines elsewhere."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perception.messages import FusedState, Header, Health, Message, ModalityState
from perception.summary import stages

_RECENT_STATES: Final = 32
_CLASSES_SHOWN: Final = 10
_REFRESH_S: Final = 0.25
_LINE_EVERY_S: Final = 1.0
_REPORT_WIDTH: Final = 120
_PRESENCE_STYLE: Final = {"present": "green", "held": "yellow", "absent": "red"}
_STATUS_STYLE: Final = {"ok": "green", "degraded": "yellow", "lost": "red"}
_NODE_STYLES: Final = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta")


@dataclass(slots=True)
class _Output:
    """A published topic, from two successive accounts of its node."""

    count: int
    stamp_ns: int
    rate_hz: float | None = None


class Board:
    """The newest of everything: what the graph says of itself, from its states and health messages."""

    def __init__(self) -> None:
        self.states: deque[FusedState] = deque(maxlen=_RECENT_STATES)
        self.state_topic = ""
        self.nodes: dict[str, Health] = {}
        self._outputs: dict[str, _Output] = {}

    def add(self, message: Message[Header]) -> None:
        """Take one message; kinds that are not shown are ignored."""
        match message.header:
            case FusedState() as state:
                self.states.append(state)
                self.state_topic = message.topic
            case Health() as health:
                self._add_health(health)

    def _add_health(self, health: Health) -> None:
        self.nodes[health.node] = health
        for topic, count in health.outputs.items():
            before = self._outputs.get(topic)
            rate_hz = None
            if before and health.stamp_ns > before.stamp_ns and count >= before.count:
                rate_hz = (count - before.count) * 1e9 / (health.stamp_ns - before.stamp_ns)
            self._outputs[topic] = _Output(count, health.stamp_ns, rate_hz)

    def rate_hz(self, topic: str) -> float | None:
        """Return messages per second on a topic; None before its node accounted for it twice."""
        output = self._outputs.get(topic)
        return output.rate_hz if output else None

    def rates_hz(self) -> dict[str, float | None]:
        """Return the rate of every topic that a node accounts for."""
        return {topic: output.rate_hz for topic, output in sorted(self._outputs.items())}

    def state_rate_hz(self) -> float:
        """Return states per second of event time, over the newest few."""
        if len(self.states) < 2:
            return 0.0
        span_ns = self.states[-1].stamp_ns - self.states[0].stamp_ns
        return (len(self.states) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    @property
    def newest(self) -> FusedState | None:
        """The newest state, None before the first."""
        return self.states[-1] if self.states else None

    def label_changed(self) -> bool:
        """Return whether the newest state says something else than the one before."""
        newest = [state.fused.label for state in list(self.states)[-2:]]
        return any(before != after for before, after in pairwise(newest))

    def losses(self) -> dict[str, str]:
        """Return what each node lost or dropped of each topic, in words: `node <- topic` -> reasons."""
        return {
            f"{node} <- {topic}": words
            for node, health in self.nodes.items()
            for topic, account in health.inputs.items()
            if (words := _words({**account.dropped, "lost": account.lost}))
        }


def waiting_line(nodes: Mapping[str, str]) -> str:
    """Return what keeps the first state: each supervised node that is not simply running, in words."""
    return ", ".join(f"{name}: {words}" for name, words in nodes.items() if words != "running")


def state_line(board: Board, nodes: Mapping[str, str]) -> str:
    """Return the newest state as one plain line; without states, what keeps it and what is published."""
    state = board.newest
    if state is None:
        rates = (f"{topic} {_rate(rate_hz)}" for topic, rate_hz in board.rates_hz().items())
        return "  ".join((waiting_line(nodes) or "no state yet", *rates))
    inputs = " ".join(f"{name}={_presence(modality)}" for name, modality in state.modalities.items())
    return (
        f"{board.state_rate_hz():4.1f} Hz  {state.fused.label} {state.fused.confidence:.2f}  {inputs}  "
        f"latency {(state.sent_ns - state.stamp_ns) / 1e6:.0f} ms"
    )


def live_panel(board: Board, nodes: Mapping[str, str], title: str) -> Panel:
    """Return the whole panel.

    Args:
        board: what is known.
        nodes: each supervised node's status in words.
        title: shown in the frame.
    """
    parts: list[RenderableType] = []
    if board.states:
        parts += [
            _streams(board, board.states[-1]),
            Text(),
            _fused(board.states[-1]),
            Text(),
            _latency(board),
        ]
    else:
        parts.append(Text(waiting_line(nodes) or "waiting for the first state", style="dim"))
    if losses := board.losses():
        parts += [Text(), *(Text(f"{where}: {what}", style="yellow") for where, what in losses.items())]
    parts += [Text(), _node_line(board, nodes)]
    return Panel(
        Group(*parts), title=title, title_align="left", subtitle="Ctrl-C stops", subtitle_align="left"
    )


def node_table(board: Board, width: int | None = None) -> Table:
    """Return one row per live node: status, rates of its outputs, drops, device."""
    table = Table(box=None, pad_edge=False, width=width)
    for column in ("node", "status", "publishes", "drops and refusals", "device"):
        table.add_column(column, overflow="fold")
    for name, health in sorted(board.nodes.items()):
        rates = (f"{topic} {_rate(board.rate_hz(topic))}" for topic in sorted(health.outputs))
        losses = Counter(health.counts)
        for account in health.inputs.values():
            losses.update(account.dropped)
            losses["lost"] += account.lost
        device = " ".join(f"{key}={_short(value)}" for key, value in health.device.items())
        status = f"{health.status}: {health.reason}" if health.reason else health.status
        style = _STATUS_STYLE[health.status]
        table.add_row(
            name, Text(status, style), "\n".join(rates) or "-", _words(losses) or "-", device or "-"
        )
    return table


def _streams(board: Board, state: FusedState) -> Table:
    table = Table(box=None, pad_edge=False, expand=True)
    for column in ("stream", "rate", "age", "presence", "says"):
        table.add_column(column, justify="right" if column in ("rate", "age") else "left", no_wrap=True)
    for modality in state.modalities.values():
        age = "-" if modality.age_ms is None else f"{modality.age_ms:.0f} ms"
        presence = Text(modality.presence, _PRESENCE_STYLE[modality.presence])
        if modality.reason:
            presence.append(f" ({modality.reason})", "dim")
        table.add_row(modality.topic, _rate(board.rate_hz(modality.topic)), age, presence, _says(modality))
    table.add_row(board.state_topic, _hz(board.state_rate_hz()))
    return table


def _says(modality: ModalityState) -> str:
    words = []
    for name, branch in modality.branches.items():
        if branch.scores:
            score, label = max(zip(branch.scores, branch.labels, strict=False))
            words.append(f"{name}: {label} {score:.2f}")
        elif branch.boxes:
            words.append(f"{name}: {len(branch.boxes)} box{'es' * (len(branch.boxes) > 1)}")
    return "  ".join(words)


def _fused(state: FusedState) -> Table:
    fused = state.fused
    table = Table.grid(padding=(0, 1))
    ranked = sorted(zip(fused.probabilities, fused.classes, strict=True), reverse=True)[:_CLASSES_SHOWN]
    for probability, name in ranked:
        style = "bold green" if name == fused.label else ""
        bar = ProgressBar(total=1.0, completed=probability, width=40)
        table.add_row(Text(name, style), bar, Text(f"{probability:.2f}", style))
    return table


def _latency(board: Board) -> Text:
    by_stage: dict[str, list[float]] = {}
    for state in board.states:
        for stage, milliseconds in stages(state):
            by_stage.setdefault(stage, []).append(milliseconds)
    cells = (f"{stage} {median(values):.1f}/{max(values):.1f}" for stage, values in by_stage.items())
    return Text(f"latency ms, median/max of the last {len(board.states)}: {' · '.join(cells)}")


def _node_line(board: Board, nodes: Mapping[str, str]) -> Text:
    line = Text("nodes: ")
    for name, process in nodes.items():
        health = board.nodes.get(name)
        trouble = health.reason or health.status if health and health.status != "ok" else ""
        style = _STATUS_STYLE[health.status] if health else "dim"
        line.append(f"{name} ", "red" if process.startswith("ended") else style)
        line.append(f"{trouble or process}  ", "dim")
    return line


def _presence(modality: ModalityState) -> str:
    age = "" if modality.age_ms is None else f"({modality.age_ms:.0f}ms)"
    return f"{modality.presence}{age}"


def _rate(rate_hz: float | None) -> str:
    return "-" if rate_hz is None else _hz(rate_hz)


def _hz(rate_hz: float) -> str:
    return f"{rate_hz:.1f} Hz"


def _short(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)


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
        self._logs = LogPrinter(Console(file=errors, soft_wrap=True, highlight=False))
        self._seen = self._shown = ("", -1)
        self._due_s = 0.0

    def log(self, node: str, line: str) -> None:
        """Write a node's line under its name."""
        self._logs.print(node, line)

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
        print(line, file=self._out, flush=True)

    def close(self) -> None:
        """Leave nothing to undo."""


class LiveView:
    """The panel, redrawn in place; the nodes' own lines scroll by above it."""

    def __init__(self, board: Board, console: Console, title: str) -> None:
        self._board = board
        self._title = title
        self._logs = LogPrinter(console)
        self._due_s = 0.0
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def log(self, node: str, line: str) -> None:
        """Write a node's line under its name, above the panel."""
        self._logs.print(node, line)

    def update(self, nodes: Mapping[str, str], now_s: float) -> None:
        """Redraw if it is time."""
        if now_s >= self._due_s:
            self._due_s = now_s + _REFRESH_S
            self._live.update(live_panel(self._board, nodes, self._title), refresh=True)

    def close(self) -> None:
        """Leave the last panel standing and give the cursor back."""
        self._live.stop()


class LogPrinter:
    """Prints lines under their node's name, each node in a colour of its own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._styles: dict[str, str] = {}

    def print(self, node: str, line: str) -> None:
        """Print one line."""
        style = self._styles.setdefault(node, _NODE_STYLES[len(self._styles) % len(_NODE_STYLES)])
        self._console.print(Text.assemble((f"{node} | ", style), line))
