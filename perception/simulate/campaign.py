"""Scenarios one after the other until so many hours are simulated, and the report of them.

Rules. One thread. Scenario k of a campaign has seed `seed + k`, so each can be run again alone.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

from msgspec import structs, to_builtins

from perception.simulate.checks import INVARIANTS
from perception.simulate.faults import KINDS
from perception.simulate.minimise import fewest
from perception.simulate.nodes import Parts
from perception.simulate.run import Failure, Outcome, simulate
from perception.simulate.scenario import Scenario

HOUR_S: Final = 3600.0
MAX_FAILURES: Final = 10
"""A campaign ends after so many."""


@dataclass(slots=True)
class Report:
    """Sums over the scenarios of a campaign."""

    seed: int
    scenarios: Counter[str] = field(default_factory=Counter)
    """By mode."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Simulated, by mode."""
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Injected, by kind."""
    seen: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    """How often each invariant was checked."""
    failures: list[Failure] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    @property
    def hours(self) -> float:
        """Simulated hours."""
        return sum(self.seconds.values()) / HOUR_S

    @property
    def speed(self) -> float:
        """Simulated seconds per second of CPU time."""
        return self.hours * HOUR_S / self.cpu_s if self.cpu_s else 0.0

    def add(self, mode: str, outcome: Outcome) -> None:
        """Add one scenario."""
        self.scenarios[mode] += 1
        self.seconds[mode] += round(outcome.seconds)
        self.steps += outcome.steps
        self.faults += outcome.faults
        most = max(self.seen["most items"], outcome.seen["most items"])
        self.seen += outcome.seen
        self.seen["most items"] = most
        self.checks += outcome.checks
        if outcome.failure is not None:
            self.failures.append(outcome.failure)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "seed": self.seed,
            "hours": self.hours,
            "hours_by_mode": {mode: seconds / HOUR_S for mode, seconds in self.seconds.items()},
            "scenarios": dict(self.scenarios),
            "steps": self.steps,
            "faults": {kind: self.faults[kind] for kind in KINDS},
            "seen": dict(self.seen),
            "checks": {name: self.checks[name] for name in INVARIANTS},
            "failures": to_builtins(self.failures),
            "cpu_s": self.cpu_s,
            "wall_s": self.wall_s,
            "speed": self.speed,
        }

    def lines(self) -> Iterable[str]:
        """Yield it as lines of text."""
        seen, modes = self.seen, ", ".join(f"{count} {mode}" for mode, count in self.scenarios.items())
        yield f"{self.hours:.2f} robot-hours in {sum(self.scenarios.values())} scenarios ({modes})"
        yield f"{self.speed:.0f} times real time, {self.steps} steps, {self.cpu_s:.0f} s of CPU time"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.faults.items())
        yield f"{self.faults.total()} faults, {seen['faults during another']} of them during another: {kinds}"
        yield (
            f"{seen['windows']} windows: {seen['states']} states, {seen['sheds']} journaled as shed; "
            f"{seen['incarnations']} incarnations of the fusion"
        )
        yield (
            f"{seen['recorded']} messages recorded; {seen['equal']} states equal after recompute, "
            f"{seen['not compared']} not compared (their inputs are not recorded)"
        )
        for name, text in INVARIANTS.items():
            yield f"{self.checks[name]:>12} x {name}: {text}"
        yield f"{len(self.failures)} failures" if self.failures else "no failure"


def describe(failure: Failure) -> Iterable[str]:
    """Yield the lines of a failure: what, when, how to repeat it, its faults."""
    yield f"FAILED seed {failure.seed}, step {failure.step}, {failure.seconds:.3f} s: {failure.text}"
    yield f"  repeat: perception simulate --seed {failure.seed} --scenarios 1"
    for fault in failure.faults:
        yield f"  with {fault}"


def campaign(
    hours: float,
    seed: int,
    *,
    scenarios: int | None = None,
    progress: Callable[[Report], None] = lambda report: None,
    parts: Parts | None = None,
) -> Report:
    """Simulate so many hours, or so many scenarios; a failure is minimised and does not end the campaign.

    Args:
        hours: simulated time.
        seed: of the first scenario.
        scenarios: end after so many instead.
        progress: receives the report after each scenario.
        parts: of the fusion, instead of the real ones.
    """
    report = Report(seed)
    began_s, cpu_s = perf_counter(), process_time()
    number = 0
    with tempfile.TemporaryDirectory(prefix="perception-simulate-") as folder:
        while number != scenarios and (scenarios is not None or report.hours < hours):
            scenario = Scenario.of(seed + number)
            with tempfile.TemporaryDirectory(dir=folder) as files:
                outcome = simulate(scenario, Path(files), parts)
            if outcome.failure is not None:
                outcome.failure = minimised(scenario, outcome.failure, Path(folder), parts)
            number += 1
            report.add(scenario.mode, outcome)
            report.cpu_s, report.wall_s = process_time() - cpu_s, perf_counter() - began_s
            progress(report)
            if len(report.failures) >= MAX_FAILURES:
                break
    return report


def minimised(scenario: Scenario, failure: Failure, folder: Path, parts: Parts | None = None) -> Failure:
    """Return a failure of the same invariant with the fewest faults; the scenario ends where it failed."""
    runs = 0

    def failed(faults: Iterable[Any]) -> Failure | None:
        nonlocal runs
        runs += 1
        files = folder / f"{scenario.seed}-{runs}"
        files.mkdir()
        found = simulate(structs.replace(scenario, faults=tuple(faults)), files, parts).failure
        return found if found is not None and found.invariant == failure.invariant else None

    started = [one for one in scenario.faults if one.start_ns <= failure.seconds * 1e9]
    faults = fewest(started, lambda part: failed(part) is not None)
    return failed(faults) or failure
