"""A standby takes over a fusion that was killed: at once, alone, without a state lost uncounted."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from perception.bus.host import HostClock, Runtime
from perception.bus.role import Role, sweep
from perception.bus.subscriber import Subscriber
from perception.fusion.build import build_engine
from perception.fusion.compute import Compute
from perception.fusion.core import FusionCore
from perception.graph.fusion_loop import FusionLoop
from perception.graph.intake import Intake
from perception.graph.judging import Judging
from perception.graph.plan import Node, plan
from perception.graph.restart import PERMANENT
from perception.graph.standby import Standby
from perception.graph.supervisor import Supervisor
from perception.messages import (
    PROCESS,
    FusedState,
    Header,
    HeadUse,
    Health,
    HostTime,
    InputHealth,
    Journal,
    Message,
)
from perception.models.fusion import FeatureFusion
from perception.profile import FusionConfig, HeadConfig, Profile
from perception.session.recompute.verify import verify
from perception.units import SECOND_NS
from tests.live import Arrivals, LiveRun, Wall
from tests.streams import START_NS
from tests.test_up import FUSED, up
from tests.test_verify import SPEED, fusion, scripted, states_of
from tests.waiting import LONG_S, eventually

DIES_NS: Final = START_NS + 3 * SECOND_NS
TAKES_OVER_NS: Final = DIES_NS + SECOND_NS // 3


class Active:
    """What the killed fusion published, as it arrives."""

    def __init__(self, messages: Sequence[Message[Header]], clock: Callable[[], int]) -> None:
        self._messages = list(messages)
        self._clock = clock

    def receive(self, timeout_s: float) -> Message[Header] | None:
        if self._messages and self._messages[0].received_ns <= self._clock():
            return self._messages.pop(0)
        return None

    def health(self) -> dict[str, InputHealth]:
        return {}

    def host_times(self) -> dict[str, HostTime]:
        return {}


class TakeOver(LiveRun):
    """A process that follows a recorded one until it takes over."""

    def __init__(self, active: Sequence[Message[Header]], config: FusionConfig) -> None:
        super().__init__(config, "second", speed=SPEED)
        self._active = active
        self.missed: list[int] = []
        self.head: HeadUse | None = None

    def take_over(self, arrivals: Sequence[Message[Header]]) -> list[Message[Header]]:
        """Return the whole recording: that of the killed process, and this one's."""
        clock = Wall(arrivals[0].received_ns, SPEED)
        engine = build_engine(self._config, clock=clock.now_ns)
        clock.start()
        inbox = Arrivals(arrivals, {}, clock)
        core, judging = FusionCore(self._config), Judging()
        intake = Intake(core, inbox, clock.now_ns)
        active = Active(self._active, clock.now_ns)
        standby = Standby(core, intake, active, clock=clock.now_ns, judging=judging)
        standby.follow(lambda: clock.now_ns() >= TAKES_OVER_NS, threading.Event())
        outputs = self._outputs(clock.now_ns)
        compute = Compute(engine, outputs.state.send, clock.now_ns)
        loop = FusionLoop(core, compute, intake, outputs, clock.now_ns, judging)
        missed = standby.missed()
        self.missed, self.head = [window.tick for window in missed], standby.head
        compute.offer(missed)
        compute.start()
        loop.run(inbox.ended)
        whole = [*arrivals, *self._active, *self.recorded]
        return sorted(whole, key=lambda message: message.received_ns)


def take_over(config: FusionConfig) -> tuple[list[Message[Header]], TakeOver]:
    """Six seconds; the fusion is killed after three, and journaled up to a quarter of a second before."""
    arrivals = scripted(6.0)
    before = [message for message in arrivals if message.received_ns < DIES_NS]
    whole = LiveRun(config, "first", speed=SPEED).run(before)
    inputs = set(map(id, before))
    journals_end_ns = DIES_NS - SECOND_NS // 4
    killed = [
        message
        for message in whole
        if id(message) not in inputs
        and message.received_ns < (journals_end_ns if isinstance(message.header, Journal) else DIES_NS)
    ]
    second = TakeOver(killed, config)
    return second.take_over(arrivals), second


@pytest.fixture(scope="module")
def taken_over() -> tuple[list[Message[Header]], TakeOver]:
    return take_over(fusion())


def test_each_tick_of_a_takeover_has_one_state_or_is_journaled_as_shed(
    taken_over: tuple[list[Message[Header]], TakeOver],
) -> None:
    recording, second = taken_over
    states = states_of(recording)
    sources = [state.source for state in states]
    new = sources.index("fusion#statesecond")
    assert set(sources[new:]) == {"fusion#statesecond"}, "only one publishes states"
    ticks = [state.tick for state in states]
    assert all(after > before for before, after in pairwise(ticks)), "no tick has two states"
    journaled = {
        entry.seq
        for message in recording
        if isinstance(message.header, Journal) and message.header.state_source == "fusion#statesecond"
        for entry in message.header.entries
        if entry.kind == "shed"
    }
    assert set(range(ticks[new - 1] + 1, ticks[new])) == {tick for tick in journaled if tick < ticks[new]}
    assert states[new].shed == ticks[new] - ticks[new - 1] - 1 == len(second.missed) - 1
    reasons = {one.reason for state in states[new:] for one in state.modalities.values()}
    assert not reasons & {"filling", "never"}, "a second of sound was there at once"


