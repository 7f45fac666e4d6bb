"""A fusion's health names what is wrong, with its figure, and returns to ok; dead inputs cost no state."""

import threading
import time
from itertools import combinations
from typing import Any, Final

import pytest

from perception.errors import PerceptionError
from perception.fusion.build import build_engine
from perception.fusion.compute import Compute
from perception.fusion.core import FusionCore
from perception.graph.fusion_health import Figures, FusionJudge
from perception.graph.fusion_loop import FusionLoop
from perception.graph.liveness import Standing
from perception.messages import (
    Fused,
    FusedState,
    Health,
    HostTime,
    InputHealth,
    Latency,
    ModalityState,
    ModelInfo,
)
from perception.units import SECOND_NS
from tests.live import LiveRun, Wall
from tests.streams import (
    CAMERA,
    MICROPHONE,
    MS,
    START_NS,
    camera_stream,
    config,
    microphone_stream,
    run_live,
    text_stream,
)
from tests.test_verify import SPEED, fusion, scripted

HOP_NS: Final = 100 * MS


class Run:
    """A fusion of 100 ms as its judge gets it: one state per step unless the window is shed."""

    def __init__(self) -> None:
        self.judge = FusionJudge(config(), START_NS)
        self.now_ns = START_NS
        self.published = self.shed = 0
        self.counts: dict[str, dict[str, int]] = {CAMERA: {}, MICROPHONE: {}}
        self.newest_ns: dict[str, int] = {}

    def steps(
        self,
        count: int,
        *,
        dead: str = "",
        condition: str = "",
        slow_ms: float = 0.0,
        refused: str = "",
        computes: bool = True,
    ) -> Standing:
        """Return what is judged after so many steps with these faults."""
        found = Standing("ok")
        for _ in range(count):
            self.now_ns += HOP_NS
            self.newest_ns |= {topic: self.now_ns for topic in (CAMERA, MICROPHONE) if topic != dead}
            if refused:
                self.counts[CAMERA][refused] = self.counts[CAMERA].get(refused, 0) + 2
            if computes:
                self.published += 1
                self.judge.add(self._state(dead, condition, slow_ms))
            else:
                self.shed += 1
            counts = {topic: dict(reasons) for topic, reasons in self.counts.items()}
            figures = Figures(self.now_ns, counts, dict(self.newest_ns), self.shed, self.published)
            found = self.judge.judge(figures)
        return found

    def _state(self, dead: str, condition: str, slow_ms: float) -> FusedState:
        def modality(topic: str) -> ModalityState:
            if topic == dead:
                return ModalityState(topic=topic, presence="absent", reason="dead")
            return ModalityState(topic=topic, presence="present", condition=condition * (topic == CAMERA))

        return FusedState(
            stamp_ns=self.now_ns - 50 * MS,
            tick=self.published,
            fused=Fused(classes=("a",), probabilities=(1.0,), label="a", confidence=1.0, entropy=0.0),
            modalities={
                "camera": modality(CAMERA),
                "microphone": modality(MICROPHONE),
                "text": ModalityState(topic="text/*", presence="absent", reason="no command"),
            },
            model=ModelInfo(config_hash="", weights_hash=""),
            latency=Latency(encoders_ms={"faces": slow_ms, "level": 2.0}, head_ms=1.0),
        )


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"dead": CAMERA}, "camera/front: absent: dead, newest data 2.0 s old"),
        ({"condition": "blurred"}, "camera/front: suspect: blurred"),
        ({"refused": "stamp ahead"}, "camera/front: refused in 3 s: stamp ahead 40"),
        ({"slow_ms": 200.0}, "models take 132 ms of a hop of 100 ms, encoder faces 129 ms"),
    ],
)
def test_each_fault_is_named_with_its_figure_until_it_is_over(fault: dict[str, Any], reason: str) -> None:
    run = Run()
    assert run.steps(30) == Standing("ok")
    assert run.steps(20, **fault) == Standing("degraded", reason)
    assert run.steps(50) == Standing("ok")


def test_a_condition_in_which_the_profile_uses_the_data_is_no_fault() -> None:
    item = config().inputs["camera"].model_copy(update={"suspect_when": ()})
    run = Run()
    run.judge = FusionJudge(config(inputs=config().inputs | {"camera": item}), START_NS)
    assert run.steps(40, condition="blurred") == Standing("ok")


