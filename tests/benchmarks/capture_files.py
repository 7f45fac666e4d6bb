"""Plays video files as camera and microphone at once: nothing lost, nothing late, in sync, small.

python -m tests.benchmarks.capture_files --data ../shared/data [--clips 5]
"""

import argparse
import tempfile
from pathlib import Path

import av
import numpy as np

from perception.bus.host import HostClock
from tests.benchmarks.capture_nodes import Run, block_ages_ms, frame_ages_ms, percentiles, run_nodes


def profile_of(media: Path, folder: Path) -> Path:
    """Write a profile with the file as both devices."""
    path = folder / "files.toml"
    path.write_text(
        f'domain = "bench-files"\n[camera.front]\nsource = "{media}"\n[microphone.desk]\nsource = "{media}"\n'
    )
    return path


def truth(media: Path) -> tuple[list[float], float]:
    """Return the frames' times and the sound's length in seconds, decoded straight through."""
    with av.open(str(media)) as container:
        start_s = (container.start_time or 0) / 1e6
        frames = [float(frame.time or 0) - start_s for frame in container.decode(video=0)]
    with av.open(str(media)) as container:
        sound_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return frames, sound_s


def report(media: Path, run: Run, origin_ns: int) -> None:
    """Print one file's figures."""
    frames, sound_s = truth(media)
    stamps = np.array([frame.header.stamp_ns - origin_ns for frame in run.frames]) / 1e9
    wanted = np.array(frames)
    error_ms = max((float(np.abs(wanted - stamp).min()) * 1e3 for stamp in stamps), default=0.0)
    samples = sum(block.header.samples for block in run.blocks)
    indices = [block.header.sample_index for block in run.blocks]
    unbroken = all(
        later == earlier + block.header.samples
        for earlier, later, block in zip(indices, indices[1:], run.blocks, strict=False)
    )
    first_ms = (run.blocks[0].header.stamp_ns - origin_ns) / 1e6 if run.blocks else float("nan")
    print(f"{media.name}: exit codes {run.exit_codes}, lost on the way {sum(run.lost.values())}")
    print(
        f"  frames {len(run.frames)} of {len(frames)}, stamp error max {error_ms:.3f} ms, "
        f"age ms p50/p95/max {percentiles(frame_ages_ms(run))}"
    )
    gaps = sum(block.header.gap for block in run.blocks)
    print(
        f"  sound {samples / 16000:.3f} s of {sound_s:.3f} s, unbroken {unbroken}, gaps {gaps}, "
        f"first sample at {first_ms:.3f} ms, age ms {percentiles(block_ages_ms(run))}"
    )
    print(
        "  peak RSS MB",
        {name: round(rss) for name, rss in run.peak_rss_mb.items()},
        "counts",
        {name: health.counts for name, health in run.health.items()},
    )


def main() -> None:
    """Run each file once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=5, help="how many grid clips")
    parser.add_argument("--lead-s", type=int, default=2, help="seconds the nodes get to start")
    options = parser.parse_args()
    files = [
        options.data / "video/av-720p.mp4",
        *sorted((options.data / "grid").glob("*.mpg"))[: options.clips],
    ]
    with tempfile.TemporaryDirectory() as folder:
        for media in files:
            origin_ns = HostClock().now_ns() + options.lead_s * 1_000_000_000
            profile = profile_of(media.resolve(), Path(folder))
            nodes = (("camera", "front"), ("microphone", "desk"))
            report(media, run_nodes(profile, nodes, domain="bench-files", origin_ns=origin_ns), origin_ns)


if __name__ == "__main__":
    main()
