"""Injects faults by seed, one after another, and judges what the graph published meanwhile."""

import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from perception.messages import SUPERVISOR, FusedState
from perception.torture.faults import FULL_DISK, MODALITIES, Fault, catalogue
from perception.torture.graph import Graph
from perception.torture.link import Hosts, LinkedGraph
from perception.torture.witness import Seen, Witness

SEGMENT_S: Final = 150.0
"""A graph is started again after so long, so that several recordings are ended and compared."""
RECOVERY_S: Final = 30.0
"""Patience with a recovery; twice the time of the start if that is longer."""
NOTICE_S: Final = 3.0
"""A dead node is noticed within this time; a state that says otherwise later is a broken invariant."""
FLOOD_MIB: Final = 20.0
GROWTH_MIB: Final = 200.0
LOST_SHARE: Final = 0.01
_CALM_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class Trial:
    """One injected fault and what followed."""

    fault: str
    at_s: float
    noticed_s: float | None
    """None: nobody noticed, or nobody had to."""
    recovered_s: float | None
    states_lost: int
    """Ticks without a state."""
    shed: int
    """How many of them were shed for lack of time, which the journal names."""
    broken: tuple[str, ...]


@dataclass(slots=True)
class Result:
    """All trials of a campaign, and what was broken outside of them."""

    seed: int
    trials: list[Trial] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    states: int = 0
    sessions: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What could not be tried on this machine."""

    @property
    def failures(self) -> list[str]:
        """Everything that was broken."""
        return self.broken + [f"{one.fault}: {text}" for one in self.trials for text in one.broken]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per fault: how often it was injected, and the worst that followed."""
        return [
            _row(name, [one for one in self.trials if one.fault == name])
            for name in dict.fromkeys(one.fault for one in self.trials)
        ]


