"""What damage does to a session: cut at every 1000th byte, and random bytes changed.

Counts files that could not be opened, messages lost, and messages returned that differ from what was
written (there must be none). Both the closed file and one without its index, as a killed recorder leaves it.

    python -m tests.benchmarks.session_damage --flips 10000
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from mcap.reader import make_reader

from perception.errors import SessionError
from perception.messages import Header, Message
from perception.session import Session, SessionWriter, read
from tests import streams

Content = tuple[str, Header, bytes, int]


def content(message: Message[Header]) -> Content:
    """Return all of a message that can be compared."""
    return message.topic, message.header, bytes(message.payload), message.received_ns


def make(path: Path, seconds: float) -> list[Content]:
    """Write a session of camera, sound and text; return what is in it."""
    sources = [
        streams.camera_stream(seconds),
        streams.microphone_stream(seconds),
        streams.text_stream(seconds),
    ]
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", {"domain": "damage"})
        for message in streams.arrivals(sources, lambda message: 0):
            writer.write(message)
    return [content(message) for message in read(path)]


def examine(path: Path, whole: list[Content], known: set[Content]) -> Counter[str]:
    """Read a damaged file and count what comes out."""
    counts = Counter({"files": 1})
    try:
        with Session(path) as session:
            found = [content(message) for message in session.messages()]
            damage = session.damage
            wrong_metadata = session.metadata not in ({}, {"profile": {"domain": "damage"}})
    except SessionError:
        counts["refused"] += 1
        return counts
    counts["messages returned"] += len(found)
    counts["messages wrong"] += sum(one not in known for one in found)
    counts["order wrong"] += found != sorted(found, key=lambda one: one[3])
    counts["metadata wrong"] += wrong_metadata
    counts["files whole"] += found == whole
    counts["files that lost messages without a word"] += found != whole and not damage
    return counts


def flipped(data: bytes, times: int) -> Iterator[bytes]:
    """Yield copies in each of which one random byte differs."""
    for _ in range(times):
        copy = bytearray(data)
        copy[random.randrange(len(copy))] ^= random.randrange(1, 256)
        yield bytes(copy)


def report(title: str, path: Path, files: Iterable[bytes], whole: list[Content]) -> None:
    """Examine each and print the sums."""
    known, total, slowest_s = set(whole), Counter[str](), 0.0
    for data in files:
        path.write_bytes(data)
        started = time.perf_counter()
        total += examine(path, whole, known)
        slowest_s = max(slowest_s, time.perf_counter() - started)
    click.echo(f"{title}: slowest {slowest_s * 1e3:.0f} ms")
    for name, count in total.items():
        click.echo(f"  {name}: {count}")


@click.command()
@click.option("--flips", default=10_000)
@click.option("--seconds", default=3.0, help="length of the session")
@click.option("--seed", default=1)
def main(flips: int, seconds: float, seed: int) -> None:
    """Cut and flip."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        path, damaged = Path(folder) / "whole.mcap", Path(folder) / "damaged.mcap"
        whole = make(path, seconds)
        data = path.read_bytes()
        with path.open("rb") as file:
            summary = make_reader(file).get_summary()
        assert summary is not None
        end = max(chunk.chunk_start_offset + chunk.chunk_length for chunk in summary.chunk_indexes)
        click.echo(f"{len(data)} bytes, {len(whole)} messages")
        report(
            "cut at every 1000th byte", damaged, (data[:size] for size in range(0, len(data), 1000)), whole
        )
        report("closed, one byte changed", damaged, flipped(data, flips // 2), whole)
        report("killed, one byte changed", damaged, flipped(data[:end], flips // 2), whole)


if __name__ == "__main__":
    main()
