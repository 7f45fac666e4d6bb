"""Nodes of a running graph are killed or stopped at random moments: how soon it is noticed and repaired.

    python -m tests.benchmarks.liveness --nodes fusion --trials 50 --standby
    python -m tests.benchmarks.liveness --nodes fusion,camera-front,microphone-main,text-script,recorder
    python -m tests.benchmarks.liveness --nodes camera-front --fault stop --without-setpriv
    python -m tests.benchmarks.liveness --launcher --trials 50

Noticed: the supervisor's health names the node. Recovered: a message of the node's next process arrives, of
the fusion a state, of the others health and, where it has one, its stream. Lost: ticks without a state from
the fault until 1 s after recovery; uncounted: those of them that no state counts as shed. With --launcher
`perception up` itself is killed with -9, and its nodes must end. At the end no process and no file is left.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import numpy as np

from perception.bus.host import RUNTIME_VARIABLE, HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.graph import processes
from perception.graph.liveness import RUNNING
from perception.messages import PROCESS, SUPERVISOR, ClockTick, FusedState, Header, Health, Message
from perception.session.recompute.verify import verify
from perception.session.recorder import EVERY_MESSAGE
from perception.topics import kind_of

_LIMIT_S: Final = 180.0
_AFTER_S: Final = 1.0


@dataclass(slots=True)
class Seen:
    """What a reader of everything has received."""

    pids: dict[str, int] = field(default_factory=dict)
    """Of the last health of each node."""
    status: dict[str, str] = field(default_factory=dict)
    """Of each process, as the supervisor reports it."""
    known: set[int] = field(default_factory=set)
    """All process ids ever reported."""
    newest: dict[str, str] = field(default_factory=dict)
    """Publisher id by topic."""
    ticks: list[int] = field(default_factory=list)
    shed: int = 0
    """Sum over the states of `ticks`."""

    def add(self, message: Message[Header]) -> None:
        header = message.header
        self.newest[message.topic] = header.source
        if isinstance(header, FusedState):
            self.ticks.append(header.tick)
            self.shed += header.shed if len(self.ticks) > 1 else 0
        elif isinstance(header, Health) and header.node == SUPERVISOR:
            self.status = {name: str(words) for name, words in header.device.items() if name != PROCESS}
            self.known.add(int(header.device[PROCESS]))
        elif isinstance(header, Health) and PROCESS in header.device:
            self.pids[header.node] = int(header.device[PROCESS])
            self.known.add(self.pids[header.node])


class Graph:
    """A graph in a runtime directory of its own, and a reader of everything that it publishes."""

    def __init__(self, profile: str, settings: list[str], *, without_setpriv: bool) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="live"))
        os.environ[RUNTIME_VARIABLE] = str(self.base)
        tools = {"PATH": ""} if without_setpriv else {}
        sets = [part for one in ("domain='live'", *settings) for part in ("--set", one)]
        command = [sys.executable, "-m", "perception", "up", profile, *sets]
        self._log = (self.base.parent / f"{self.base.name}.log").open("w")
        self.up = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=os.environ | tools)
        self.seen = Seen()
        self._subscriber = Subscriber(
            "*", runtime=Runtime("live"), clock=HostClock().now_ns, policies=EVERY_MESSAGE
        )

    def until(self, done: Callable[[], bool]) -> float:
        """Receive until a condition holds; return the seconds."""
        begun_s = time.monotonic()
        while not done():
            if time.monotonic() - begun_s > _LIMIT_S:
                raise TimeoutError(f"{self.seen.status}, {self.seen.pids}; {self._log.name}")
            if (message := self._subscriber.receive(0.05)) and not isinstance(message.header, ClockTick):
                self.seen.add(message)
        return time.monotonic() - begun_s

    def wait(self, seconds: float) -> None:
        """Receive for a time."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s)

    def close(self) -> tuple[list[int], list[str]]:
        """Stop it; return the processes and the files that are left."""
        self._subscriber.close()
        if self.up.poll() is None:
            self.up.send_signal(signal.SIGINT)
            self.up.wait(30)
        left = [pid for pid in self.seen.known if processes.runs(pid)]
        files = [str(file.relative_to(self.base)) for file in self.base.rglob("*") if file.name != ".clock"]
        shutil.rmtree(self.base)
        return left, files


@dataclass(frozen=True, slots=True)
class Trial:
    """Times of one fault in seconds, and the ticks without a state."""

    node: str
    noticed_s: float
    recovered_s: float
    lost: int
    uncounted: int


