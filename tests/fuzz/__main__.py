"""`uv run python -m tests.fuzz wire --cases 10000000`; `--atheris` where that package is installed."""

import argparse
import sys
from pathlib import Path

from tests.fuzz.run import fuzz
from tests.fuzz.targets import targets


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(targets()))
    parser.add_argument("--cases", type=int)
    parser.add_argument("--bytes", type=int, help="end after so many mutated bytes")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--atheris", action="store_true", help="guided by coverage: package atheris")
    options = parser.parse_args()
    if options.atheris:
        return _guided(options.target, options.cases or 1_000_000)
    report = fuzz(
        options.target,
        seed=options.seed,
        cases=options.cases,
        changed_bytes=options.bytes,
        seconds=options.seconds,
        out=options.out,
        progress=lambda now: print(f"{now.cases} cases, {now.seconds:.0f} s", file=sys.stderr, flush=True),
    )
    print(report)
    return 1 if report.failures else 0


def _guided(name: str, cases: int) -> int:
    """Let libFuzzer choose the inputs; it ends the process at the first failure."""
    import atheris

    target = targets()[name]()
    for example in target.examples():
        target.run(example)
    atheris.instrument_all()
    arguments = [sys.argv[0], f"-runs={cases}", "-timeout=10", "-rss_limit_mb=4096"]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
