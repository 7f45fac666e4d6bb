"""Open MCAP files, rosbag2 folders, db3 and ROS 1 bags of other programs through one interface, `Bag`.

Only the list of streams and the bytes of their messages are read from a bag, so that a damaged message, an
unreadable type or a missing end affects nothing else.
"""

import heapq
import re
import sqlite3
import tempfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, contextmanager
from glob import escape
from pathlib import Path
from typing import Final

import zstandard
from mcap.records import Channel, Schema

from perception.errors import SessionError
from perception.session.convert.bag import Bag, BagStream, Raw
from perception.session.file.mcap_file import McapFile
from perception.session.file.reader import holds_messages

SUFFIXES: Final = (".mcap", ".db3", ".bag")
_PACKED: Final = ".zstd"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
"""First bytes of a compressed message; CDR begins with the number of its representation."""
_LISTED: Final = re.compile(r"^\s*-\s+(\S+\.(?:mcap|db3)(?:\.zstd)?)\s*$", re.MULTILINE)
_BLOCK: Final = 1 << 20


@contextmanager
def opened(source: Path) -> Iterator[Bag]:
    """Open a file, or all files of a folder, as one bag; SessionError if none can be opened."""
    with ExitStack() as stack:
        parts: list[Bag] = []
        damage: list[str] = []
        for path in _files(source, damage):
            plain = path
            if path.suffix == _PACKED:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                plain = _decompressed(path, folder / path.stem, damage)
            try:
                parts.append(_part(plain, stack))
            except SessionError as error:
                damage.append(str(error))
        if not parts:
            raise SessionError("; ".join(damage))
        yield _Parts(parts, damage)


def _part(path: Path, stack: ExitStack) -> Bag:
    match path.suffix.lower():
        case ".db3":
            return stack.enter_context(closing(_Database(path)))
        case ".bag":
            from perception.session.convert.ros1_bag import Ros1Bag

            return stack.enter_context(closing(Ros1Bag(path)))
    return _Mcap(stack.enter_context(McapFile(path, take_cut=True)))


def _files(source: Path, damage: list[str]) -> list[Path]:
    if not source.exists():
        raise SessionError(f"cannot open {source}: no such file or folder")
    if not source.is_dir():
        return [source]
    found = {
        path.name: path
        for path in sorted(source.iterdir())
        if path.with_suffix("" if path.suffix == _PACKED else path.suffix).suffix.lower() in SUFFIXES
    }
    described = source / "metadata.yaml"
    if described.is_file():
        listed = [Path(name).name for name in _LISTED.findall(described.read_text("utf-8", "replace"))]
        damage += [f"{name}: listed in metadata.yaml, but missing" for name in listed if name not in found]
    if not found:
        raise SessionError(f"{source}: no {', '.join(SUFFIXES)} file in this folder")
    return list(found.values())


def _decompressed(path: Path, target: Path, damage: list[str]) -> Path:
    with path.open("rb") as packed, target.open("wb") as out:
        try:
            for block in zstandard.ZstdDecompressor().read_to_iter(packed, write_size=_BLOCK):
                out.write(block)
        except zstandard.ZstdError as error:
            damage.append(f"{path.name}: cannot be decompressed to its end: {error}")
    return target


class _Parts:
    """Merges the files of one bag in order of receipt."""

    def __init__(self, parts: list[Bag], damage: list[str]) -> None:
        self._parts = parts
        self._damage = damage
        self.streams = list(dict.fromkeys(stream for part in parts for stream in part.streams))

    @property
    def damage(self) -> list[str]:
        return self._damage + [text for part in self._parts for text in part.damage]

    @property
    def times_ns(self) -> tuple[int, int]:
        times = [part.times_ns for part in self._parts]
        return min(first for first, _ in times), max(last for _, last in times)

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        for time_ns, stream, data in heapq.merge(
            *(part.messages(streams) for part in self._parts), key=lambda raw: raw[0]
        ):
            if stream.encoding == "cdr" and data[: len(_ZSTD)] == _ZSTD:
                try:
                    data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
                except zstandard.ZstdError as error:
                    self._damage.append(f"{stream.topic}: a message cannot be decompressed: {error}")
                    continue
            yield time_ns, stream, data


