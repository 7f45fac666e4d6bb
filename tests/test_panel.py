"""What a person sees while a graph runs."""

import io

from rich.console import Console, RenderableType

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
from perception.panel import Board, LiveView, PlainView, live_panel, node_table, state_line

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


def test_without_states_the_line_says_what_is_published() -> None:
    assert state_line(Board(), {}) == "no state yet"
    loading = {"fusion": "loading models, 12 s", "camera-front": "running"}
    assert state_line(Board(), loading) == "fusion: loading models, 12 s"
    assert "fusion: loading models, 12 s" in text_of(live_panel(Board(), loading, "demo"))
    assert state_line(board(health(1), health(2, published=30)), {}) == "no state yet  camera/front 30.0 Hz"


def test_the_panel_shows_streams_label_latency_drops_and_nodes() -> None:
    filled = board(state(1), state(2, "clap"), health(1), health(2, published=30))
    shown = text_of(
        live_panel(filled, {"camera-front": "running", "fusion": "ended with 1, restarts"}, "demo")
    )
    for words in (
        "camera/front",
        "30.0 Hz",
        "34 ms",
        "faces: face 0.90",
        "absent (no data for 2 s)",
        "clap",
        "0.90",
        "encoder faces 4.0/4.0",
        "camera-front <- text/say: overflow 7, lost 2",
        "dim light",
        "ended with 1, restarts",
    ):
        assert words in shown


def test_the_panel_has_something_to_show_before_the_first_state() -> None:
    assert "waiting for the first state" in text_of(live_panel(Board(), {"fusion": "running"}, "demo"))


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


def test_on_a_terminal_the_panel_stays_and_lines_scroll_by_above_it() -> None:
    screen = io.StringIO()
    view = LiveView(board(state(1)), Console(file=screen, force_terminal=True, width=100), "demo")
    view.update({"fusion": "running"}, now_s=0.0)
    view.log("fusion", "warm")
    view.update({"fusion": "running"}, now_s=1.0)
    view.close()
    shown = screen.getvalue()
    assert shown.index("warm") < shown.rindex("demo")
    assert shown.endswith("\x1b[?25h"), "the cursor is visible again"