def run_trial(graph: Graph, node: str, fault: signal.Signals, rng: random.Random, pause_s: float) -> Trial:
    """Kill or stop the process of a node, and wait until it is back."""
    seen = graph.seen
    graph.until(lambda: set(seen.status.values()) == {RUNNING} and node in seen.pids)
    graph.until(lambda: bool(seen.ticks) or "fusion" not in seen.status)
    graph.until(lambda: all(processes.runs(pid) for pid in seen.pids.values()))
    graph.wait(pause_s * rng.uniform(1.0, 2.0))
    pid = seen.pids[node]
    topics = [topic for topic in seen.newest if _is_of(topic, node)]
    before = {topic: seen.newest[topic] for topic in topics}
    seen.ticks, seen.shed = seen.ticks[-1:], 0
    fault_s = time.monotonic()
    os.kill(pid, fault)
    noticed_s = graph.until(lambda: set(seen.status.values()) != {RUNNING})
    graph.until(lambda: all(seen.newest[topic] != before[topic] for topic in topics))
    recovered_s = time.monotonic() - fault_s
    graph.wait(_AFTER_S)
    missing = seen.ticks[-1] - seen.ticks[0] + 1 - len(seen.ticks) if seen.ticks else 0
    return Trial(node, noticed_s, recovered_s, missing, missing - seen.shed)


def _is_of(topic: str, node: str) -> bool:
    """Return whether a node publishes a topic all the time."""
    kind = kind_of(topic)
    if node == "fusion":
        return kind == "state"
    return topic == f"health/{node}" or (kind in ("camera", "microphone") and node == topic.replace("/", "-"))


def run_launcher_trial(profile: str, settings: list[str], *, without_setpriv: bool) -> float:
    """Kill the launcher of a new graph; return the seconds until all nodes have ended."""
    graph = Graph(profile, settings, without_setpriv=without_setpriv)
    graph.until(lambda: bool(graph.seen.status) and set(graph.seen.status.values()) == {RUNNING})
    graph.until(lambda: graph.seen.pids.keys() >= graph.seen.status.keys())
    graph.up.kill()
    graph.up.wait()
    begun_s = time.monotonic()
    while any(processes.runs(pid) for pid in graph.seen.known):
        if time.monotonic() - begun_s > _LIMIT_S:
            raise TimeoutError("orphans")
        time.sleep(0.01)
    ended_s = time.monotonic() - begun_s
    again = subprocess.run(
        [sys.executable, "-m", "perception", "up", profile, "--seconds", "0.1", "--domain", "live"],
        capture_output=True,
        check=False,
    )
    left = graph.close()
    if any(left):
        click.echo(f"left behind: {left}, exit code {again.returncode}")
    return ended_s


def show(title: str, values: list[float], unit: str = "s") -> None:
    """Print a distribution."""
    p50, p95, most = np.percentile(values, (50, 95, 100))
    click.echo(f"{title}: n {len(values)}, p50 {p50:.2f}, p95 {p95:.2f}, max {most:.2f} {unit}")


@click.command()
@click.option("--profile", default="demo")
@click.option("--nodes", default="fusion")
@click.option("--fault", type=click.Choice(["kill", "stop"]), default="kill")
@click.option("--trials", default=10, help="Of each node.")
@click.option("--seed", default=0)
@click.option("--standby", is_flag=True)
@click.option("--without-setpriv", is_flag=True, help="Start with an empty PATH.")
@click.option("--pause", default=1.5, help="Shortest time between a recovery and the next fault, s.")
@click.option("--launcher", is_flag=True)
@click.option("--record", is_flag=True, help="Record it, and verify the recording.")
@click.option("--set", "settings", multiple=True)
def main(
    profile: str,
    nodes: str,
    fault: str,
    trials: int,
    seed: int,
    standby: bool,
    without_setpriv: bool,
    pause: float,
    launcher: bool,
    record: bool,
    settings: tuple[str, ...],
) -> None:
    """Run the trials and print the distributions."""
    rng = random.Random(seed)
    given = [*settings, *(["fusion.standby=true"] if standby else [])]
    if launcher:
        ends = [run_launcher_trial(profile, given, without_setpriv=without_setpriv) for _ in range(trials)]
        show("all nodes ended after the launcher", ends)
        return
    names = nodes.split(",")
    number = signal.SIGKILL if fault == "kill" else signal.SIGSTOP
    folder = Path(tempfile.mkdtemp())
    if record or "recorder" in names:
        given += ["record=true", f"recorder.out='{folder}/run.mcap'"]
    graph = Graph(profile, given, without_setpriv=without_setpriv)
    done: list[Trial] = []
    try:
        for node in rng.sample(names * trials, len(names) * trials):
            done.append(run_trial(graph, node, number, rng, pause))
            click.echo(str(done[-1]))
    finally:
        left, files = graph.close()
    for node in names:
        own = [trial for trial in done if trial.node == node]
        for title, values in (
            ("noticed", [trial.noticed_s for trial in own]),
            ("recovered", [trial.recovered_s for trial in own]),
            ("states lost", [float(trial.lost) for trial in own]),
        ):
            show(f"{node} {title}", values, "ticks" if title == "states lost" else "s")
        click.echo(f"{node} states lost and not counted as shed: {sum(trial.uncounted for trial in own)}")
    click.echo(f"processes left: {left or 'none'}; files left: {files or 'none'}")
    for file in sorted(folder.glob("*.mcap")) if graph.seen.ticks else ():
        click.echo(f"{file.name}: {'; '.join(verify(file).lines())}")


if __name__ == "__main__":
    main()
