"""The simulator finds each kind of broken mechanism; the real parts hold under its faults."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs

from perception.bus.mailbox import Mailbox
from perception.cli.main import cli
from perception.clock.remote import Probe, RemoteClock
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine
from perception.fusion.ledger import Backlog
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.messages import AudioBlock, CameraFrame, ClockTick, FusedState, Header, Message
from perception.profile import FusionConfig
from perception.simulate.campaign import minimised
from perception.simulate.checks import INVARIANTS
from perception.simulate.engine import CheapEngine, cheap_engine
from perception.simulate.faults import KINDS, Fault
from perception.simulate.minimise import fewest
from perception.simulate.nodes import ObservedCore, ObservedEarly
from perception.simulate.run import LIGHT, Outcome, simulate
from perception.simulate.scenario import Scenario, Stream
from perception.units import MILLISECOND_NS, SECOND_NS

CAMERA, MICROPHONE, TEXT = "camera/front", "microphone/main", "text/terminal"


def stream(topic: str, period_ms: float, **fields: Any) -> Stream:
    usual: dict[str, Any] = {"latency_ns": 5 * MILLISECOND_NS, "jitter_ns": MILLISECOND_NS, "remote": True}
    return Stream(topic, round(period_ms * MILLISECOND_NS), **(usual | fields))


def fault(kind: str, target: str, start_s: float, stop_s: float, amount: float = 0.0) -> Fault:
    return Fault(kind, target, round(start_s * SECOND_NS), round(stop_s * SECOND_NS), amount)


def scenario(*faults: Fault, seconds: float = 12.0, **fields: Any) -> Scenario:
    """A camera, a microphone and commands on one remote host."""
    plain = Scenario.of(1, seconds=seconds, mode="light")
    inputs = {topic.replace("/", "_"): {"topic": topic} for topic in (CAMERA, MICROPHONE)}
    encoders = {"main": {"input": "microphone_main", "kind": "level"}}
    config = FusionConfig.model_validate(
        {
            "lateness_ms": 150.0,
            "threads": 1,
            "inputs": inputs | {"text_terminal": {"topic": "text/*"}},
            "encoders": encoders,
            "head": {"classes": ("a", "b")},
        }
    )
    streams = (stream(CAMERA, 100), stream(MICROPHONE, 100, rate_hz=1000), stream(TEXT, 700))
    given: dict[str, Any] = {"streams": streams, "fusion": config, "inference": 0.3, "faults": faults}
    return structs.replace(plain, **(given | fields))


def broken(folder: Path, one: Scenario, **parts: Any) -> str:
    """Return the invariant that fails with these parts; with the real parts none does."""
    assert simulate(one, folder, LIGHT).failure is None
    failure = simulate(one, folder, replace(LIGHT, **parts)).failure
    return "" if failure is None else failure.invariant


def cores(kind: Callable[..., ObservedCore]) -> dict[str, Any]:
    return {"core": kind}


# --- each invariant fails when its mechanism is broken ---


class ForgetsToShed(Backlog):
    def offer(self, windows: Sequence[Window], cut_ns: int) -> list[int]:
        super().offer(windows, cut_ns)
        return []


def test_a_shed_that_no_journal_names_is_found(tmp_path: Path) -> None:
    overload = scenario(fault("overload", "fusion", 4, 8, 3.0))
    assert broken(tmp_path, overload, backlog=ForgetsToShed) == "tick"


class SkipsTicks(ObservedCore):
    def _cut(self, next_tick: int) -> list[Window]:
        return [window for window in super()._cut(next_tick) if window.tick % 50]


def test_a_tick_that_is_never_cut_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), **cores(SkipsTicks)) == "tick"


class WaitsForTheDead(ObservedCore):
    @property
    def watermark_ns(self) -> int | None:
        return min((s.newest_ns for s in self._clocked if s.newest_ns is not None), default=None)


def test_output_that_a_dead_stream_stops_is_found(tmp_path: Path) -> None:
    death = scenario(fault("death", CAMERA, 4, 10))
    assert broken(tmp_path, death, **cores(WaitsForTheDead)) == "alive"


class NotANumber(CheapEngine):
    def run(self, window: Window, *, cut_ns: int = 0, shed: int = 0) -> FusedState:
        state = super().run(window, cut_ns=cut_ns, shed=shed)
        if not all(item.data is None for item in window.inputs.values()):
            return state
        return structs.replace(state, fused=structs.replace(state.fused, probabilities=(math.nan, 0.0)))


def engine_of(kind: type[CheapEngine]) -> Callable[..., Engine]:
    def build(config: FusionConfig, *, clock: Callable[[], int]) -> Engine:
        real = cheap_engine(config, clock=clock)
        return kind(real.config, real.encoders, real.head, device=real.device, clock=clock)

    return build


def test_a_state_with_nan_is_found(tmp_path: Path) -> None:
    outage = scenario(fault("outage", "host", 4, 10))
    assert broken(tmp_path, outage, engine=engine_of(NotANumber)) == "finite"


class TakesLateFrames(ObservedCore):
    """A frame whose stamp runs back replaces the newest."""

    def _admit(self, message: Message[Any]) -> int:
        self._newest_of_topic.pop(message.topic, None)
        return super()._admit(message)


def test_a_core_that_lets_late_data_in_is_found(tmp_path: Path) -> None:
    behind = scenario(fault("behind", CAMERA, 4, 8, 0.3))
    assert broken(tmp_path, behind, **cores(TakesLateFrames)) == "late"


class CutsTwice(ObservedCore):
    """A late frame makes the last window be cut again."""

    def push(self, message: Message[Header]) -> list[Window]:
        late = message.header.stamp_ns <= self._final_ns and not isinstance(message.header, ClockTick)
        if late and isinstance(message.header, CameraFrame) and self._next_tick is not None:
            self._next_tick -= 1
        return super().push(message)


def test_a_window_that_is_computed_again_for_late_data_is_found(tmp_path: Path) -> None:
    late = scenario(fault("late", CAMERA, 4, 8, 0.4))
    assert broken(tmp_path, late, **cores(CutsTwice)) == "tick"


class AlwaysPresent(Presence):
    def mark_held(self, window: Window) -> Window:
        return window


def test_a_state_that_calls_an_old_frame_new_is_found(tmp_path: Path) -> None:
    slow = scenario(fault("gap", CAMERA, 4, 4.35))
    assert broken(tmp_path, slow, presence=AlwaysPresent) == "presence"


class ComparesWithShed(Backlog):
    """Presence compares with windows that were shed."""

    presence = Presence()

    def offer(self, windows: Sequence[Window], cut_ns: int) -> list[int]:
        return super().offer([self.presence.mark_held(window) for window in windows], cut_ns)


def test_a_state_that_calls_held_what_no_state_showed_is_found(tmp_path: Path) -> None:
    overload = scenario(fault("overload", "fusion", 4, 8, 3.0), streams=(stream(CAMERA, 170), *STREAMS[1:]))
    assert broken(tmp_path, overload, backlog=ComparesWithShed) == "presence"


STREAMS = scenario().streams


class NeverSteps(RemoteClock):
    def _contradicts(self, probe: Probe) -> bool:
        return False


def test_a_host_whose_clock_was_set_and_is_not_corrected_is_found(tmp_path: Path) -> None:
    clocks: dict[str, Any] = {"estimated": True, "host_offset_ns": 20 * SECOND_NS, "host_ppm": 80.0}
    for seconds in (0.7, 40.0):
        one = scenario(fault("host clock", "host", 8, 20, seconds), seconds=30.0, **clocks)
        assert broken(tmp_path, one, remote_clock=NeverSteps) == "presence"


class Credulous(ObservedCore):
    """Reads no condition, as by earlier rules."""

    def _stream(self, name: str, config: Any) -> Any:
        return super()._stream(name, config.model_copy(update={"absent_when": (), "suspect_when": ()}))


@pytest.mark.parametrize("topic", [CAMERA, MICROPHONE])
def test_a_stream_that_lies_and_is_shown_as_present_is_found(tmp_path: Path, topic: str) -> None:
    lie = scenario(fault("lie", topic, 4, 9, 0.2))  # black; silent
    assert broken(tmp_path, lie, **cores(Credulous)) in ("presence", "condition")


class Nameless(ObservedCore):
    """Loses the condition of sound that is used."""

    def push(self, message: Message[Header]) -> list[Window]:
        if isinstance(message.header, AudioBlock):
            message = structs.replace(message, header=structs.replace(message.header, condition="ok"))
        return super().push(message)


def test_a_state_that_does_not_name_the_condition_of_its_data_is_found(tmp_path: Path) -> None:
    lie = scenario(fault("lie", MICROPHONE, 4, 9, 0.35))  # clipped
    assert broken(tmp_path, lie, **cores(Nameless)) == "condition"


class Deaf(Mailbox):
    """Drops sound after a while, and counts it."""

    blocks = 0

    def put(self, message: Message[Header]) -> None:
        self.blocks += isinstance(message.header, AudioBlock)
        if self.blocks > 60 and isinstance(message.header, AudioBlock):
            self.refuse(message.topic)
        else:
            super().put(message)


def test_a_stream_that_is_lost_without_a_fault_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), mailbox=Deaf) == "presence"


class Remembers(ObservedCore):
    """Shows the last frame of a dead camera for another second."""

    def __init__(self, config: FusionConfig, observe: Any) -> None:
        inputs = {n: i.model_copy(update={"max_age_ms": 1500.0}) for n, i in config.inputs.items()}
        super().__init__(config.model_copy(update={"inputs": inputs}), observe)
        self.config_hash = FusionCore(config).config_hash


def test_a_dead_stream_that_is_shown_as_present_is_found(tmp_path: Path) -> None:
    death = scenario(fault("death", CAMERA, 4, 8))
    assert broken(tmp_path, death, **cores(Remembers)) in ("late", "presence")


class LosesCounts(Mailbox):
    def put(self, message: Message[Header]) -> None:
        if message.topic != CAMERA or message.header.seq % 40 != 39:
            super().put(message)
        else:
            self._account(message.topic).received += 1


def test_a_message_that_is_lost_uncounted_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), mailbox=LosesCounts) == "conservation"


class Swallows(ObservedEarly):
    """Loses what waits."""

    def due(self, now_ns: int) -> Iterator[Message[Header]]:
        return (one for one in super().due(now_ns) if one.topic != CAMERA or one.header.seq % 40 != 39)


def test_a_message_that_waited_and_is_lost_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), early=Swallows) == "conservation"


class KeepsAll(ObservedCore):
    def __init__(self, config: FusionConfig, observe: Any) -> None:
        super().__init__(config, observe)
        self._all: list[Message[Header]] = []

    def push(self, message: Message[Header]) -> list[Window]:
        self._all += [message] * 500
        return super().push(message)


def test_memory_that_only_grows_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(seconds=45), **cores(KeepsAll)) == "memory"


class Foresees(ObservedCore):
    @property
    def watermark_ns(self) -> int | None:
        return None if self._newest_ns is None else self._newest_ns + 2 * self.hop_ns

    def push(self, message: Message[Header]) -> list[Window]:
        windows = super().push(message)
        return windows or self._cut(self._next_tick or 0)


def test_a_window_of_the_future_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), **cores(Foresees)) in ("future", "tick")


class Forgetful(CheapEngine):
    """Its states depend on when the process was started."""

    runs = 0

    def run(self, window: Window, *, cut_ns: int = 0, shed: int = 0) -> FusedState:
        self.runs += 1
        state = super().run(window, cut_ns=cut_ns, shed=shed)
        return structs.replace(state, fused=structs.replace(state.fused, entropy=float(self.runs)))


def test_a_state_that_does_not_follow_from_the_recording_is_found(tmp_path: Path) -> None:
    assert broken(tmp_path, scenario(), engine=engine_of(Forgetful)) == "recompute"


# --- scenarios ---


def seen(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.steps, outcome.checks, outcome.seen, outcome.failure


def test_a_seed_gives_the_same_scenario_and_the_same_run(tmp_path: Path) -> None:
    one, other = (Scenario.of(11, seconds=60.0) for _ in range(2))
    assert one == other != Scenario.of(12, seconds=60.0)
    (tmp_path / "other").mkdir()
    assert seen(simulate(one, tmp_path)) == seen(simulate(other, tmp_path / "other"))


def test_a_failure_repeats_at_the_same_step_and_is_cut_to_the_faults_that_cause_it(tmp_path: Path) -> None:
    faults = (
        fault("duplicate", CAMERA, 3.5, 5, 0.5),
        fault("drift", MICROPHONE, 3.5, 8, 100),
        fault("loss", TEXT, 4, 6, 0.3),
        fault("overload", "fusion", 5, 8, 3.0),
        fault("lie", CAMERA, 5, 9, 0.2),
        fault("gap", MICROPHONE, 9.5, 9.8),
    )
    parts = replace(LIGHT, backlog=ForgetsToShed)
    one = scenario(*faults)
    first, again = (simulate(one, tmp_path, parts).failure for _ in range(2))
    assert first is not None
    assert first == again
    fewer = minimised(one, first, tmp_path, parts)
    assert (fewer.invariant, [fault.kind for fault in fewer.faults]) == ("tick", ["overload"])


@pytest.mark.parametrize("guilty", [(), (0,), (7,), (2, 5), (0, 4, 9), tuple(range(10))])
def test_the_fewest_items_that_fail_are_kept(guilty: tuple[int, ...]) -> None:
    assert fewest(range(10), lambda part: set(guilty) <= set(part)) == list(guilty)


def test_every_kind_of_fault_and_every_mode_is_drawn() -> None:
    scenarios = [Scenario.of(seed) for seed in range(60)]
    assert {fault.kind for one in scenarios for fault in one.faults} == set(KINDS)
    assert {one.mode for one in scenarios} == {"light", "file", "engine"}
    overlapping = [
        (fault, other)
        for one in scenarios
        for fault in one.faults
        for other in one.faults
        if fault.start_ns < other.start_ns < fault.stop_ns
    ]
    assert len(overlapping) > 100


@pytest.mark.parametrize("seed", [2, 5])
def test_with_a_real_file_and_the_real_engine_states_are_recomputed(tmp_path: Path, seed: int) -> None:
    outcome = simulate(Scenario.of(seed, seconds=15.0), tmp_path)
    assert outcome.failure is None, outcome.failure
    assert outcome.seen["equal"] > 10
    assert outcome.checks.keys() >= INVARIANTS.keys()


# --- faults of the product that the simulator found ---


def test_after_a_fast_clock_is_set_back_frames_are_used_in_their_order(tmp_path: Path) -> None:
    outcome = simulate(
        scenario(fault("ahead", CAMERA, 4, 6, 0.6), fault("ahead", MICROPHONE, 6.1, 9, 0.85)), tmp_path
    )
    assert outcome.failure is None, outcome.failure
    assert outcome.seen["not compared"] <= 4


def test_a_host_that_slept_for_a_minute_leaves_a_recording_that_can_be_verified(tmp_path: Path) -> None:
    asleep = scenario(fault("busy", "fusion", 4, 6.5, 60), fault("suspend", "fusion", 6, 66), seconds=75)
    outcome = simulate(asleep, tmp_path)
    assert outcome.failure is None, outcome.failure
    assert outcome.seen["not compared"] <= 2


def test_a_recording_that_begins_while_early_sound_waits_lacks_its_beginning_only(tmp_path: Path) -> None:
    faults = fault("recorder crash", "recorder", 4, 6.3), fault("ahead", MICROPHONE, 6.1, 9, 0.85)
    outcome = simulate(scenario(*faults), tmp_path)
    assert outcome.failure is None, outcome.failure


# --- the command ---


def test_the_command_reports_what_it_has_simulated(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = CliRunner().invoke(cli, ["simulate", "--seed", "2", "--scenarios", "1", "--report", str(file)])
    assert result.exit_code == 0, result.output
    assert "1 scenarios (1 file)" in result.output
    assert '"failures": []' in file.read_text()
