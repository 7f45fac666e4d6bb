"""Record a running graph, to one file or several, until told to stop or the disk is nearly full."""

import logging
import platform
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

import numpy  # noqa: F401  # pixels need it: imported with the first frame, it would cost the next ones
from msgspec import structs

from perception import topics
from perception.bus.subscriber import Subscriber
from perception.errors import DISTRIBUTION, MalformedMessageError
from perception.errors.credentials import cleaned
from perception.messages import FusedState, Header, Health, Message, ModelInfo
from perception.profile import Profile, RecorderConfig
from perception.session.file.writer import SessionWriter
from perception.units import SECOND_NS
from perception.units.bounded import MAX_NAMES, Recent

_LOG: Final = logging.getLogger(__name__)
# What may wait while the disk stalls, of topics that are otherwise not queued: a second or more.
_DEPTH: Final = {"camera": 64, "state": 256, "health": 256}
EVERY_MESSAGE: Final = {
    prefix: replace(row, policy="queue", depth=_DEPTH.get(prefix, row.depth))
    for prefix, row in topics.TOPICS.items()
}
"""Policies under which nothing is superseded: for `Subscriber(policies=...)`."""
MODEL: Final = "model"
"""First word of the metadata that names a model, its configuration's hash the second."""
_PACKAGES: Final = (
    DISTRIBUTION, "numpy", "opencv-python", "torch", "torchvision", "torchaudio", "transformers", "mcap",
)  # fmt: skip
_MAX_DEVICES: Final = 16
"""Of one node."""
_RECEIVE_S: Final = 0.1
_QUIET_S: Final = 0.3
_QUEUED_S: Final = 0.2
_MB: Final = 1_000_000


