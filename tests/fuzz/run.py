"""Runs one target on mutated inputs, with limits of time and memory for each."""

import json
import resource
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import Target, corpus, targets

SLOW_S: Final = 1.0
HANG_S: Final = 10
MEMORY_BYTES: Final = 1 << 30
"""How much the address space may grow."""
KEPT: Final = 20
"""Failures that are stored."""


class Hang(BaseException):
    """An input took `HANG_S`."""


@dataclass
class Report:
    target: str
    seed: int
    cases: int = 0
    changed_bytes: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    """CPU time of one input, which does not grow on a busy machine."""
    grown_mib: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    """By the last line of the traceback and its place."""

    def __str__(self) -> str:
        return json.dumps(asdict(self), indent=1)


def fuzz(
    name: str,
    *,
    seed: int,
    cases: int | None = None,
    changed_bytes: int | None = None,
    seconds: float | None = None,
    out: Path | None = None,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run mutated inputs until one of the limits is reached; write the inputs that failed to `out`."""
    target = targets()[name]()
    mutator = Mutator(
        [*target.examples(), *(file.read_bytes() for file in corpus(name))], seed, binary=target.binary
    )
    report, begun_s = Report(name, seed), time.monotonic()
    target.run(mutator.next())  # what it imports and caches is not growth
    grown = _peak_kib()
    with _limits():
        while (
            (cases is None or report.cases < cases)
            and (changed_bytes is None or mutator.changed < changed_bytes)
            and (seconds is None or report.seconds < seconds)
        ):
            data = mutator.next()
            started_s = time.process_time()
            failure = attempt(target, data)
            took_s = time.process_time() - started_s
            report.slowest_s = max(report.slowest_s, took_s)
            if failure is None and took_s > SLOW_S:
                failure = f"slow: {took_s:.1f} s"
            if failure is not None:
                _store(report, failure, data, out)
            report.cases += 1
            report.changed_bytes, report.seconds = mutator.changed, time.monotonic() - begun_s
            if report.cases % 100_000 == 0:
                progress(report)
    report.grown_mib = (_peak_kib() - grown) / 1024
    return report


def attempt(target: Target, data: bytes) -> str | None:
    """Return why a target failed on an input, None if it did not."""
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target.run(data)
    except Hang:
        return f"hang: over {HANG_S} s"
    except MemoryError:
        return "memory: over the limit"
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if "/perception/" in frame.filename] or frames
        return f"{type(error).__name__} at {Path(inside[-1].filename).name}:{inside[-1].lineno}: {error}"[
            :300
        ]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _store(report: Report, failure: str, data: bytes, out: Path | None) -> None:
    key = failure.partition(": ")[0]
    report.failures[key] = report.failures.get(key, 0) + 1
    if report.failures[key] == 1 and len(report.failures) <= KEPT:
        print(f"{report.target}: case {report.cases} of seed {report.seed}: {failure}", flush=True)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{report.target}-{report.seed}-{report.cases}").write_bytes(data)


class _limits:  # noqa: N801
    """Bounds the address space, and ends an input that hangs."""

    def __enter__(self) -> None:
        self._memory = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY_BYTES
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (most, self._memory[1]))
        self._handler = signal.signal(signal.SIGALRM, _hang)

    def __exit__(self, *exc: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, self._memory)
        signal.signal(signal.SIGALRM, self._handler)


def _hang(_: int, __: FrameType | None) -> None:
    raise Hang


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
