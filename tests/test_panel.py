"""What a person sees while a graph runs."""

import io
import re

import pytest
from msgspec import structs
from rich.console import Console, RenderableType

from perception.cli.message_text import as_line
from perception.cli.panel import Board, node_table, panel_lines, state_line
from perception.cli.summary import Summary
from perception.cli.summary_tables import PLAIN_WIDTH, print_report
from perception.cli.views import LiveView, PlainView
from perception.messages import (
    BranchState,
    Fused,
    FusedState,
    Header,
    Health,
    InputHealth,
    Latency,
    Message,
    ModalityState,
    ModelInfo,
)

MS = 1_000_000
SECOND = 1_000_000_000
CAMERA = ModalityState(
    topic="camera/front",
    presence="present",
    age_ms=34.4,
    branches={"faces": BranchState(labels=("none", "face"), scores=(0.1, 0.9))},
)
MICROPHONE = ModalityState(topic="microphone/main", presence="absent", reason="no data for 2 s")


def state(tick: int, label: str = "idle") -> Message[Header]:
    stamp_ns = tick * 100 * MS
    other = "clap" if label == "idle" else "idle"
    header = FusedState(
        stamp_ns=stamp_ns,
        sent_ns=stamp_ns + 45 * MS,
        seq=tick,
        source="fusion#1",
        tick=tick,
        fused=Fused(
            classes=(label, other), probabilities=(0.9, 0.1), label=label, confidence=0.9, entropy=0.3
        ),
        modalities={"camera": CAMERA, "microphone": MICROPHONE},
        model=ModelInfo(config_hash="", weights_hash=""),
        latency=Latency(head_ms=1.5, encoders_ms={"faces": 4.0}),
    )
    return Message("state/fused", header)


def health(second: int, *, node: str = "camera-front", published: int = 0) -> Message[Header]:
    header = Health(
        stamp_ns=second * SECOND,
        node=node,
        status="degraded" if second > 1 else "ok",
        reason="dim light" if second > 1 else "",
        inputs={"text/say": InputHealth(received=9, lost=2, dropped={"overflow": 7, "late": 0})},
        outputs={"camera/front": published},
    )
    return Message(f"health/{node}", header)


def board(*messages: Message[Header]) -> Board:
    filled = Board()
    for message in messages:
        filled.add(message)
    return filled


