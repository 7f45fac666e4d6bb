"""Cache build beside its encoders alone, and training on an hour: python -m tests.benchmarks.training_speed.

Sessions of the scripted devices are recorded to files. The cache is built of them by one process, which is
laid beside what the same encoders take on the same inputs with nothing around them, in processor time, so
that other load does not enter; then by two. A head is trained on 36,000 windows, one hour at 10 Hz: the
sessions' features, repeated with a little noise.
"""

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import torch

from perception.devices.scripted import messages
from perception.fusion.build import build_engine, use_threads
from perception.profile import FusionConfig, Profile, ScriptConfig, load
from perception.session import SessionWriter
from perception.training import dataset, encoding, heads
from perception.training.examples import Examples
from perception.training.heads import Split
from perception.training.plan import HeadPlan, TrainPlan
from perception.training.sources import SessionSource

HOUR: int = 36_000


def recorded(folder: Path, profile: Profile, seed: int, seconds: float) -> SessionSource:
    """A session of the scripted devices."""
    path = folder / f"script-{seed}.mcap"
    devices = profile.camera["front"], profile.microphone["main"]
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", profile.model_dump(mode="json"))
        for message in messages(ScriptConfig(seed=seed), *devices, seconds):
            writer.write(message)
    return SessionSource(path)


def pure_s(source: SessionSource, config: FusionConfig) -> float:
    """What the encoders alone take for a session."""
    engine = build_engine(encoding.headless(config), clock=time.process_time_ns)
    engine.warm_up()
    windows = encoding.windows(source, config)
    return sum(sum(engine.encode(window).took_ms.values()) for window in windows) / 1000


def build_s(sources: list[SessionSource], config: FusionConfig, workers: int) -> tuple[float, Examples]:
    """What an empty cache takes: processor time of one process, or wall time of several."""
    folder = Path(tempfile.mkdtemp(prefix="cache"))
    try:
        began = time.perf_counter() if workers > 1 else time.process_time()
        data = dataset.build(sources, config, folder, workers=workers)
        took = (time.perf_counter() if workers > 1 else time.process_time()) - began
        return took, data.rows(torch.arange(len(data)))
    finally:
        shutil.rmtree(folder)


def an_hour(data: Examples) -> Examples:
    """The windows again and again, as other sessions and with a little noise, until there are enough."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for copy in range(-(-HOUR // len(data))):
        names = tuple(f"{name} {copy}" for name in data.names)
        noisy = {
            name: x + 0.05 * x.std(dim=0, keepdim=True) * torch.randn(x.shape, generator=generator)
            for name, x in data.read().features.items()
        }
        parts.append(replace(data, features=noisy, names=names))
    return Examples.concatenate(parts).rows(torch.arange(HOUR))


@click.command()
@click.option("--seconds", default=40.0, show_default=True, help="Length of each session.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--gru", default=0, show_default=True, help="Hidden units of a GRU over ticks.")
def main(seconds: float, rounds: int, gru: int) -> None:
    """Print medians."""
    use_threads(1)
    profile = load("demo")
    config = profile.fusion
    assert config is not None
    with tempfile.TemporaryDirectory() as folder:
        sources = [recorded(Path(folder), profile, seed, seconds) for seed in (1, 2)]
        figures: dict[str, list[float]] = {"pure": [], "one": [], "two": []}
        encoding.encoders_hash(config)
        for _ in range(rounds):
            figures["pure"].append(sum(pure_s(source, config) for source in sources))
            took, data = build_s(sources, config, 1)
            figures["one"].append(took)
            figures["two"].append(build_s(sources, config, 2)[0])
    pure, one, two = (median(figures[name]) for name in ("pure", "one", "two"))
    print(f"encoders alone {pure:.2f} s for {len(data)} windows, {pure / len(data) * 1e3:.2f} ms each")
    print(f"cache by one process {one:.2f} s, ratio {one / pure:.3f}")
    print(f"cache by two processes {two:.2f} s of wall time")
    use_threads(config.threads)  # as `perception train` does
    hour = an_hour(data)
    plan = TrainPlan(profile="demo", seeds=1, test=0, head=HeadPlan(**({"gru": gru} if gru else {})))
    parts: Split = heads.split(hour, plan)
    began = time.perf_counter()
    epochs: list[str] = []

    def advance(count: int = 1, note: str = "") -> None:
        epochs.extend([note] if note else [])

    heads.train_heads(parts, plan, config, advance=advance)
    took = time.perf_counter() - began
    rows = len(parts.train)
    print(f"training on {rows} of {HOUR} windows: {took:.1f} s, {took / len(epochs):.2f} s an epoch")


if __name__ == "__main__":
    main()
