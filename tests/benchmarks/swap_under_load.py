"""Heads swapped in a running demo beside a process that burns a core: -m tests.benchmarks.swap_under_load.

Every few seconds another head goes into shadow, goes live and is taken back. Counted is every tick that was
not published, and how long states took from their window's end in shadow and otherwise.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import torch

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.cli import main as cli
from perception.messages import FusedState, HeadStatus
from perception.models.checkpoint import load_head
from perception.profile import LAUNCH_DIR
from perception.session import read
from perception.session.recompute.verify import verify

DOMAIN = "swap-bench"


def other_head(folder: Path) -> Path:
    """The demo's head, slightly moved."""
    head = load_head(LAUNCH_DIR / "demo_head")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.05 * weight.std(correction=0) * torch.randn_like(weight))
    head.save_pretrained(folder / "other")
    return folder / "other"


def burn(stop: float) -> None:
    """Keep a core busy."""
    while time.monotonic() < stop:
        pass


def swaps(head: Path, count: int) -> None:
    """Shadow, go and back, again and again."""
    for _ in range(count):
        assert cli.run(["swap", str(head), "--domain", DOMAIN, "--after", "20", "--go"]) == 0
        time.sleep(1)
        assert cli.run(["swap", "--back", "--domain", DOMAIN]) == 0
        time.sleep(1)


@click.command()
@click.option("--count", default=5, show_default=True)
@click.option("--load/--no-load", default=True, show_default=True)
def main(count: int, load: bool) -> None:
    """Print what was lost."""
    with tempfile.TemporaryDirectory() as base:
        os.environ["PERCEPTION_RUNTIME_DIR"] = base
        out, head = Path(base) / "out.mcap", other_head(Path(base))
        command = ["up", "demo", "--domain", DOMAIN, "--set", "record=true", "--set", f'recorder.out="{out}"']
        graph = subprocess.Popen(
            [sys.executable, "-m", "perception", *command],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with Subscriber("state/fused", runtime=Runtime(DOMAIN), clock=HostClock().now_ns) as states:
            assert states.receive(60) is not None
        time.sleep(5)
        began_ns = HostClock().now_ns()
        burner = multiprocessing.get_context("spawn").Process(
            target=burn, args=(time.monotonic() + 600,), daemon=True
        )
        if load:
            burner.start()
        worker = threading.Thread(target=swaps, args=(head, count))
        worker.start()
        worker.join()
        ended_ns = HostClock().now_ns()
        if load:
            burner.terminate()
        time.sleep(2)
        graph.send_signal(signal.SIGINT)
        graph.wait(30)
        report(out, began_ns, ended_ns)


def report(out: Path, began_ns: int, ended_ns: int) -> None:
    """Print the figures."""
    states = [m.header for m in read(out, ["state/fused"]) if isinstance(m.header, FusedState)]
    states = [state for state in states if began_ns <= state.stamp_ns <= ended_ns]
    told = [m.header for m in read(out, ["head/*"]) if isinstance(m.header, HeadStatus)]
    lost = sum(after.tick - before.tick - 1 for before, after in pairwise(states))
    shadow_ns = [(one.stamp_ns - 2_500_000_000, one.stamp_ns) for one in told if one.phase == "compared"]
    in_shadow = np.array([any(a <= s.stamp_ns <= b for a, b in shadow_ns) for s in states])
    total_ms = np.array([state.latency.total_ms for state in states])
    changes = sum(a.model.weights_hash != b.model.weights_hash for a, b in pairwise(states))
    print(f"{changes} switches in {len(states)} states; ticks not published: {lost}")
    for one in told:
        if one.phase == "compared":
            print(f"shadow agreement {one.agreement.equal:.3f}, distance {one.agreement.variation:.4f}")
    for name, chosen in (("in shadow", in_shadow), ("otherwise", ~in_shadow)):
        p50, p99 = np.percentile(total_ms[chosen], (50, 99))
        print(f"window end to state, {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print("\n".join(verify(out).lines()))


if __name__ == "__main__":
    main()
