"""Plays an HTTP MJPEG camera served by ffmpeg: frame age at a subscriber, frames lost, memory.

    python -m tests.benchmarks.capture_mjpeg [--seconds 60] [--reconnect]

With --reconnect the server is killed halfway and started again.
"""

import argparse
import subprocess
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

from perception.bus.host import HostClock
from tests.benchmarks.capture_nodes import frame_ages_ms, percentiles, run_nodes

URL = "http://127.0.0.1:18471/cam.mjpg"
RATE_HZ = 30


def serve() -> "subprocess.Popen[bytes]":
    """Start a camera that serves one client."""
    source = f"testsrc2=size=640x480:rate={RATE_HZ}"
    encoder = ("-c:v", "mjpeg", "-q:v", "5", "-f", "mpjpeg", "-listen", "1")
    return subprocess.Popen(
        ("ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", source, *encoder, URL),
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--reconnect", action="store_true")
    options = parser.parse_args()
    servers = [serve()]

    def restart() -> None:
        servers[0].kill()
        servers[0].wait()
        servers.append(serve())

    killer = threading.Timer(options.seconds / 2, restart)
    if options.reconnect:
        killer.start()
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder) / "mjpeg.toml"
        profile.write_text(f'domain = "bench-mjpeg"\n[camera.front]\nsource = "{URL}"\nrate_hz = {RATE_HZ}\n')
        threading.Event().wait(1.0)  # ffmpeg listens
        now_ns = HostClock().now_ns()
        run = run_nodes(
            profile, (("camera", "front"),), domain="bench-mjpeg", origin_ns=now_ns, seconds=options.seconds
        )
    for server in servers:
        server.kill()
        server.wait()
    stamps = [frame.header.stamp_ns for frame in run.frames]
    spacing = [(later - earlier) / 1e6 for earlier, later in pairwise(stamps)]
    print(f"frames {len(stamps)} in {(stamps[-1] - stamps[0]) / 1e9:.1f} s, period {1e3 / RATE_HZ:.1f} ms")
    print(f"frame age ms p50/p95/max {percentiles(frame_ages_ms(run))}")
    print(f"spacing ms p50/p95/max {percentiles(spacing)}")
    print(f"lost {run.lost}, exit codes {run.exit_codes}")
    print(f"peak RSS MB {run.peak_rss_mb}, health {run.health['camera-front']}")


if __name__ == "__main__":
    main()
