"""How fast a recording is fused again, beside the time that its models alone take.

    python -m tests.benchmarks.replay_speed --rounds 5
    python -m tests.benchmarks.replay_speed --session live.mcap

Without a session, one is made of the demo's scripted devices. `ratio` is the time of the whole replay over
the time that one worker, with nothing beside it, spends inside encoders and head in the same round.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from perception.bench.report import as_text
from perception.bench.rounds import Values, interleave
from perception.devices.scripted import messages
from perception.fusion.engine import Engine
from perception.profile import load
from perception.session import SessionWriter
from perception.session.recompute import engines as fusing
from perception.session.recompute.source import Recording


def scripted(file: Path, seconds: float) -> Path:
    """Write what the demo's devices publish, and its profile."""
    profile = load("demo")
    camera, microphone = profile.camera["front"], profile.microphone["main"]
    with SessionWriter(file) as writer:
        writer.add_metadata("profile", profile.model_dump(mode="json"))
        for message in messages(profile.script, camera, microphone, seconds):
            writer.write(message)
    return file


class Stopwatch:
    """Seconds spent in functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time counted."""

        def timed(*arguments: Any) -> Any:
            begun_s = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.perf_counter() - begun_s

        return timed

    def watch_models(self, engine: Engine) -> None:
        """Count the time inside an engine's encoders and head."""
        for name, encoder in engine.encoders.items():
            timed: Any = self.watch(encoder)
            timed.uses_previous = getattr(encoder, "uses_previous", False)
            engine.encoders[name] = timed
        engine.head.forward = self.watch(engine.head.forward)  # type: ignore[method-assign]


class Replays:
    """Replays of one file with so many workers each."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._models_s = 0.0

    def run(self, workers: int) -> Values:
        """Replay once; the round's first run is that of one worker."""
        with Recording(self._file) as recording:
            config = recording.profile.required_fusion()
            known = fusing.survey_of(recording, config)
            with fusing.EnginePool(config, known, workers) as pool:
                watch = Stopwatch()
                for engine in pool.engines:
                    engine.warm_up()
                    if workers == 1:
                        watch.watch_models(engine)
                begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
                steps = fusing.cuts(recording, config, fusing.survey_of(recording, config))
                stamps = [state.stamp_ns for _, state in pool.infer(steps) if state is not None]
                took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - begun_cpu_s
        if workers == 1:
            self._models_s = watch.seconds
        session_s = (stamps[-1] - stamps[0]) / 1e9
        return {
            "x real time": session_s / took_s,
            "ms a state": took_s / len(stamps) * 1e3,
            "models' ms": self._models_s / len(stamps) * 1e3,
            "ratio": took_s / self._models_s,
            "CPU ms": cpu_s / len(stamps) * 1e3,
        }


@click.command()
@click.option("--session", type=click.Path(path_type=Path, exists=True), help="Take this recording.")
@click.option("--seconds", default=60.0, help="Length of the session that is made without one.")
@click.option("--rounds", default=5)
@click.option("--workers", default=2, help="Compared with one.")
def main(session: Path | None, seconds: float, rounds: int, workers: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory() as folder:
        replays = Replays(session or scripted(Path(folder) / "demo.mcap", seconds))
        cases = {f"{count} workers": partial(replays.run, count) for count in sorted({1, workers})}
        click.echo(as_text(interleave(cases, rounds)))
    click.echo(f"medians of {rounds} rounds, least and most; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
