"""Live equals replay, on real processes: record a graph, verify it, replay it again and again.

    python -m tests.benchmarks.verify_live --seconds 300
    python -m tests.benchmarks.verify_live --seconds 300 --overload
    python -m tests.benchmarks.verify_live --data ../shared/data

With --overload, a network that takes longer than a hop makes the fusion shed windows, the camera is killed
and restarted, and the microphone is stopped for some 0.4 s again and again, so that its sound comes late.
With --data, camera and microphone play GRID clips one after the other, and each command is also a text.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import av
import click
from msgspec import msgpack

from perception.bus.host import HostClock, Runtime
from perception.graph.plan import plan
from perception.graph.supervisor import Supervisor
from perception.messages import FusedState, Health
from perception.profile import load
from perception.reproduce.grid_data import TICKS_PER_S
from perception.session import Session
from perception.session.recompute import engines as fusing
from perception.session.recompute.source import Recording
from perception.session.recompute.verify import verify

SLOW = (
    'fusion.encoders.slow={ input="camera", kind="torchvision", weights="random", '
    'options={ model="resnet101" } }',
    'fusion.head={ weights="random", classes=["idle", "visitor", "talking", "call", "clap"] }',
)
"""A model beside the demo's that takes longer than a hop, and a head that takes its features in."""
GRID = """
domain = "grid"
[camera.front]
source = "{media}"
[microphone.main]
source = "{media}"
[text.said]
source = "{lines}"
[fusion]
base = "demo"
"""


def grid_profile(data: Path, folder: Path, seconds: float) -> Path:
    """Play clips for so long: all of them in one file, and what is said in them in another."""
    clips, lines, at_s = [], [], 0.0
    for clip in sorted((data / "grid").glob("*.mpg")):
        if at_s >= seconds:
            break
        words = [line.split() for line in clip.with_suffix(".align").read_text().splitlines()]
        said = [(int(end), word) for _, end, word in words if word not in ("sil", "sp")]
        lines.append(f"{at_s + said[-1][0] / TICKS_PER_S:.3f}\t{' '.join(word for _, word in said)}\n")
        clips.append(f"file '{clip.resolve()}'\n")
        with av.open(str(clip)) as container:
            at_s += (container.duration or 0) / 1e6
    media, text, listing = (folder / name for name in ("grid.mkv", "grid.txt", "clips.txt"))
    listing.write_text("".join(clips))
    text.write_text("".join(lines))
    joined = ("-f", "concat", "-safe", "0", "-i", str(listing))
    encoded = ("-c:v", "mjpeg", "-q:v", "2", "-c:a", "pcm_s16le", str(media))
    subprocess.run(("ffmpeg", "-loglevel", "error", *joined, *encoded), check=True)
    profile = folder / "grid.toml"
    profile.write_text(GRID.format(media=media, lines=text))
    click.echo(f"{len(clips)} clips, {at_s:.1f} s")
    return profile


def live(name: str, overrides: tuple[str, ...], seconds: float, overload: bool) -> None:
    """Run the graph, and let things go wrong in it."""
    nodes = plan(load(name, overrides), name, overrides, origin_ns=HostClock().now_ns())
    begun_s = time.monotonic()
    troubles = _troubles(seconds) if overload else iter(())
    trouble = next(troubles, None)
    with Supervisor(nodes) as supervisor:
        while (elapsed_s := time.monotonic() - begun_s) < seconds:
            supervisor.poll()
            for node, line in supervisor.lines():
                click.echo(f"  {node}: {line}")
            if trouble is not None and elapsed_s >= trouble[0]:
                with suppress(KeyError, ProcessLookupError):
                    trouble[1](supervisor.pids())
                trouble = next(troubles, None)
            time.sleep(0.02)


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


def digest(states: Iterator[FusedState]) -> str:
    """Hash of all states, byte for byte."""
    whole = hashlib.sha256()
    for state in states:
        whole.update(msgpack.encode(state))
    return whole.hexdigest()[:16]


def report(file: Path, repeats: int) -> None:
    """Print all figures."""
    begun_s = time.perf_counter()
    verdict = verify(file)
    took_s = time.perf_counter() - begun_s
    click.echo("\n".join(verdict.lines()))
    with Recording(file) as recording:
        known = fusing.survey_of(recording, recording.profile.required_fusion())
    with Session(file) as opened:
        counts = opened.counts
        account = [one.header for one in opened.messages(["health/fusion"]) if isinstance(one.header, Health)]
    shed = sum(len(ticks) for ticks in known.shed.values())
    share = shed / max(1, shed + verdict.states)
    click.echo(f"recorded {', '.join(f'{count} {topic}' for topic, count in counts.items())}")
    click.echo(
        f"exit code {verdict.exit_code}; {shed} windows shed, {share:.1%}; verify took {took_s:.1f} s "
        f"at load {os.getloadavg()[0]:.1f}"
    )
    click.echo(f"the fusion's own account: {account[-1].counts if account else 'none'}")
    digests = {digest(fusing.replay(file)) for _ in range(repeats)}
    click.echo(f"{repeats} replays: {len(digests)} different results: {', '.join(digests)}")


@click.command()
@click.option("--seconds", default=60.0)
@click.option("--overload", is_flag=True)
@click.option("--data", type=click.Path(path_type=Path), help="Real clips in place of the demo's devices.")
@click.option("--repeats", default=20)
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the session here.")
@click.option("--session", type=click.Path(path_type=Path), help="Take this session instead of a live run.")
def main(
    seconds: float, overload: bool, data: Path | None, repeats: int, keep: Path | None, session: Path | None
) -> None:
    """Run, record, verify, repeat."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = session or folder / "live.mcap"
        if session is None:
            os.environ["PERCEPTION_RUNTIME_DIR"] = name
            profile = "demo" if data is None else str(grid_profile(data, folder, seconds))
            overrides = (*(SLOW if overload else ()), f'recorder.out="{file}"')
            live(profile, overrides, seconds, overload)
            Runtime(load(profile).domain).sweep()
        if keep:
            shutil.copy(file, keep)
        report(file, repeats)


if __name__ == "__main__":
    main()