def _row(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    noticed = [one.noticed_s for one in trials if one.noticed_s is not None]
    recovered = [one.recovered_s for one in trials if one.recovered_s is not None]
    return {
        "fault": name,
        "injected": len(trials),
        "noticed within s": max(noticed, default=None),
        "recovered within s": max(recovered, default=None),
        "states lost": sum(one.states_lost for one in trials),
        "of them shed": sum(one.shed for one in trials),
        "invariants kept": not any(one.broken for one in trials),
    }


def run(
    folder: Path, *, minutes: float, seed: int, progress: Callable[[str], None], links: bool = True
) -> Result:
    """Run faults for so many minutes, then those of a link; `folder` keeps recordings and logs."""
    result, chance = Result(seed), random.Random(seed)
    end_s = time.monotonic() + minutes * 60
    deck: list[Fault] = []
    while time.monotonic() < end_s or not result.trials:
        segment = _Segment(folder, result, chance, progress)
        segment.run(min(end_s, time.monotonic() + SEGMENT_S), deck)
    if links:
        _Segment(folder, result, chance, progress).run_link()
    return result


class _Segment:
    """One graph, from its start to its end."""

    def __init__(
        self, folder: Path, result: Result, chance: random.Random, progress: Callable[[str], None]
    ) -> None:
        self._result, self._chance, self._progress = result, chance, progress
        self._folder = folder
        self._domain = f"torture{len(result.sessions)}"
        self._pids: set[int] = set()
        self._first_mib: dict[int, float] = {}

    def run(self, end_s: float, deck: list[Fault]) -> None:
        """Run faults of one host until `end_s`, at least one; then the full disk."""
        port, stranger = _free_ports(2)
        scene = self._chance.randrange(1000)
        with Graph(self._folder, self._domain, seed=scene, port=port, stranger=stranger) as graph:
            self._progress(f"graph ready after {graph.wait_until_ready():.1f} s")
            while time.monotonic() < end_s or not self._result.trials:
                if not deck:
                    deck += self._chance.sample(catalogue(), len(catalogue()))
                self._try(graph, deck.pop())
            self._try(graph, FULL_DISK)
            self._pids |= {graph.process.pid}
        self._judge_whole(graph)

    def run_link(self) -> None:
        """Run each fault of a link between two hosts, where namespaces can be created."""
        hosts = Hosts()
        try:
            if not hosts.open():
                self._result.skipped.append("link: network namespaces cannot be created here")
                self._progress(self._result.skipped[-1])
                return
            with LinkedGraph(self._folder, self._domain, hosts, seed=self._chance.randrange(1000)) as graph:
                self._progress(f"two hosts ready after {graph.wait_until_ready():.1f} s")
                for fault in hosts.faults():
                    self._try(graph, fault)
            self._judge_whole(graph)
        finally:
            hosts.close()

    def _judge_whole(self, graph: Graph) -> None:
        self._result.states += len(graph.witness.states)
        self._result.broken += sequence(graph.witness.states, graph.witness.lost(), _skipped(graph.witness))
        self._result.broken += [f"left over: {one}" for one in graph.leftovers(self._pids)]
        self._check_sessions()

    def _try(self, graph: Graph, fault: Fault) -> None:
        graph.wait_until_ready()  # also after a fault that lasted beyond its trial
        time.sleep(_CALM_S)
        witness = graph.witness
        self._note_processes(graph)
        before_mib = graph.memory_mib("camera-front")
        begun_s, before = time.monotonic(), witness.pid(fault.node)
        undo = fault.inject(graph, self._chance)
        noticed_s: float | None = None
        lasts_s = self._chance.uniform(*fault.seconds)
        while time.monotonic() - begun_s < lasts_s:
            if noticed_s is None and noticed(witness, fault, begun_s):
                noticed_s = time.monotonic() - begun_s
            time.sleep(0.02)
        peak_mib = graph.memory_mib("camera-front")
        undone_s = time.monotonic()
        undo()
        patience_s = max(RECOVERY_S, 2 * graph.start_s)
        back_s = witness.wait(lambda: _recovered(graph, fault, undone_s, before), patience_s)
        recovered_s = None if back_s is None else back_s + (undone_s - begun_s if fault.by_itself else 0.0)
        time.sleep(_CALM_S)
        seen = witness.since(begun_s - 0.5)
        broken = judge(seen, fault, begun_s, undone_s)
        if not fault.node:
            broken += frames_lost([one for one in witness.frames if begun_s < one[0] < undone_s])
        if back_s is None:
            broken.append(f"not recovered within {patience_s:.0f} s")
        if not fault.node and peak_mib - before_mib > FLOOD_MIB:
            broken.append(f"memory of the camera grew by {peak_mib - before_mib:.0f} MiB")
        broken += self._grown(graph)
        lost, shed = missing(seen), sum(one.state.shed for one in seen[1:])
        noticed_s, recovered_s = (noticed_s, recovered_s) if fault.node else (None, None)
        trial = Trial(fault.name, begun_s, noticed_s, recovered_s, lost, shed, tuple(broken))
        self._result.trials.append(trial)
        self._progress(
            f"{fault.name}: noticed {_shown(trial.noticed_s)}, recovered {_shown(trial.recovered_s)}, "
            f"{lost} states lost, {shed} shed{''.join(f'; BROKEN: {one}' for one in broken)}"
        )

    def _note_processes(self, graph: Graph) -> None:
        for node in graph.witness.nodes():
            if (pid := graph.witness.pid(node)) and (mib := graph.memory_mib(node)):
                self._pids.add(pid)
                self._first_mib.setdefault(pid, mib)

    def _grown(self, graph: Graph) -> list[str]:
        grown = {
            node: graph.memory_mib(node) - self._first_mib[pid]
            for node in graph.witness.nodes()
            if (pid := graph.witness.pid(node)) in self._first_mib
        }
        return [f"{node} grew by {mib:.0f} MiB" for node, mib in grown.items() if mib > GROWTH_MIB]

    def _check_sessions(self) -> None:
        files = sorted(self._folder.glob(f"session-*-{self._domain}*.mcap"))
        self._result.sessions += map(str, files)
        if not files:
            self._result.broken.append(f"{self._domain}: nothing was recorded")
        for file in files:
            command = (sys.executable, "-m", "perception", "session", "verify", str(file))
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
            said = (done.stdout + done.stderr).strip().splitlines()[-1:]
            self._progress(f"verify {file.name}: exit {done.returncode}: {' '.join(said)}")
            if done.returncode not in (0, 2):
                self._result.broken.append(f"verify {file}: exit code {done.returncode}: {' '.join(said)}")


def noticed(witness: Witness, fault: Fault, since_s: float) -> bool:
    """Return whether a state or the supervisor has shown the fault."""
    modality = MODALITIES.get(fault.node)
    for seen in witness.since(since_s):
        part = seen.state.modalities.get(modality) if modality else None
        if part is not None and modality != "text" and (part.presence == "absent" or _bad(part.condition)):
            return True
    return any(
        health.node == SUPERVISOR and not str(health.device.get(fault.node, "running")).startswith("running")
        for at_s, health in witness.health[-50:]
        if at_s >= since_s
    )


def _bad(condition: str) -> bool:
    return condition not in ("", "ok", "starting")


def _recovered(graph: Graph, fault: Fault, since_s: float, before: int) -> bool:
    """Return whether all is as before the fault; `before`: the process that it may have ended."""
    fresh = graph.witness.since(since_s)
    if not fresh or fault is FULL_DISK:
        return bool(fresh)
    replaced = not fault.by_itself or graph.witness.pid(fault.node) != before
    return replaced and graph.healthy()


def judge(seen: Sequence[Seen], fault: Fault, begun_s: float, undone_s: float) -> list[str]:
    """Return which invariants the states around a fault broke."""
    broken = [text for one in seen if (text := _wrong(one.state, one.received_ns))][:3]
    if not fault.node and (lost := missing(seen) - sum(one.state.shed for one in seen[1:])) > 0:
        broken.append(f"{lost} states lost and not shed, though no node was hurt")
    if (modality := MODALITIES.get(fault.node)) and fault.silences:
        late = [one for one in seen if begun_s + NOTICE_S < one.at_s < undone_s]
        if any(one.state.modalities[modality].presence == "present" for one in late):
            broken.append(f"{modality} was present {NOTICE_S:.0f} s after its node had stopped")
    return broken


def _wrong(state: FusedState, received_ns: int) -> str:
    """Return what no state may ever say."""
    probabilities = state.fused.probabilities
    if not all(0.0 <= one <= 1.0 for one in probabilities) or abs(sum(probabilities) - 1) > 1e-3:
        return f"tick {state.tick}: probabilities {probabilities}"
    if state.stamp_ns > received_ns:
        return (
            f"tick {state.tick}: a state about the future, by {(state.stamp_ns - received_ns) / 1e6:.1f} ms"
        )
    times = (state.latency.receive_ms, state.latency.align_ms, state.latency.queue_ms, state.latency.total_ms)
    if min(times) < 0:
        return f"tick {state.tick}: negative latency {times}"
    return ""


def frames_lost(frames: Sequence[tuple[float, int]]) -> list[str]:
    """Return what is wrong with the frames that reached another reader in spite of strangers."""
    if len(frames) < 2:
        return [f"{len(frames)} frames arrived"]
    published = frames[-1][1] - frames[0][1] + 1
    lost = published - len(frames)
    return [f"{lost} of {published} frames did not arrive"] if lost > LOST_SHARE * published else []


def missing(seen: Sequence[Seen]) -> int:
    """Return how many ticks between the first and the last state have none."""
    ticks = sorted({one.state.tick for one in seen})
    return ticks[-1] - ticks[0] + 1 - len(ticks) if ticks else 0


def sequence(seen: Sequence[Seen], lost: int, skipped: int) -> list[str]:
    """Return where states of one process are missing that were neither shed nor skipped."""
    by_source: dict[str, list[FusedState]] = {}
    for one in seen:
        by_source.setdefault(one.state.source, []).append(one.state)
    broken, unexplained = [], 0
    for states in by_source.values():
        for state, following in pairwise(states):
            if following.seq != state.seq + 1 and not lost:
                broken.append(f"state {following.seq} follows {state.seq}")
            unexplained += max(0, following.tick - state.tick - 1 - following.shed)
    if unexplained > skipped + lost:
        broken.append(f"{unexplained} ticks have no state and were not shed; {skipped} were skipped")
    return broken[:5]


def _skipped(witness: Witness) -> int:
    """Return how many windows fusions have skipped, counted by process."""
    by_process = {
        one.source: one.counts.get("windows skipped", 0) for _, one in witness.health if one.node == "fusion"
    }
    return sum(by_process.values())


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