def text_of(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def panel_of(
    filled: Board, nodes: dict[str, str] | None = None, *, width: int = 80, height: int = 19
) -> list[str]:
    lines = panel_lines(filled, nodes or {"fusion": "running"}, "demo", width=width, height=height)
    assert len(lines) <= height
    assert {line.cell_len for line in lines} == {width}
    return [line.plain.rstrip() for line in lines]


def test_rates_come_from_two_accounts_of_a_node() -> None:
    filled = board(health(1, published=100))
    assert filled.rate_hz("camera/front") is None
    filled.add(health(3, published=160))
    assert filled.rate_hz("camera/front") == 30.0


def test_a_node_that_restarted_has_no_rate_until_it_accounts_again() -> None:
    filled = board(health(1, published=100), health(2, published=4))
    assert filled.rate_hz("camera/front") is None


def test_the_newest_state_is_one_line() -> None:
    assert state_line(board(state(1), state(2)), {}) == (
        "10.0 Hz  idle 0.90  camera=present(34ms) microphone=absent  latency 45 ms"
    )


@pytest.mark.parametrize(
    ("camera", "line", "shown"),
    [
        (
            {"presence": "absent", "reason": "black", "condition": "black"},
            "absent(black, 34ms)",
            "absent   black",
        ),
        ({"presence": "present", "condition": "blurred"}, "present(blurred, 34ms)", "present  blurred"),
        ({"presence": "present", "condition": "ok"}, "present(34ms)", "present  faces"),
        (
            {"presence": "absent", "reason": "dead", "condition": "lost"},
            "absent(lost, 34ms)",
            "absent   lost",
        ),
    ],
)
def test_the_condition_of_a_stream_is_one_word(camera: dict[str, str], line: str, shown: str) -> None:
    message = state(1)
    assert isinstance(message.header, FusedState)
    modalities = message.header.modalities | {"camera": structs.replace(CAMERA, **camera)}
    judged = structs.replace(message, header=structs.replace(message.header, modalities=modalities))
    assert f"camera={line} " in state_line(board(judged), {})
    assert shown in "\n".join(panel_of(board(judged), width=120, height=30))
    bad = line.partition("(")[2].partition(",")[0] if camera["condition"] != "ok" else ""
    assert f"camera={camera['presence']}{f'({bad})' if bad else ''} " in as_line(judged, 0)


def test_nodes_name_the_condition_of_a_signal() -> None:
    message = health(2)
    header = structs.replace(message.header, condition="black", reason="the picture is black")
    shown = text_of(node_table(board(structs.replace(message, header=header))))
    assert "degraded, black: the picture is black" in " ".join(shown.split())


def test_without_states_the_line_says_what_is_published() -> None:
    assert state_line(Board(), {}) == "no state yet"
    loading = {"fusion": "loading models, 12 s", "camera-front": "running"}
    assert state_line(Board(), loading) == "fusion: loading models, 12 s"
    assert "fusion: loading models, 12 s" in "\n".join(panel_of(Board(), loading))
    assert state_line(board(health(1), health(2, published=30)), {}) == "no state yet  camera/front 30.0 Hz"


def test_the_panel_shows_streams_label_latency_drops_and_nodes() -> None:
    filled = board(state(1), state(2, "clap"), health(1), health(2, published=30))
    nodes = {"camera-front": "running", "fusion": "ended with 1, restarts"}
    shown = "\n".join(panel_of(filled, nodes, width=120, height=30))
    for words in (
        "camera/front",
        "30.0 Hz",
        "34 ms",
        "faces: face 0.90",
        "absent   no data for 2 s",
        "clap",
        "0.90",
        "encoder faces 4.0/4.0",
        "camera-front <- text/say: overflow 7, lost 2",
        "dim light",
        "ended with 1, restarts",
    ):
        assert words in shown


def test_the_panel_has_something_to_show_before_the_first_state() -> None:
    assert "waiting for the first state" in "\n".join(panel_of(Board(), {"fusion": "running"}))


def test_nodes_are_listed_with_what_they_lost() -> None:
    shown = text_of(node_table(board(health(1), health(2, published=30))))
    for words in ("camera-front", "degraded: dim light", "camera/front 30.0 Hz", "overflow 7, lost 2"):
        assert words in shown


def test_elsewhere_there_is_a_line_per_second_and_one_per_change_of_label() -> None:
    filled, out = Board(), io.StringIO()
    view = PlainView(filled, out, io.StringIO())
    for tick in range(31):
        filled.add(state(tick, "clap" if 14 <= tick < 17 else "idle"))
        view.update({}, now_s=tick / 10)
        view.update({}, now_s=tick / 10)
    labels = [line.split()[2] for line in out.getvalue().splitlines()]
    assert labels == ["idle", "idle", "clap", "idle", "idle"]


def test_a_fusion_that_fell_silent_is_said_once_a_second() -> None:
    filled, out = board(state(1)), io.StringIO()
    view = PlainView(filled, out, io.StringIO())
    for tenth in range(21):
        view.update({}, now_s=tenth / 10)
    assert out.getvalue().splitlines()[1:] == ["no new state"] * 2


def test_the_nodes_own_lines_carry_their_names_and_no_markup() -> None:
    errors = io.StringIO()
    view = PlainView(Board(), io.StringIO(), errors)
    view.log("camera-front", "opened [bold]/dev/video0[/bold]")
    view.close()
    assert errors.getvalue() == "camera-front | opened [bold]/dev/video0[/bold]\n"


def many_streams(count: int, *, reason: str = "") -> FusedState:
    one = ModalityState(
        topic="",
        presence="absent" if reason else "present",
        reason=reason,
        age_ms=12_345.0,
        branches={f"detector{n}": BranchState(labels=("something",), scores=(0.5,)) for n in range(6)},
    )
    modalities = {
        f"m{n}": structs.replace(one, topic=f"camera/a_rather_long_name_of_a_camera_{n}")
        for n in range(count)
    }
    header = state(1).header
    assert isinstance(header, FusedState)
    return structs.replace(header, modalities=modalities)


def test_on_80_by_24_rates_and_ages_are_never_cut() -> None:
    filled = board(Message("state/fused", many_streams(4, reason="a reason of many words " * 4)))
    for second in (1, 2):
        outputs = {f"camera/a_rather_long_name_of_a_camera_{n}": 1000 * second for n in range(4)}
        accounts = Health(stamp_ns=second * SECOND, node="camera", outputs=outputs)
        filled.add(Message("health/camera", accounts))
    lines = panel_of(filled)
    streams = [line for line in lines if line.startswith("camera/")]
    assert len(streams) == 4
    for line in streams:
        assert line.startswith("camera/a_rather_long_name… 1000.0 Hz 12345 ms  absent   a reason")


@pytest.mark.parametrize("height", [4, 5, 8, 12, 19, 40])
@pytest.mark.parametrize("streams", [1, 3, 30])
def test_where_room_is_short_nodes_and_losses_stay(height: int, streams: int) -> None:
    filled = board(Message("state/fused", many_streams(streams)), health(1), health(2, published=30))
    lines = panel_of(filled, {"camera-front": "running", "fusion": "ended with 1, restarts"}, height=height)
    shown = "\n".join(lines)
    assert "fusion ended with 1, restarts" in shown.replace("\n", " ")
    assert "camera-front <- text/say: overflow 7, lost 2" in shown
    if height >= 19 and streams <= 3:
        assert "idle" in shown
    if streams == 30 and 8 <= height <= 19:
        assert "more streams" in shown


def test_classes_keep_their_order_whatever_is_likely() -> None:
    def order(label: str) -> list[str]:
        header = state(1).header
        assert isinstance(header, FusedState)
        classes = ("idle", "wave", "clap")
        probabilities = tuple(0.9 if name == label else 0.05 for name in classes)
        fused = structs.replace(header.fused, classes=classes, probabilities=probabilities, label=label)
        lines = panel_of(board(Message("state/fused", structs.replace(header, fused=fused))))
        return [line.split()[0] for line in lines if line.split() and line.split()[0] in classes]

    assert order("idle") == order("clap") == ["idle", "wave", "clap"]


@pytest.mark.parametrize(
    ("score", "words"), [(0.0, "faces: -"), (0.004, "faces: -"), (0.01, "faces: face 0.01")]
)
def test_a_detector_at_nothing_has_detected_nothing(score: float, words: str) -> None:
    header = state(1).header
    assert isinstance(header, FusedState)
    faces = {"faces": BranchState(labels=("face",), scores=(score,))}
    camera = structs.replace(CAMERA, branches=faces)
    shown = "\n".join(
        panel_of(board(Message("state/fused", structs.replace(header, modalities={"camera": camera}))))
    )
    assert words in shown
    assert "0.00" not in shown.split("idle")[0]


def test_what_a_terminal_would_obey_is_shown_as_a_mark() -> None:
    filled = board(Message("state/fused", many_streams(1, reason="\x1b[2Jgone\nnew line")))
    assert "\ufffd[2Jgone\ufffdnew line" in "\n".join(panel_of(filled, width=120))


# --- on a terminal ---

ERASES = re.compile(r"\x1b\[\d*[JK]")


def live(filled: Board, **options: bool) -> tuple[LiveView, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=24)
    return LiveView(filled, console, "demo", **options), screen


def written(screen: io.StringIO) -> str:
    text = screen.getvalue()
    screen.seek(0)
    screen.truncate()
    return text


def test_only_lines_that_differ_are_written_and_nothing_is_erased() -> None:
    filled = board(state(1))
    view, screen = live(filled)
    view.update({"fusion": "running"}, now_s=0.0)
    assert "camera/front" in written(screen)
    view.update({"fusion": "running"}, now_s=1.0)
    assert written(screen) == ""
    view.update({"fusion": "ended with 1"}, now_s=2.0)
    change = written(screen)
    assert change.count("\x1b[23;1H") + change.count("\x1b[22;1H") == 1
    assert "camera/front" not in change
    assert not ERASES.search(change)
    view.close()


def test_a_panel_that_grows_and_shrinks_leaves_nothing_of_the_former() -> None:
    filled = Board()
    view, screen = live(filled)
    view.update({"fusion": "running"}, now_s=0.0)
    filled.add(state(1))
    filled.add(health(1))
    view.update({"fusion": "running"}, now_s=1.0)
    filled.nodes.clear()
    written(screen)
    view.update({"fusion": "running"}, now_s=2.0)
    assert f";1H{' ' * 80}" in written(screen), "the former first lines are overwritten"


def test_what_is_typed_stands_below_the_panel_which_never_moves_the_cursor() -> None:
    view, screen = live(board(state(1)), typing=True)
    begun = written(screen)
    assert begun.endswith("\x1b[23;24r\x1b[23;1H"), "only the rows for typing scroll"
    assert "\x1b[?25l" not in begun
    view.update({"fusion": "running"}, now_s=0.0)
    view.log("fusion", "warm")
    for part in written(screen).split("\x1b7")[1:]:
        assert part.endswith("\x1b8")
        rows = [int(row) for row in re.findall(r"\x1b\[(\d+);1H", part)]
        assert max(rows) <= 22
    view.close()


def test_lines_of_nodes_scroll_above_the_panel_and_the_terminal_is_given_back() -> None:
    view, screen = live(board(state(1)))
    view.update({"fusion": "running"}, now_s=0.0)
    written(screen)
    view.log("fusion", "warm \x1b[2J")
    log = written(screen)
    assert re.fullmatch(r"\x1b7\x1b\[1;(\d+)r\x1b\[\1;1H\r\n.*warm \ufffd\[2J.*\x1b\[23;24r\x1b8", log)
    view.close()
    assert written(screen).startswith("\x1b[r")
    view, screen = live(Board())
    view.close()
    assert screen.getvalue().endswith("\x1b[?25h"), "the cursor is visible again"


# --- in a pipe ---


def test_a_piped_report_cuts_neither_names_nor_reasons() -> None:
    name, reason = "camera-" + "x" * 150, "refused because of " + "many things " * 30
    summary = Summary(hop_ns=100 * MS, lateness_ns=0)
    summary.add(state(1))
    summary.add(Message("health/a", Health(stamp_ns=1, node=name, counts={reason: 3})))
    out = io.StringIO()
    print_report(summary.report(), out)
    (line,) = (line for line in out.getvalue().splitlines() if line.startswith(name))
    assert f"{reason} 3" in line


def test_piped_nodes_cut_neither_names_nor_reasons() -> None:
    name, reason = "camera-" + "x" * 150, "because of " + "many things " * 30
    filled = board(Message("health/a", Health(stamp_ns=1, node=name, status="lost", reason=reason)))
    console = Console(file=io.StringIO(), width=PLAIN_WIDTH)
    with console.capture() as capture:
        console.print(node_table(filled))
    assert f"{name}  lost: {reason.strip()}" in capture.get()
