"""Live equals replay, on real processes: record a graph, verify it, replay it again and again.

    python -m tests.benchmarks.verify_live --seconds 60
    python -m tests.benchmarks.verify_live --seconds 60 --overload

With --overload, a network that takes longer than a hop makes the fusion shed windows, the camera is killed
and restarted, and the microphone is stopped for some 0.4 s again and again, so that its sound comes late.
"""

import hashlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from perception.bus.host import HostClock, Runtime
from perception.launcher import Node, Supervisor, plan
from perception.messages import FusedState
from perception.profile import load
from perception.session import fusing
from perception.session.recording import Recording
from perception.session.verification import verify

SLOW = """
[fusion.encoders.slow]
input = "camera"
kind = "torchvision"
weights = "random"
options = { model = "resnet50" }
"""
HEAD = '[fusion.head]\nweights = "random"\nclasses = ["idle", "visitor", "talking", "call", "clap"]\n'


def profile_file(folder: Path, overload: bool, session: Path) -> Path:
    """The demo with a random head, recorded, and slowed if asked."""
    text = Path("launch/demo.toml").read_text(encoding="utf-8")
    text = text.partition("[fusion.head]")[0] + HEAD + (SLOW if overload else "")
    text += f'\n[recorder]\nout = "{session}"\n'
    file = folder / "live.toml"
    file.write_text(text, encoding="utf-8")
    return file


def recorder_of(nodes: tuple[Node, ...]) -> Node:
    """A recorder beside these nodes, where the launcher plans none."""
    like = next(node for node in nodes if node.name == "fusion")
    command = tuple(part.replace("nodes.fusion", "nodes.recorder") for part in like.command)
    return Node("recorder", command, like.environment, capture=False)


def live(file: Path, seconds: float, overload: bool) -> None:
    """Run the graph, and let things go wrong in it."""
    profile = load(str(file))
    nodes = plan(profile, str(file), origin_ns=HostClock().now_ns())
    if not any(node.name == "recorder" for node in nodes):
        nodes = (*nodes, recorder_of(nodes))
    begun_s = time.monotonic()
    troubles = _troubles(seconds) if overload else iter(())
    trouble = next(troubles, None)
    with Supervisor(nodes) as supervisor:
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            supervisor.poll()
            for name, line in supervisor.lines():
                click.echo(f"  {name}: {line}")
            if trouble is not None and elapsed_s >= trouble[0]:
                with suppress(KeyError, ProcessLookupError):
                    trouble[1](supervisor.pids())
                trouble = next(troubles, None)
            time.sleep(0.02)
        supervisor.stop()


def _troubles(seconds: float) -> Iterator[tuple[float, Callable[[dict[str, int]], None]]]:
    moments: list[tuple[float, Callable[[dict[str, int]], None]]] = [
        (seconds * 0.4, lambda pids: os.kill(pids["camera-front"], signal.SIGKILL)),
        (seconds * 0.7, lambda pids: os.kill(pids["camera-front"], signal.SIGKILL)),
    ]
    at_s = 10.0
    while at_s < seconds - 3:
        moments.append((at_s, lambda pids: os.kill(pids["microphone-main"], signal.SIGSTOP)))
        moments.append((at_s + 0.4, lambda pids: os.kill(pids["microphone-main"], signal.SIGCONT)))
        at_s += 2.9
    return iter(sorted(moments, key=lambda moment: moment[0]))


class Stopwatch:
    """Time spent inside models."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time counted."""

        def timed(*arguments: Any) -> Any:
            begun_s = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - begun_s
            return result

        return timed


def speed(file: Path, workers: int) -> tuple[float, float, float, float]:
    """Return seconds of session, of replay, inside the models, and of processor time in all."""
    watch = Stopwatch()
    with Recording(file) as recording:
        config = fusing.fusion_of(recording.profile)
        known = fusing.survey_of(recording, config)
        with fusing.Crew(config, known, workers) as crew:
            for engine in crew.engines:
                engine.warm_up()
                for name, encoder in engine.encoders.items():
                    timed: Any = watch.watch(encoder)
                    timed.uses_previous = getattr(encoder, "uses_previous", False)
                    engine.encoders[name] = timed
                engine.head.forward = watch.watch(engine.head.forward)  # type: ignore[method-assign]
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            told = fusing.cuts(recording, config, fusing.survey_of(recording, config))
            stamps = [state.stamp_ns for _, state in crew.conclude(told) if state is not None]
            took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
            return (stamps[-1] - stamps[0]) / 1e9, took_s, watch.seconds, cpu_s


def digest(states: Iterator[FusedState]) -> str:
    """Hash of all states, byte for byte."""
    whole = hashlib.sha256()
    for state in states:
        whole.update(state.model_dump_json().encode())
    return whole.hexdigest()[:16]


@click.command()
@click.option("--seconds", default=60.0)
@click.option("--overload", is_flag=True)
@click.option("--repeats", default=20)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the session here.")
@click.option("--session", type=click.Path(path_type=Path), help="Take this session instead of a live run.")
def main(seconds: float, overload: bool, repeats: int, keep: Path | None, session: Path | None) -> None:
    """Run, record, verify, repeat."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = session or folder / "live.mcap"
        if session is None:
            os.environ["XDG_RUNTIME_DIR"] = name
            live(profile_file(folder, overload, file), seconds, overload)
            Runtime("demo").sweep()
        if keep:
            shutil.copy(file, keep)
        report(file, repeats)


def report(file: Path, repeats: int) -> None:
    """Print all figures."""
    begun_s = time.perf_counter()
    verdict = verify(file)
    took_s = time.perf_counter() - begun_s
    click.echo("\n".join(verdict.lines()))
    with Recording(file) as recording:
        known = fusing.survey_of(recording, fusing.fusion_of(recording.profile))
    shed = sum(len(ticks) for ticks in known.shed.values())
    share = shed / max(1, shed + verdict.states)
    click.echo(f"exit code {verdict.exit_code}; {shed} windows shed, {share:.1%}; verify took {took_s:.1f} s")
    for workers in (1, 2):
        session_s, replay_s, models_s, cpu_s = speed(file, workers)
        click.echo(
            f"{workers} workers: {session_s:.1f} s of session in {replay_s:.2f} s: "
            f"{session_s / replay_s:.1f} x real time, {replay_s / models_s:.3f} of the models' own "
            f"{models_s:.2f} s; {cpu_s:.2f} s of processor time, load {os.getloadavg()[0]:.1f}"
        )
    digests = {digest(fusing.replay(file)) for _ in range(repeats)}
    click.echo(f"{repeats} replays: {len(digests)} different results: {', '.join(digests)}")


if __name__ == "__main__":
    main()
