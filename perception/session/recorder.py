"""Record a running graph to one file or several, until a stop is requested or the disk is nearly full.

Rules. One thread, that of `record`, uses a `Recorder` and its `SessionWriter`; the subscriber's own thread
only fills the inbox. Every topic is read with policy `queue` (`EVERY_MESSAGE`), so that a stall of the disk
delays messages instead of replacing them; what exceeds the depth is counted in the metadata `recorded`.
`tick` is called after every receive, at least every 0.1 s: it writes chunks that are due and checks the disk
once a second. Every exit path closes the file: `close` with the counts, else the context manager.
"""

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

import numpy  # noqa: F401  # imported now, since an import at the first frame would delay the next ones
from msgspec import structs

from perception import topics
from perception.bus.subscriber import Subscriber
from perception.errors import DISTRIBUTION, MalformedMessageError
from perception.errors.credentials import cleaned
from perception.messages import PROCESS, FusedState, Header, Health, Message, ModelInfo, is_supervisor
from perception.profile import Profile, RecorderConfig
from perception.session.file.writer import SessionWriter
from perception.units import SECOND_NS
from perception.units.bounded import MAX_NAMES, Recent

_LOG: Final = logging.getLogger(__name__)
# Depth of topics that are otherwise not queued: a second or more of messages, while the disk stalls.
_DEPTH: Final = {"camera": 64, "state": 256, "health": 256}
EVERY_MESSAGE: Final = {
    prefix: replace(row, policy="queue", depth=_DEPTH.get(prefix, row.depth))
    for prefix, row in topics.TOPICS.items()
}
"""Policies that never replace a message by a newer one: for `Subscriber(policies=...)`."""
MODEL: Final = "model"
"""First word of the name of metadata on a model; the second is the hash of its configuration."""
_PACKAGES: Final = (
    DISTRIBUTION, "numpy", "opencv-python", "torch", "torchvision", "torchaudio", "transformers", "mcap",
)  # fmt: skip
_MAX_DEVICES: Final = 16
"""Most entries on devices of one node."""
_RECEIVE_S: Final = 0.1
_QUIET_S: Final = 0.3
_QUEUED_S: Final = 0.2
_MB: Final = 1_000_000


class Recorder:
    """Writes messages to session files; uses no socket.

    Args:
        out: the file to write; a number is added to its name if it exists or the recording is split.
        config: when to split, and how much of the disk to leave free.
        metadata: JSON values at the beginning of every file.
        free_bytes: returns the free space on the disk of a folder.

    Raises:
        SessionError: the file cannot be created.
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
        self._next_check_ns = 0
        self._split_ns: int | None = None
        self._model: ModelInfo | None = None
        self._devices: Recent[str, list[frozenset[str]]] = Recent()
        self._conditions: Recent[str, int] = Recent()
        """States of this file by input and its condition."""
        self.counts = {"files": 0, "messages": 0, "refused": 0}
        self.full = ""
        """Why recording must stop; empty while it may continue."""
        self._writer = self._open()

    @property
    def path(self) -> Path:
        """The file that is being written."""
        return self._writer.path

    def write(self, message: Message[Header], now_ns: int) -> None:
        """Record one message; SessionError if it cannot be written."""
        if self._is_split_due(now_ns):
            self._close_writer()
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
        """Write the chunks that are due, and check the free space once a second."""
        self._writer.flush(now_ns)
        if now_ns >= self._next_check_ns:
            self._next_check_ns = now_ns + SECOND_NS
            free = self._free_bytes(self._out.absolute().parent)
            if free < self._config.min_free_mb * _MB:
                self.full = f"only {free / _MB:.0f} MB are free on the disk of {self.path}"

    def close(self, inputs: Mapping[str, Any] | None = None) -> None:
        """Close the file; `inputs` holds by topic the numbers of received and lost messages."""
        self._writer.add_metadata("recorded", {"inputs": inputs or {}, "stopped": self.full} | self.counts)
        self._close_writer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._writer.close()

    def _close_writer(self) -> None:
        if self._conditions:
            self._writer.add_metadata("conditions", dict(sorted(self._conditions.items())))
            self._conditions.clear()
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
        """Add models and devices to the metadata of this file and later ones.

        Other weights with the same configuration are another entry: a head that was swapped in.
        """
        header = message.header
        if isinstance(header, FusedState):
            for name, item in header.modalities.items():
                if item.condition:
                    key = f"{name} {item.condition}"
                    self._conditions[key] = self._conditions.get(key, 0) + 1
            if header.model != self._model:
                self._model = header.model
                self._keep(*model_note(header, self._metadata))
        elif isinstance(header, Health) and not is_supervisor(header.node):
            facts = {name: value for name, value in header.device.items() if name != PROCESS}
            if facts:
                self._note_device(header.node, facts)

    def _note_device(self, node: str, device: Mapping[str, str | float]) -> None:
        """Add a device; if its text values have changed, it is another device and gets another entry."""
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
    """Return name and value of the metadata on the model of a state; `noted` is the present metadata."""
    name, value = f"{MODEL} {state.model.config_hash[:12]}", structs.asdict(state.model)
    if noted.get(name, value) == value:
        return name, value
    return f"{name} {state.model.weights_hash[:12]}", value | {"from_tick": state.tick}


def describe(profile: Profile | None, anchor_ns: int) -> dict[str, Any]:
    """Return the metadata at the beginning of every session file, as JSON values.

    Args:
        profile: of the graph, None if another program started it.
        anchor_ns: host time when the host was started.
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
        recorder: writes the messages.
        clock: host time in ns.
        stopped: whether to stop.
        linger_s: how long to wait after that for the last messages of nodes; 0.3 s without a message ends it.
        report: called once a second.

    Raises:
        SessionError: a message cannot be written.
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
    # Messages sent before the stop may still arrive after a pause: one quiet receive is not the end.
    last_s = max(linger_s, _QUEUED_S)
    end_ns = clock() + round(last_s * 1e9)
    while not recorder.full and clock() < end_ns and step(min(last_s, _QUIET_S)):
        pass
    recorder.close({topic: structs.asdict(account) for topic, account in subscriber.health().items()})
