"""The recorder killed with -9 at random moments, beside a running demo and three 1080p cameras.

Every file must open after `repair` with at most a second lost, and what is left must verify: the states of
the demo are computed again from it, every byte.

    python -m tests.benchmarks.session_kills --kills 50
    python -m tests.benchmarks.session_kills --kills 50 --join

Recorder and demo start together, and the moments count from the first state: from a second on, for what a
killed recorder may lose is a second, and before it nothing need be left to verify. With --join the demo runs
on and each recorder joins it: then the first second of states follows from sound that was not recorded.
"""

import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.graph.plan import Node, plan
from perception.graph.supervisor import Supervisor
from perception.profile import load
from perception.session import Session, read
from perception.session.edit import repair
from perception.session.recompute.verify import Verdict, verify
from tests.benchmarks.session_recorder import Source, sources

_LOST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rest:
    """What a killed recorder left."""

    messages: int
    gaps: int
    lost_s: float
    """From the last message in the file to the kill."""
    verdict: Verdict

    def __str__(self) -> str:
        return (
            f"{self.messages} messages, {self.gaps} gaps, lost the last {self.lost_s:.3f} s; "
            f"{'; '.join(self.verdict.lines())}"
        )


def look(file: Path, killed_ns: int) -> Rest:
    """Repair what is left and verify it."""
    mended = file.with_stem(f"{file.stem}-mended")
    repair(file, mended)
    seqs: dict[tuple[str, str], int] = {}
    gaps = last_ns = 0
    for message in read(mended):
        publisher = message.topic, message.header.source
        gaps += message.header.seq != seqs.get(publisher, message.header.seq - 1) + 1
        seqs[publisher], last_ns = message.header.seq, message.received_ns
    with Session(mended) as session:
        assert session.closed_properly
        count = sum(session.counts.values())
    rest = Rest(count, gaps, (killed_ns - last_ns) / 1e9, verify(mended))
    for path in (file, mended):
        path.unlink()
    return rest


class Graph:
    """The demo's processes, or a recorder alone."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def wait_for(self, topic: str) -> None:
        """Return once a topic is heard."""
        clock = HostClock().now_ns
        with Subscriber(topic, runtime=Runtime("demo"), clock=clock) as subscriber:
            while subscriber.receive(0.1) is None:
                self.wait(0.0)

    def wait(self, seconds: float) -> None:
        """Let it run."""
        end_s = time.monotonic() + seconds
        while True:
            self._supervisor.poll()
            for node, line in self._supervisor.lines():
                if "recorder" not in node:
                    click.echo(f"  {node}: {line}")
            if time.monotonic() >= end_s:
                return
            time.sleep(min(0.01, seconds))

    def kill_recorder(self) -> int:
        """Kill it without a warning and return when."""
        killed_ns = HostClock().now_ns()
        os.kill(self._supervisor.pids()["recorder"], signal.SIGKILL)
        return killed_ns


@contextmanager
def running(*nodes: Node) -> Iterator[Graph]:
    """Run processes of the demo for so long."""
    with Supervisor(nodes) as supervisor:
        graph = Graph(supervisor)
        graph.wait(0.0)
        yield graph
    if len(nodes) > 1:
        Runtime("demo").sweep()


@contextmanager
def loaded() -> Iterator[None]:
    """Let three 1080p cameras and three microphones publish."""
    everyone: list[Source] = sources(Runtime("demo"), HostClock())
    for source in everyone:
        source.start()
    yield
    for source in everyone:
        source.stopped.set()
        source.join()
        source.out.close()


def kills(folder: Path, moments: list[float], join: bool) -> Iterator[Rest]:
    """Record, kill and look, once for each moment in seconds."""

    def nodes(file: Path) -> tuple[Node, ...]:
        overrides = (f"recorder.out={file}",)
        return plan(load("demo", overrides), "demo", overrides, origin_ns=HostClock().now_ns())

    if join:
        with running(*(node for node in nodes(folder / "none") if node.name != "recorder")) as graph:
            graph.wait_for("state/fused")
            for number, moment_s in enumerate(moments):
                file = folder / f"{number}.mcap"
                with running(nodes(file)[0]) as recorder:
                    while not file.exists():
                        graph.wait(0.01)
                    graph.wait(moment_s)
                    killed_ns = recorder.kill_recorder()
                yield look(file, killed_ns)
        return
    for number, moment_s in enumerate(moments):
        file = folder / f"{number}.mcap"
        with running(*nodes(file)) as graph:
            graph.wait_for("state/fused")
            graph.wait(moment_s)
            killed_ns = graph.kill_recorder()
        yield look(file, killed_ns)


@click.command()
@click.option("--kills", "count", default=50)
@click.option("--join", is_flag=True, help="Each recorder joins a demo that runs already.")
@click.option("--most", default=8.0, help="The latest moment in seconds.")
@click.option("--seed", default=1)
def main(count: int, join: bool, most: float, seed: int) -> None:
    """Kill, and look at what is left."""
    random.seed(seed)
    moments = [random.uniform(_LOST_S, most) for _ in range(count)]
    rests = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.environ["PERCEPTION_RUNTIME_DIR"] = folder
        with loaded():
            for moment_s, rest in zip(moments, kills(Path(folder), moments, join), strict=True):
                rests.append(rest)
                click.echo(f"{len(rests)}: killed after {moment_s:.2f} s: {rest}")
    codes = Counter(rest.verdict.exit_code for rest in rests)
    click.echo(
        f"{count} kills: lost at most {max(rest.lost_s for rest in rests):.3f} s, "
        f"{sum(rest.gaps for rest in rests)} gaps; {sum(rest.verdict.equal for rest in rests)} states equal, "
        f"{sum(rest.verdict.different for rest in rests)} different; exit codes {dict(codes)}"
    )


if __name__ == "__main__":
    main()
