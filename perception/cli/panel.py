"""What a running graph publishes, as text: the live panel, a state line, the table of nodes.

Pure: no terminal, clock or thread. `Board.add` keeps the newest messages, the functions compute lines from a
`Board`. One thread uses a board: the main thread of `perception up` or `perception nodes`. Lines that other
processes wrote go through `harmless` or `clean` before a terminal gets them.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from perception.cli import host_times
from perception.cli.summary import stages
from perception.errors.credentials import harmless
from perception.graph.liveness import RUNNING, SILENT_S, Standing, standing
from perception.messages import FusedState, Header, Health, Message, ModalityState, is_supervisor
from perception.units.bounded import REST, Recent

_RECENT_STATES: Final = 32
_CLASSES_SHOWN: Final = 10
_NAME_CELLS: Final = 26
_SECONDS_FROM_MS: Final = 100_000
_STALLED_S: Final = 1.0
_MIN_SCORE: Final = 0.005
"""A score below it is printed as 0.00: nothing was detected."""
_WAITING: Final = "waiting for the first state"
_NO_HEALTH: Final = Health(stamp_ns=0, node="")
_MEASURE: Final = Console(color_system=None)
_PRESENCE_STYLE: Final = {"present": "green", "held": "yellow", "absent": "red"}
_STATUS_STYLE: Final = {"ok": "green", "degraded": "yellow", "lost": "red"}


@dataclass(slots=True)
class _Output:
    """Count of a published topic, and its rate from the last two health messages of its node."""

    count: int
    stamp_ns: int
    received_ns: int
    rate_hz: float | None = None


class Board:
    """The newest states and the newest health message of each node."""

    def __init__(self) -> None:
        self.now_ns = 0
        """Host time of what is shown; the owner sets it before lines are computed. Ages end at it."""
        self.states: deque[FusedState] = deque(maxlen=_RECENT_STATES)
        self._state_ns = 0
        """When the newest state was received."""
        self._health_ns: Recent[str, int] = Recent()
        """When the newest health of each node was received."""
        self.state_topic = ""
        self.nodes: Recent[str, Health] = Recent()
        self._outputs: Recent[str, _Output] = Recent()

    def add(self, message: Message[Header]) -> None:
        """Add one message; other kinds than states and health are ignored."""
        match message.header:
            case FusedState() as state:
                self.states.append(state)
                self._state_ns = message.received_ns or state.sent_ns
                self.state_topic = message.topic
            case Health() as health:
                self._add_health(health, message.received_ns or health.sent_ns)

    def _add_health(self, health: Health, received_ns: int) -> None:
        self.nodes[health.node], self._health_ns[health.node] = health, received_ns
        for topic, count in health.outputs.items():
            before = self._outputs.get(topic)
            rate_hz = None
            if before and health.stamp_ns > before.stamp_ns and count >= before.count:
                rate_hz = (count - before.count) * 1e9 / (health.stamp_ns - before.stamp_ns)
            self._outputs[topic] = _Output(count, health.stamp_ns, received_ns, rate_hz)

    def state_age_s(self) -> float:
        """Return the seconds since the newest state was received."""
        return max(0, self.now_ns - self._state_ns) / 1e9

    def processes(self) -> dict[str, str]:
        """Return the status of each process of the graph, as the supervisors of its hosts report it."""
        supervisors = (health for node, health in self.nodes.items() if is_supervisor(node))
        facts = (fact for health in supervisors for fact in health.device.items())
        return {name: words for name, words in facts if isinstance(words, str)}

    def standing(self, node: str, process: str = RUNNING, *, since_ns: int | None = None) -> Standing:
        """Return how a node stands at `now_ns`.

        Args:
            node: its name.
            process: status of its process.
            since_ns: since when its health could be received; default: it is not silent before the first.
        """
        received_ns = self._health_ns.get(node, self.now_ns if since_ns is None else since_ns)
        return standing(self.nodes.get(node), max(0, self.now_ns - received_ns) / 1e9, process)

    def rate_hz(self, topic: str) -> float | None:
        """Return messages per second on a topic; None before its node has reported it twice, or is silent."""
        output = self._outputs.get(topic)
        return output.rate_hz if output and self.now_ns - output.received_ns <= SILENT_S * 1e9 else None

    def rates_hz(self) -> dict[str, float | None]:
        """Return the rate of every topic that a node reports."""
        return {topic: self.rate_hz(topic) for topic in sorted(self._outputs)}

    def state_rate_hz(self) -> float:
        """Return states per second of event time, over the states kept; 0 if they have stopped."""
        if len(self.states) < 2 or self.stalled:
            return 0.0
        span_ns = self.states[-1].stamp_ns - self.states[0].stamp_ns
        return (len(self.states) - 1) * 1e9 / span_ns if span_ns > 0 else 0.0

    @property
    def stalled(self) -> bool:
        """Whether states have stopped: none was received for 1 s, and longer than they usually take."""
        usual_ns = max(
            (after.stamp_ns - before.stamp_ns for before, after in pairwise(self.states)), default=0
        )
        return self.state_age_s() > max(_STALLED_S, 2 * usual_ns / 1e9)

    @property
    def newest(self) -> FusedState | None:
        """The newest state, None before the first."""
        return self.states[-1] if self.states else None

    def label_changed(self) -> bool:
        """Return whether the newest state has another label than the one before."""
        newest = [state.fused.label for state in list(self.states)[-2:]]
        return any(before != after for before, after in pairwise(newest))

    def host_times(self) -> dict[str, str]:
        """Return what each node knows of the clocks of other hosts, in words: `node <- clock of host`."""
        return {
            f"{node} <- clock of {host}": host_times.words(known)
            for node, health in self.nodes.items()
            for host, known in health.hosts.items()
        }

    def losses(self) -> dict[str, str]:
        """Return what each node lost or dropped of each topic: `node <- topic` -> reasons and counts."""
        forgotten = self.nodes.forgotten + self._outputs.forgotten
        rest = {REST: f"{forgotten} names of nodes and outputs forgotten"} if forgotten else {}
        return rest | {
            f"{node} <- {topic}": words
            for node, health in self.nodes.items()
            for topic, account in health.inputs.items()
            if (words := _words({**account.dropped, "lost": account.lost}))
        }


def waiting_line(nodes: Mapping[str, str]) -> str:
    """Return why there is no state yet: the status of each supervised node that is not running."""
    return ", ".join(f"{name}: {words}" for name, words in nodes.items() if words != "running")


def state_line(board: Board, nodes: Mapping[str, str]) -> str:
    """Return the newest state as one plain line; without states, why there is none and what is published."""
    state = board.newest
    if state is None:
        rates = (f"{topic} {_rate(rate_hz)}" for topic, rate_hz in board.rates_hz().items())
        return "  ".join((waiting_line(nodes) or "no state yet", *rates))
    inputs = " ".join(f"{name}={_presence(modality)}" for name, modality in state.modalities.items())
    return (
        f"{board.state_rate_hz():4.1f} Hz  {state.fused.label} {state.fused.confidence:.2f}  {inputs}  "
        f"latency {(state.sent_ns - state.stamp_ns) / 1e6:.0f} ms"
    )


def panel_lines(board: Board, nodes: Mapping[str, str], title: str, *, width: int, height: int) -> list[Text]:
    """Return the whole panel, `width` cells wide and at most `height` lines high.

    If it does not fit, blank lines are left out first, then latencies, classes, streams and losses; nodes
    stay.

    Args:
        board: newest messages.
        nodes: status of each supervised node, in words.
        title: first line.
        width: of the terminal, in cells.
        height: lines that the panel may take, at least 4.
    """
    state = board.newest
    head = [Text(title, "bold")]
    streams = _streams(board, state) if state else [Text(waiting_line(nodes) or _WAITING, "dim")]
    clocks = [Text(f"{where}: {what}", "dim") for where, what in board.host_times().items()]
    losses = [Text(f"{where}: {what}", "yellow") for where, what in board.losses().items()] + clocks
    node_lines = _folded(_node_line(board, nodes), width)[: height - 3]
    room = height - len(head) - len(node_lines)
    losses = _at_most(losses, max(1, room - len(streams)), "losses")
    streams = _at_most(streams, max(1, room - len(losses)), "streams")
    room -= len(streams) + len(losses)
    classes = _at_most(_classes(state, width), min(room, _CLASSES_SHOWN), "classes") if state else []
    latency = _folded(_latency(board), width) if state else []
    if len(latency) > room - len(classes):
        latency = []
    sections = [part for part in ([*head, *streams], classes, latency, losses, node_lines) if part]
    blanks = room - len(classes) - len(latency)
    shown: list[Text] = sections[0]
    for number, section in enumerate(sections[1:]):
        shown = [*shown, *([Text()] if number < blanks else []), *section]
    return [_fitted(line, width) for line in shown]


def _at_most(lines: list[Text], room: int, what: str) -> list[Text]:
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], Text(f"… {len(lines) - room + 1} more {what}", "dim")][: max(room, 0)]


def _folded(line: Text, width: int) -> list[Text]:
    return list(line.wrap(_MEASURE, width, overflow="fold"))


def clean(line: Text) -> Text:
    """Return the line with its control characters replaced."""
    return Text(harmless(line.plain), line.style, spans=line.spans, end="")


def _fitted(line: Text, width: int) -> Text:
    fitted = clean(line)
    fitted.truncate(width, overflow="ellipsis", pad=True)
    return fitted


def standings(
    board: Board, published: Iterable[str] = (), since_ns: int | None = None
) -> dict[str, Standing]:
    """Return how every node stands, by name: those whose health was received, and those that are missing.

    Args:
        board: newest messages.
        published: nodes whose processes hold a topic of their own.
        since_ns: since when their health could be received.
    """
    processes = board.processes()
    return {
        name: board.standing(name, processes.get(name, RUNNING), since_ns=since_ns)
        for name in sorted({*board.nodes, *processes, *published})
    }


def node_table(
    board: Board, width: int | None = None, *, published: Iterable[str] = (), since_ns: int | None = None
) -> Table:
    """Return one row per node, also of missing ones: status, rates of its outputs, drops, device.

    Arguments as of `standings`; `width` of the table in cells.
    """
    table = Table(box=None, pad_edge=False, width=width)
    for column in ("node", "status", "publishes", "drops and refusals", "device"):
        table.add_column(column, overflow="fold")
    for name, found in standings(board, published, since_ns).items():
        health = board.nodes.get(name, _NO_HEALTH)
        rates = (f"{topic} {_rate(board.rate_hz(topic))}" for topic in sorted(health.outputs))
        losses = Counter(health.counts)
        for account in health.inputs.values():
            losses.update(account.dropped)
            losses["lost"] += account.lost
        device = " ".join(f"{key}={_short(value)}" for key, value in health.device.items())
        clocks = [f"clock of {host}: {host_times.words(known)}" for host, known in health.hosts.items()]
        device = "\n".join(filter(None, (device, *clocks)))
        bad = found.status == "degraded" and health.condition not in ("", "ok")
        word = f"{found.status}, {health.condition}" if bad else found.status
        status = f"{word}: {found.reason}" if found.reason else word
        style = _STATUS_STYLE[found.status]
        row = (Text(cell) for cell in (harmless(_words(losses)) or "-", harmless(device) or "-"))
        outputs = Text("\n".join(map(harmless, rates)) or "-")
        table.add_row(Text(harmless(name)), Text(harmless(status), style), outputs, *row)
    return table


def _streams(board: Board, state: FusedState) -> list[Text]:
    """Return a line per input and one for the states; the longest field comes last, since lines are cut."""
    names = [*(modality.topic for modality in state.modalities.values()), board.state_topic]
    name_cells = min(max(map(len, names)), _NAME_CELLS)
    lines = [Text(f"{'stream':<{name_cells}}{'rate':>10}{'age':>9}  presence", "dim")]
    waited_ms = board.state_age_s() * 1e3
    for modality in state.modalities.values():
        age = _age(None if modality.age_ms is None else modality.age_ms + waited_ms)
        line = _stream(modality.topic, name_cells, _rate(board.rate_hz(modality.topic)), age)
        if board.stalled:
            lines.append(line.append("unknown", "red"))
            continue
        line.append(f"{modality.presence:<8}", _PRESENCE_STYLE[modality.presence])
        line.append(f" {modality.word}" if modality.word else "", _word_style(modality))
        lines.append(line.append(f" {_detected(modality)}"))
    states = _stream(board.state_topic, name_cells, _hz(board.state_rate_hz()), "")
    if board.stalled:
        states.append(f"no state for {waited_ms / 1e3:.1f} s", "red")
    return [*lines, states]


def _stream(topic: str, cells: int, rate: str, age: str) -> Text:
    name = topic if len(topic) <= cells else f"{topic[: cells - 1]}…"
    return Text(f"{name:<{cells}}{rate:>10}{age:>9}  ")


def _age(age_ms: float | None) -> str:
    if age_ms is None:
        return "-"
    return f"{age_ms:.0f} ms" if age_ms < _SECONDS_FROM_MS else f"{age_ms / 1e3:.0f} s"


def _detected(modality: ModalityState) -> str:
    words = []
    for name, branch in modality.branches.items():
        if branch.scores:
            score, label = max(zip(branch.scores, branch.labels, strict=False))
            words.append(f"{name}: {label} {score:.2f}" if score >= _MIN_SCORE else f"{name}: -")
        elif branch.boxes:
            words.append(f"{name}: {len(branch.boxes)} box{'es' * (len(branch.boxes) > 1)}")
    return "  ".join(words)


def _classes(state: FusedState, width: int) -> list[Text]:
    """Return a line per class, in the order of the classes of the head."""
    fused = state.fused
    name_cells = min(max(map(len, fused.classes), default=0), _NAME_CELLS)
    bar_cells = max(0, min(40, width - name_cells - 7))
    lines = []
    for name, probability in zip(fused.classes, fused.probabilities, strict=True):
        style = "bold green" if name == fused.label else ""
        full = round(probability * bar_cells)
        bar = Text.assemble(("━" * full, "green"), ("─" * (bar_cells - full), "dim"))
        short = name if len(name) <= name_cells else f"{name[: name_cells - 1]}…"
        lines.append(Text.assemble((f"{short:<{name_cells}} ", style), bar, (f" {probability:.2f}", style)))
    return lines


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
        found = board.standing(name, process)
        style = _STATUS_STYLE[found.status] if name in board.nodes or found.status != "ok" else "dim"
        problem = found.reason or found.status if found.status != "ok" else ""
        line.append(f"{name} ", style)
        line.append(f"{problem or process}  ", "dim")
    return line


def _presence(modality: ModalityState) -> str:
    bad = modality.condition not in ("", "ok")
    words = [modality.condition] if bad else []
    if modality.age_ms is not None:
        words.append(f"{modality.age_ms:.0f}ms")
    return f"{modality.presence}({', '.join(words)})" if words else modality.presence


def _word_style(modality: ModalityState) -> str:
    """Return yellow for data that is used in spite of its condition."""
    bad = modality.condition not in ("", "ok", "starting")
    return "yellow" if bad and modality.presence != "absent" else "dim"


def _rate(rate_hz: float | None) -> str:
    return "-" if rate_hz is None else _hz(rate_hz)


def _hz(rate_hz: float) -> str:
    return f"{rate_hz:.1f} Hz"


def _short(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items() if count)
