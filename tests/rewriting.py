"""Sessions that the writer of `mcap` wrote again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcap.reader import make_reader
from mcap.records import Channel, Message, Schema
from mcap.writer import Writer

Triple = tuple[Schema, Channel, Message]


def taken_apart(path: Path) -> list[Triple]:
    with path.open("rb") as file:
        return [
            (schema, channel, message)
            for schema, channel, message in make_reader(file).iter_messages()
            if schema is not None
        ]


def rewritten(
    path: Path,
    target: Path,
    order: Callable[[Triple], Any] | None = None,
    *,
    keep: bool = True,
    **options: Any,
) -> Path:
    """A copy by the writer of `mcap`, with an attachment; without the metadata of channels unless `keep`."""
    given = taken_apart(path)
    schemas: dict[int, int] = {}
    channels: dict[int, int] = {}
    with path.open("rb") as file, target.open("wb") as out:
        writer = Writer(out, **options)
        writer.start()
        writer.add_attachment(0, 0, "notes.txt", "text/plain", b"\x06" * 100)
        for record in make_reader(file).iter_metadata():
            writer.add_metadata(record.name, record.metadata)
        writer.add_metadata("of another program", {"key": "value"})
        for schema, channel, message in given if order is None else sorted(given, key=order):
            if schema.id not in schemas:
                schemas[schema.id] = writer.register_schema(schema.name, schema.encoding, schema.data)
            if channel.id not in channels:
                channels[channel.id] = writer.register_channel(
                    channel.topic,
                    channel.message_encoding,
                    schemas[schema.id],
                    dict(channel.metadata) if keep else {},
                )
            writer.add_message(
                channels[channel.id], message.log_time, message.data, message.publish_time, message.sequence
            )
        writer.finish()  # type: ignore[no-untyped-call]
    return target