class _Mcap:
    """An MCAP file that is not a session."""

    def __init__(self, file: McapFile) -> None:
        self._file = file
        declared = file.declared()
        if any(holds_messages(channel, declared) for channel in declared.channels.values()):
            raise SessionError(f"{file.path}: already a session; perception session trim copies parts of it")
        self._by_channel = {
            number: _described(channel, declared.schemas.get(channel.schema_id))
            for number, channel in declared.channels.items()
        }
        self.streams = list(self._by_channel.values())

    @property
    def damage(self) -> list[str]:
        return [f"{self._file.path.name}: {text}" for text in self._file.damage]

    @property
    def times_ns(self) -> tuple[int, int]:
        return self._file.times_ns or (0, 0)

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        wanted = {number for number, stream in self._by_channel.items() if stream in streams}
        topics = {escape(self._by_channel[number].topic) for number in wanted}
        for record in self._file.records(tuple(topics)):
            if record.channel.id in wanted:
                yield record.log_time_ns, self._by_channel[record.channel.id], bytes(record.data)


def _described(channel: Channel, schema: Schema | None) -> BagStream:
    if schema is None:
        return BagStream(channel.topic, "", channel.message_encoding)
    definition = schema.data.decode("utf-8", "replace") if channel.message_encoding in ("cdr", "ros1") else ""
    return BagStream(channel.topic, schema.name, channel.message_encoding, definition, schema.encoding)


class _Database:
    """A db3 file of rosbag2; a truncated one is read as far as possible."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: list[str] = []
        # A journal beside it holds the newest messages of a recorder that was killed.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        try:
            self._base = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True)
            # Without this, SQLite refuses a file that is shorter than its header states.
            self._base.execute("PRAGMA writable_schema = ON")
            rows = self._base.execute("SELECT id, name, type, serialization_format FROM topics").fetchall()
        except sqlite3.Error as error:
            raise SessionError(f"{path}: not a rosbag that can be read: {error}") from error
        definitions = self._definitions()
        self._by_topic = {
            number: BagStream(topic, kind, encoding, *definitions.get(kind, ("", "")))
            for number, topic, kind, encoding in rows
        }
        self.streams = list(self._by_topic.values())

    def close(self) -> None:
        self._base.close()

    @property
    def times_ns(self) -> tuple[int, int]:
        times = [time_ns for _, time_ns, _ in self._rows("NULL")]
        return (min(times), max(times)) if times else (0, 0)

    def messages(self, streams: Collection[BagStream]) -> Iterator[Raw]:
        wanted = {number for number, stream in self._by_topic.items() if stream in streams}
        for number, time_ns, data in self._rows("data"):
            if number in wanted:
                yield time_ns, self._by_topic[number], data

    def _rows(self, column: str) -> Iterator[tuple[int, int, bytes]]:
        """Yield the messages in the order of writing, which is that of receipt."""
        query = f"SELECT topic_id, timestamp, {column} FROM messages NOT INDEXED ORDER BY id"
        try:
            yield from self._base.execute(query)
        except sqlite3.Error as error:
            text = f"{self._path.name}: cannot be read to its end: {error}"
            if text not in self.damage:
                self.damage.append(text)

    def _definitions(self) -> dict[str, tuple[str, str]]:
        try:
            return {
                kind: (text, encoding)
                for kind, text, encoding in self._base.execute(
                    "SELECT topic_type, encoded_message_definition, encoding FROM message_definitions"
                )
            }
        except sqlite3.Error:  # bags of earlier releases have none
            return {}
