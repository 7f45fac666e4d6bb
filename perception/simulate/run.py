"""Runs one scenario: the graph with its faults, the invariants, then `verify` of what was recorded.

Rules. One thread, no wall clock: the same scenario and parts give the same result.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from perception.errors import PerceptionError
from perception.fusion.build import build_engine
from perception.messages import Header, Message
from perception.profile import Profile
from perception.session.recompute.source import Source
from perception.session.recompute.verify import verify
from perception.simulate.checks import Checks, ViolationError
from perception.simulate.engine import cheap_engine
from perception.simulate.faults import SLOW, Active, Fault
from perception.simulate.hosts import Estimated
from perception.simulate.nodes import FusionProcess, Parts
from perception.simulate.recorder import FileSegment, MemorySegment, RecorderNode, Segment
from perception.simulate.scenario import START_NS, Scenario
from perception.simulate.streams import Delivery, deliveries
from perception.simulate.world import KilledError, World
from perception.units import SECOND_NS

LIGHT: Final = Parts(engine=cheap_engine)
REAL: Final = Parts(engine=build_engine)
_ENDS: Final = frozenset({"crash", "stop"})
_CATCHES_UP_NS: Final = 5 * SECOND_NS


class Failure(msgspec.Struct, frozen=True):
    """An invariant that did not hold."""

    seed: int
    invariant: str
    text: str
    step: int
    seconds: float
    """Of the scenario's time."""
    faults: tuple[Fault, ...]


class Outcome(msgspec.Struct):
    """What one scenario has shown."""

    seconds: float
    steps: int
    checks: Counter[str]
    seen: Counter[str]
    faults: Counter[str]
    failure: Failure | None = None


class Simulation:
    """One scenario.

    Args:
        scenario: what happens.
        parts: what the fusion is made of.
        folder: for session files.
    """

    def __init__(self, scenario: Scenario, parts: Parts, folder: Path) -> None:
        self.scenario = scenario
        self.world = World(START_NS)
        self.checks = Checks(scenario, self.world)
        self._parts = parts
        self._folder = folder
        self._profile = Profile(fusion=scenario.fusion)
        self._process: FusionProcess | None = None
        self._estimated: Estimated | None = None
        self._remote = {stream.topic for stream in scenario.streams if stream.remote}
        self._recorder = RecorderNode(self.world, Active(scenario.faults_at("recorder")), self._segment)

    def run(self) -> None:
        """Run it to its end, then verify the recording; ViolationError if an invariant does not hold."""
        scenario, world = self.scenario, self.world
        if scenario.estimated:
            self._estimated = Estimated(scenario, self._parts.remote_clock())
            self._ask()
        for stream in scenario.streams:
            world.play(deliveries(scenario, stream), self._deliver)
        end_ns = START_NS + round(scenario.seconds * SECOND_NS)
        ends = [fault for fault in scenario.faults_at("fusion") if fault.kind in _ENDS]
        incarnation = 0
        while world.now_ns < end_ns:
            later = (fault for fault in ends if START_NS + fault.start_ns > world.now_ns)
            fault = min(later, key=lambda one: one.start_ns, default=None)
            ends_ns = end_ns if fault is None else START_NS + fault.start_ns
            self._live(incarnation, ends_ns, killed=fault is not None and fault.kind == "crash")
            world.advance(end_ns if fault is None else START_NS + fault.stop_ns)
            incarnation += 1
        self._recorder.finish(killed=False)
        self.checks.seen["recorded"] += self._recorder.messages
        for source, whole in self._recorder.finished:
            self._verify(source, whole=whole)

    def _ask(self) -> None:
        """Ask the remote host for its time, again and again."""
        assert self._estimated is not None
        self.world.plan(self._estimated.ask(self.world.now_ns), self._ask)

    def _live(self, incarnation: int, ends_ns: int, *, killed: bool) -> None:
        """Run one incarnation of the fusion until it is stopped or killed."""
        process = FusionProcess(
            self.scenario, self.world, self._parts, incarnation, self._publish, self.checks.pushed
        )

        def end() -> None:
            process.stopped.set()
            if killed:
                raise KilledError

        self.checks.begin(process)
        self.world.plan(ends_ns, end)
        self._process = process
        try:
            process.run()
        except KilledError:
            pass
        except PerceptionError as error:
            raise ViolationError("alive", f"the fusion ended: {error}") from error
        finally:
            self._process = None
        self.checks.ended(killed=killed)

    def _deliver(self, delivery: Delivery) -> None:
        """Bring a message to the fusion and the recorder."""
        _, sent, copies, recorded = delivery
        message = Message(sent.topic, sent.header, sent.payload, self.world.now_ns)
        known: Message[Header] | None = message
        if self._estimated is not None and sent.topic in self._remote:
            known = self._estimated.correct(message)
        if copies and self._process is not None:
            mailbox = self._process.inbox.mailbox
            for _ in range(copies):
                mailbox.refuse(sent.topic, "clock unknown") if known is None else mailbox.put(known)
        if recorded:  # by a reader here, or by one that does not correct times
            self._recorder.take((known or message) if self.scenario.seed % 2 else message)

    def _publish(self, message: Message[Header]) -> None:
        self.checks.published(message)
        self._recorder.take(message)

    def _segment(self, is_full: Callable[[], bool]) -> tuple[Segment, bool]:
        """Begin a segment; a fusion that is behind journals what came before it."""
        elapsed_ns = self.world.now_ns - START_NS
        behind = any(
            fault.kind in SLOW and fault.start_ns <= elapsed_ns < fault.stop_ns + _CATCHES_UP_NS
            for fault in self.scenario.faults_at("fusion")
        )
        if self.scenario.mode == "light":
            return MemorySegment(is_full), not behind
        name = f"{self.scenario.seed}-{len(self._recorder.finished)}.mcap"
        return FileSegment(self._folder / name, self._profile, is_full), not behind

    def _verify(self, source: Source, *, whole: bool) -> None:
        verdict = verify(source, self._profile, workers=0, build=self._parts.engine, hidden=True)
        self.checks.require_same(verdict.different == 0, str(verdict.first))
        self.checks.seen["equal"] += verdict.equal
        self.checks.seen["not compared"] += verdict.states - verdict.equal
        if whole:
            self.checks.require_same(not verdict.missed, "\n".join(verdict.lines()))


def simulate(scenario: Scenario, folder: Path, parts: Parts | None = None) -> Outcome:
    """Run a scenario and return what it has shown; `parts` replaces those of its mode."""
    faults = scenario.faults
    together = (any(one.start_ns < other.start_ns < one.stop_ns for one in faults) for other in faults)
    simulation = Simulation(scenario, parts or (REAL if scenario.mode == "engine" else LIGHT), folder)
    simulation.checks.seen["faults during another"] = sum(together)
    failure = None
    try:
        simulation.run()
    except ViolationError as violation:
        world = simulation.world
        failure = Failure(
            seed=scenario.seed,
            invariant=violation.invariant,
            text=str(violation),
            step=world.steps,
            seconds=(world.now_ns - START_NS) / SECOND_NS,
            faults=faults,
        )
    return Outcome(
        seconds=scenario.seconds,
        steps=simulation.world.steps,
        checks=simulation.checks.counts,
        seen=simulation.checks.seen,
        faults=Counter(fault.kind for fault in faults),
        failure=failure,
    )