def test_a_takeover_is_recorded_with_a_mark_and_verifies(
    taken_over: tuple[list[Message[Header]], TakeOver],
) -> None:
    recording, second = taken_over
    first_journal = next(
        message.header
        for message in recording
        if isinstance(message.header, Journal) and message.header.state_source == "fusion#statesecond"
    )
    assert first_journal.before is not None
    assert first_journal.before.newest_ns is not None
    assert second.head is not None
    assert second.head.head_hash == first_journal.heads[0].head_hash
    verdict = verify(recording, Profile(fusion=fusion()))
    assert (verdict.exit_code, verdict.different) == (0, 0), list(verdict.lines())
    assert verdict.equal > len(states_of(recording)) * 2 // 3
    assert verdict.skipped["a standby took over, and its windows need sound from before"] <= 12


def test_a_takeover_of_a_head_with_a_memory_verifies_too(tmp_path: Path) -> None:
    """The new process has no memory of the ticks before."""
    dims = build_engine(fusion(), clock=lambda: 0).dims
    FeatureFusion(dims, ("a", "b", "c"), gru=8, ticks=5).save_pretrained(tmp_path)
    config = fusion(head=HeadConfig(weights=str(tmp_path)))
    recording, _ = take_over(config)
    verdict = verify(recording, Profile(fusion=config))
    assert (verdict.exit_code, verdict.different) == (0, 0), list(verdict.lines())
    assert verdict.equal > len(states_of(recording)) // 2


def test_a_role_is_free_the_moment_its_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom perception.bus.role import Role\n"
        "assert Role(pathlib.Path(sys.argv[1]), 'fused').take()\nprint('active', flush=True)\ntime.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    with other.stdout:
        assert other.stdout.readline() == "active\n"
    role = Role(tmp_path, "fused")
    assert not role.take()
    waiter = threading.Thread(target=role.wait, daemon=True)
    waiter.start()
    sweep(tmp_path)
    assert waiter.is_alive()
    other.kill()
    other.wait()
    waiter.join(LONG_S)
    assert not waiter.is_alive()
    assert not Role(tmp_path, "fused").take()
    role.release()
    assert not any(tmp_path.iterdir())


def test_what_killed_roles_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".fused.active").touch()
    sweep(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_standby_is_started_when_the_fusion_works_and_cannot_stop_the_graph() -> None:
    nodes = plan(Profile(fusion=fusion(standby=True)), "p", origin_ns=0)
    assert [(node.name, node.after) for node in nodes] == [("fusion", ""), ("fusion-standby", "fusion")]
    assert nodes[0].command == nodes[1].command
    assert nodes[1].stay_down == PERMANENT
    code = "import time; print('up', flush=True); time.sleep(60)"
    first = Node("fusion", (sys.executable, "-c", code))
    second = Node("fusion-standby", (sys.executable, "-c", code), after="fusion")
    with Supervisor([first, second]) as supervisor:
        supervisor.poll()
        assert supervisor.status() == {"fusion": "running", "fusion-standby": "starting"}
        facts: dict[str, str | float] = {PROCESS: supervisor.pids()["fusion"]}
        supervisor.beat(Health(stamp_ns=0, source="fusion#1", node="fusion", device=facts))
        supervisor.poll()
        assert supervisor.pids().keys() == {"fusion", "fusion-standby"}


def test_a_standby_of_no_fusion_changes_no_hash_of_a_recording() -> None:
    with_standby, without = (FusionCore(fusion(standby=one)).config_hash for one in (True, False))
    assert with_standby == without
    engines = [build_engine(fusion(standby=one), clock=lambda: 0) for one in (True, False)]
    assert engines[0].info == engines[1].info


@pytest.fixture
def graph(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    profile = tmp_path / "graph.toml"
    profile.write_text(FUSED.replace("[fusion]\n", "[fusion]\nstandby = true\n"))
    with up(profile) as process:
        yield process


def test_a_killed_fusion_is_replaced_by_its_standby(graph: "subprocess.Popen[str]") -> None:
    """Real processes; how long it takes is measured by tests/benchmarks/takeover.py."""
    topics = ("state/fused", "health/*")
    with Subscriber(*topics, runtime=Runtime("test"), clock=HostClock().now_ns) as subscriber:

        def next_message(wanted: Callable[[Any], bool]) -> Any:
            while (message := subscriber.receive(LONG_S)) is not None:
                if wanted(message.header):
                    return message.header
            raise AssertionError("none came")

        active = next_message(lambda one: isinstance(one, Health) and one.node == "fusion")
        standby = next_message(lambda one: isinstance(one, Health) and one.node == "fusion-standby")
        assert standby.reason == "stands by: its models are loaded"
        last = next_message(lambda one: isinstance(one, FusedState))
        os.kill(int(active.device[PROCESS]), signal.SIGKILL)
        state = next_message(lambda one: isinstance(one, FusedState) and one.source != last.source)
        health = next_message(
            lambda one: isinstance(one, Health) and one.node == "fusion" and bool(one.inputs)
        )
        assert state.tick > last.tick
        eventually(
            lambda: (
                next_message(lambda one: isinstance(one, Health) and one.node == "fusion").device[PROCESS]
                == standby.device[PROCESS]
            )
        )
        assert health.node == "fusion"
