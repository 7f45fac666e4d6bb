"""What is fuzzed. A target takes any bytes; it returns, or raises what users may see, and nothing else."""

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from perception import topics
from perception.bus import codec
from perception.bus.mailbox import Mailbox
from perception.devices.text import _timed_lines
from perception.errors import MalformedMessageError, PerceptionError
from perception.fusion.core import FusionCore
from perception.fusion.ledger import Ledger
from perception.messages import MAX_TIME_NS, ClockTick, Health, Message
from perception.profile import LAUNCH_DIR, load
from perception.session import Session, info
from perception.session import labels as label_files
from tests.streams import START_NS, config

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
TOPICS = [f"{kind}/a" for kind in topics.TOPICS]


class Target:
    """One kind of input, with examples to mutate."""

    binary = True
    """Whether bytes are mutated; else text, so that mutations keep it nearly well-formed."""

    def examples(self) -> list[bytes]:
        raise NotImplementedError

    def run(self, data: bytes) -> None:
        raise NotImplementedError


class Wire(Target):
    """A message: number of the topic, size of the header, header, payload. What decodes is pushed on."""

    def __init__(self) -> None:
        self.valid = 0
        """Inputs that were a message."""
        self._renew()

    def _renew(self) -> None:
        self._box = Mailbox()
        self._ledger = Ledger(FusionCore(config()), state_topic="state/a", state_source="f#1")
        self._ledger.push(Message("clock/fusion", ClockTick(stamp_ns=START_NS)))
        self._pushed = 0

    def examples(self) -> list[bytes]:
        vectors = json.loads((GOLDEN / "vectors.json").read_text())
        return [joined(*map(bytes.fromhex, one["parts"])) for one in vectors]

    def run(self, data: bytes) -> None:
        number, size = data[:1], int.from_bytes(data[1:3], "big")
        topic = TOPICS[(number or b"\0")[0] % len(TOPICS)].encode()
        header, payload = data[3 : 3 + size], data[3 + size :]
        try:
            message = codec.decode(
                [topic, header, payload] if payload else [topic, header], received_ns=START_NS
            )
        except MalformedMessageError as error:
            if len(str(error)) > 400:
                raise AssertionError("a long reason") from error
            return
        self.valid += 1
        again = codec.encode(message.topic, message.header, message.payload)
        assert codec.decode(again, received_ns=START_NS) == message, "another message when encoded again"
        assert -MAX_TIME_NS <= message.header.stamp_ns <= MAX_TIME_NS
        self._box.put(message)
        if self._ledger.core.takes(message.topic):
            self._ledger.push(message)
        self._pushed += 1
        if self._ledger.full or self._pushed % 64 == 0:
            self._report()

    def _report(self) -> None:
        while self._box.take():
            pass
        codec.encode("health/a", Health(stamp_ns=START_NS, node="a", inputs=self._box.health(START_NS)))
        journal = self._ledger.journal(START_NS)
        if journal is not None:
            codec.encode("journal/a", journal)
        if self._pushed > 20_000:
            self._renew()


def joined(topic: bytes, header: bytes = b"", payload: bytes = b"") -> bytes:
    """Return the parts of a message as one input."""
    kind = topics.kind_of(topic.decode())
    number = list(topics.TOPICS).index(kind)
    return bytes([number]) + len(header).to_bytes(2, "big") + header + payload


@dataclass
class OfFile(Target):
    """A file that is read from disk."""

    name: str
    read: Callable[[Path], object]
    given: list[Path]
    binary: bool = True
    largest: int = 200_000
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="fuzz-")))

    @cached_property
    def path(self) -> Path:
        return self.folder / self.name

    def examples(self) -> list[bytes]:
        return [file.read_bytes() for file in self.given if file.stat().st_size <= self.largest]

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        try:
            self.read(self.path)
        except PerceptionError as error:
            if "\n" in str(error).strip():
                raise AssertionError("an error of several lines") from error


def read_session(path: Path) -> None:
    with suppress(PerceptionError):
        info.look(path)
    with Session(path) as session:
        for message in session.messages():
            assert message.topic


def read_profile(path: Path) -> None:
    load(path)


def read_checkpoint(path: Path) -> None:
    """`path` is one file of a checkpoint; the other is that of the demo."""
    from perception.models.checkpoint import load_head

    for name in ("config.json", "model.safetensors"):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes((LAUNCH_DIR / "demo_head" / name).read_bytes())
    load_head(path.parent)


def read_labels(path: Path) -> None:
    for span in label_files.read(path):
        assert span.end_ns >= span.start_ns


def corpus(name: str) -> list[Path]:
    """Return the inputs of a target in the tree: those that failed once, and small examples."""
    return sorted((HERE / "corpus" / name).glob("*"))


def targets() -> dict[str, Callable[[], Target]]:
    head = LAUNCH_DIR / "demo_head"
    return {
        "wire": Wire,
        "session": lambda: OfFile("a.mcap", read_session, sorted(GOLDEN.glob("*.mcap"))),
        "profile": lambda: OfFile("a.toml", read_profile, sorted(LAUNCH_DIR.glob("*.toml")), binary=False),
        "config": lambda: OfFile("config.json", read_checkpoint, [head / "config.json"], binary=False),
        "weights": lambda: OfFile("model.safetensors", read_checkpoint, [head / "model.safetensors"]),
        "labels": lambda: OfFile("a.tsv", read_labels, corpus("labels"), binary=False),
        "text": lambda: OfFile("a.txt", _timed_lines, corpus("text"), binary=False),
    }