class Recorder:
    """Writes messages to session files; knows no socket.

    Args:
        out: the file to write; if it exists, or when it is split, a number is added to its name.
        config: when to split, and how much of the disk to leave free.
        metadata: JSON values that every file begins with.
        free_bytes: what is left on the disk of a folder.

    Raises:
        SessionError: the file cannot be made.
    """

    def __init__(
        self,
        out: Path | str,
        config: RecorderConfig,
        metadata: Mapping[str, Any],
        free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._out = Path(out)
        self._config = config
        self._metadata = dict(metadata)
        self._free_bytes = free_bytes
        self._next_look_ns = 0
        self._split_ns: int | None = None
        self._model: ModelInfo | None = None
        self._devices: Recent[str, list[frozenset[str]]] = Recent()
        self.counts = {"files": 0, "messages": 0, "refused": 0}
        self.full = ""
        """Why no more can be recorded; empty while more can."""
        self._writer = self._open()

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._writer.path

    def write(self, message: Message[Header], now_ns: int) -> None:
        """Record one message; SessionError if the disk does not take it."""
        if self._is_split_due(now_ns):
            self._writer.close()
            self._writer = self._open()
        self._note(message)
        try:
            self._writer.write(message)
            self.counts["messages"] += 1
        except MalformedMessageError as error:
            if not self.counts["refused"]:
                _LOG.warning("recorder: refused a message: %s; further ones are only counted", error)
            self.counts["refused"] += 1

    def tick(self, now_ns: int) -> None:
        """Write what is due, and look at the disk once a second."""
        self._writer.flush(now_ns)
        if now_ns >= self._next_look_ns:
            self._next_look_ns = now_ns + SECOND_NS
            free = self._free_bytes(self._out.absolute().parent)
            if free < self._config.min_free_mb * _MB:
                self.full = f"only {free / _MB:.0f} MB are free on the disk of {self.path}"

    def close(self, inputs: Mapping[str, Any] | None = None) -> None:
        """Close the file; `inputs` says by topic what was received and what was lost."""
        self._writer.add_metadata("recorded", {"inputs": inputs or {}, "stopped": self.full} | self.counts)
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()

    def _open(self) -> SessionWriter:
        splits = self._config.split_mb is not None or self._config.split_minutes is not None
        path, number = self._out, 0
        while splits or path.exists():
            path = self._out.with_stem(f"{self._out.stem}-{number:03d}")
            number += 1
            if not path.exists():
                break
        writer = SessionWriter(path)
        for name, value in self._metadata.items():
            writer.add_metadata(name, value)
        self.counts["files"] += 1
        self._split_ns = None
        return writer

    def _is_split_due(self, now_ns: int) -> bool:
        minutes, megabytes = self._config.split_minutes, self._config.split_mb
        if self._split_ns is None and minutes is not None:
            self._split_ns = now_ns + round(minutes * 60 * SECOND_NS)
        late = self._split_ns is not None and now_ns >= self._split_ns
        return late or (megabytes is not None and self._writer.bytes_written >= megabytes * _MB)

    def _note(self, message: Message[Header]) -> None:
        """Keep what models and devices say of themselves with the metadata of this file and later ones.

        Of a model, other weights under the same configuration are another entry: a head that was swapped in.
        """
        header = message.header
        if isinstance(header, FusedState):
            if header.model != self._model:
                self._model = header.model
                self._keep(*model_note(header, self._metadata))
        elif isinstance(header, Health) and header.device:
            self._note_device(header.node, header.device)

    def _note_device(self, node: str, device: Mapping[str, str | float]) -> None:
        """Keep what a device is; where its words are others, not its figures, another one has come."""
        words = frozenset(f"{key} {value}" for key, value in device.items() if isinstance(value, str))
        known = self._devices.renewed(node, [])
        if words not in known and len(known) < _MAX_DEVICES:
            known.append(words)
            self._keep(f"device {node}" + (f" {len(known)}" if known[1:] else ""), dict(device))

    def _keep(self, name: str, value: dict[str, Any]) -> None:
        if name not in self._metadata and len(self._metadata) >= MAX_NAMES:
            self.counts["notes_left_out"] = self.counts.get("notes_left_out", 0) + 1
        elif name not in self._metadata:
            self._metadata[name] = value
            self._writer.add_metadata(name, value)


def model_note(state: FusedState, noted: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and value of what is noted of the model that a state is of."""
    name, value = f"{MODEL} {state.model.config_hash[:12]}", structs.asdict(state.model)
    if noted.get(name, value) == value:
        return name, value
    return f"{name} {state.model.weights_hash[:12]}", value | {"from_tick": state.tick}


def describe(profile: Profile | None, anchor_ns: int) -> dict[str, Any]:
    """Return what every session file begins with, as JSON values.

    Args:
        profile: that is recorded, None if the graph was started by somebody else.
        anchor_ns: host time at CLOCK_MONOTONIC zero.
    """
    packages = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    host = platform.uname()
    notes: dict[str, Any] = {
        "packages": packages | {"python": platform.python_version()},
        "clock": {"anchor_ns": anchor_ns, "began": datetime.now(UTC).isoformat()},
        "host": {"name": host.node, "system": f"{host.system} {host.release}", "machine": host.machine},
    }
    return notes if profile is None else {"profile": cleaned(profile.model_dump(mode="json"))} | notes


def record(
    subscriber: Subscriber,
    recorder: Recorder,
    *,
    clock: Callable[[], int],
    stopped: Callable[[], bool],
    linger_s: float = 0.0,
    report: Callable[[], None] = lambda: None,
) -> None:
    """Record until stopped, or until the disk is nearly full, and close the file.

    Args:
        subscriber: opened with `EVERY_MESSAGE`.
        recorder: where everything goes.
        clock: host time in ns.
        stopped: whether to come to an end.
        linger_s: how long to wait after that for nodes that still say their last; silence ends it sooner.
        report: called once a second.

    Raises:
        SessionError: the disk does not take what was received.
    """
    next_report_ns = clock()

    def step(timeout_s: float) -> bool:
        nonlocal next_report_ns
        message = subscriber.receive(timeout_s)
        now_ns = clock()
        if message is not None:
            recorder.write(message, now_ns)
        recorder.tick(now_ns)
        if now_ns >= next_report_ns:
            next_report_ns = now_ns + SECOND_NS
            report()
        return message is not None

    while not (stopped() or recorder.full):
        step(_RECEIVE_S)
    # What was sent before is under way yet: no moment of silence is its end.
    last_s = max(linger_s, _QUEUED_S)
    end_ns = clock() + round(last_s * 1e9)
    while not recorder.full and clock() < end_ns and step(min(last_s, _QUIET_S)):
        pass
    recorder.close({topic: structs.asdict(account) for topic, account in subscriber.health().items()})