def test_a_text_without_commands_one_late_block_and_one_shed_window_are_no_fault() -> None:
    run = Run()
    assert run.steps(30) == run.steps(1, dead=MICROPHONE) == run.steps(1, computes=False) == Standing("ok")


def test_an_input_that_never_delivered_is_named_after_a_time_to_start() -> None:
    run = Run()
    assert run.steps(25, dead=CAMERA).status == "ok"
    assert run.steps(10, dead=CAMERA) == Standing("degraded", "camera/front: no data since the start")


def test_windows_shed_beyond_a_share_and_states_that_stop_are_named() -> None:
    run = Run()
    run.steps(30)
    for _ in range(6):
        run.steps(4, computes=False)
        found = run.steps(1)
    assert found == Standing("degraded", "80% of windows shed")
    stopped = run.steps(5, computes=False)
    assert stopped.status == "degraded"
    assert stopped.reason.startswith("no state for 0.5 s; ")
    gone = run.steps(25, computes=False)
    assert gone.status == "lost"
    assert gone.reason.startswith("no state for 3.0 s")
    run.steps(10)
    assert run.steps(40) == Standing("ok")


def test_a_process_that_was_stopped_while_its_host_slept_has_no_models_that_hang() -> None:
    run = Run()
    run.steps(20)
    run.now_ns += 3600 * SECOND_NS
    assert not run.steps(1, computes=False).reason
    assert run.judge.stateless_ns(run.now_ns) < SECOND_NS
    assert run.steps(40, computes=False).status == "lost"


def test_the_loop_publishes_what_is_judged() -> None:
    """The real loop on real streams, of which the camera dies and the models are too slow."""
    dies_ns = START_NS + 3 * SECOND_NS
    arrivals = [one for one in scripted(6.0) if one.topic != CAMERA or one.header.stamp_ns < dies_ns]
    recording = LiveRun(fusion(), "dead", speed=SPEED, slow=("level", 0.03)).run(arrivals)
    health = [one.header for one in recording if isinstance(one.header, Health)]
    dead = [one for one in health if "camera/front: absent: lost, newest data" in one.reason]
    assert dead, "within the three seconds that are left"
    assert {one.status for one in dead} <= {"degraded", "lost"}
    assert any("encoder level" in one.reason and "windows shed" in one.reason for one in health)


class Quiet:
    """An inbox without messages."""

    def receive(self, timeout_s: float) -> None:
        time.sleep(min(timeout_s, 0.01))

    def health(self) -> dict[str, InputHealth]:
        return {}

    def host_times(self) -> dict[str, HostTime]:
        return {}


def test_a_fusion_whose_models_hang_is_lost_and_then_ends_with_the_reason() -> None:
    """A restart is all that helps; its main loop reports until then."""
    run, clock, released = LiveRun(fusion(), "hangs", speed=SPEED), Wall(START_NS, SPEED), threading.Event()
    outputs = run._outputs(clock.now_ns)
    compute = Compute(build_engine(fusion(), clock=clock.now_ns), lambda _: released.wait(), clock.now_ns)
    compute.start()
    loop = FusionLoop(FusionCore(fusion()), compute, Quiet(), outputs, clock.now_ns)
    try:
        with pytest.raises(PerceptionError, match=r"^the models hang: no state for \d+\.\d s"):
            loop.run(threading.Event())
    finally:
        released.set()
        compute.stop()
    health = [one.header for one in run.recorded if isinstance(one.header, Health)]
    assert [one for one in health if one.status == "lost" and one.reason.startswith("no state for")]


@pytest.mark.parametrize("dead", [dead for count in (1, 2, 3) for dead in combinations((0, 1, 2), count)])
def test_a_state_per_hop_whatever_modalities_are_dead(dead: tuple[int, ...]) -> None:
    lives_s = [2.0 if number in dead else 12.0 for number in range(3)]
    streams = camera_stream(lives_s[0]), microphone_stream(lives_s[1]), text_stream(lives_s[2])
    messages = [message for stream in streams for message in stream]
    windows = run_live(FusionCore(config()), messages, START_NS + 12 * SECOND_NS)
    ticks = [window.tick for window in windows]
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks))), "none is missing, none is double"
    assert len(ticks) >= 117
