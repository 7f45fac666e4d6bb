"""The demo with each single modality and each pair removed: rate, punctuality and accuracy, live.

    python tests/benchmarks/demo_ablation.py [--seconds 30] [--seed 1001]

A removed modality is one whose topic nobody publishes: its device is as dead as an unplugged one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

INPUTS = ("camera", "microphone", "text")


def run(removed: tuple[str, ...], seconds: float, seed: int) -> dict[str, Any]:
    """Run the demo without the inputs of `removed`; return its summary."""
    overrides = [f"script.seed={seed}", *(f'fusion.inputs.{name}.topic="{name}/nobody"' for name in removed)]
    options = [part for override in overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "summary.json"
        command = [sys.executable, "-m", "perception", "up", "demo", "--seconds", str(seconds)]
        subprocess.run([*command, "--json", str(file), *options], check=True, stdout=subprocess.DEVNULL)
        summary: dict[str, Any] = json.loads(file.read_text())
        return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1001, help="of the script; training used seeds below 100")
    arguments = parser.parse_args()
    print(f"{'removed':<20} {'rate Hz':>8} {'on time':>8} {'accuracy':>9} {'total p95':>10}")
    for count in range(3):
        for removed in combinations(INPUTS, count):
            summary = run(removed, arguments.seconds, arguments.seed)
            ticks, total = summary["ticks"], summary["latency_ms"]["window end -> sent"]
            accuracy = summary["accuracy"]["share"]
            print(
                f"{'+'.join(removed) or 'nothing':<20} {ticks['rate_hz']:>8.3f} "
                f"{ticks['on_time_share']:>8.2%} {accuracy:>9.1%} {total['p95']:>6.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
