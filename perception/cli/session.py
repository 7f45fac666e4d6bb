"""`perception session ...`. Each command imports what it needs when it runs."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from perception.cli.help import Group
from perception.cli.options import setting
from perception.cli.standard_streams import show
from perception.errors import SessionError, extras
from perception.io.out_path import OutFile, OutFolder

if TYPE_CHECKING:
    from perception.session.edit import Copied
    from perception.session.file.reader import Session

DIFFERENT: Final = 1
"""Exit code of `session diff` when there is a difference."""
_BAGS: Final = (".mcap", ".db3", ".bag", ".zstd")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_file = click.argument("file", type=click.Path(path_type=Path))
_target = click.argument("target", type=OutFile(SessionError, new=True))
_topics = click.option(
    "--topics",
    metavar="PATTERN",
    multiple=True,
    default=("*",),
    help="Only topics such as 'camera/*'; may be repeated. Default: all.",
)
_start = click.option(
    "--from",
    "start_s",
    metavar="S",
    type=float,
    help="Begin at this second; negative: counted from the end.",
)
_end = click.option(
    "--to", "end_s", metavar="S", type=float, help="End before this second; negative: counted from the end."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def _named(prefix: str) -> Callable[[FunctionT], FunctionT]:
    text = f"Import STREAM of SOURCE, or its next {prefix} stream, as {prefix}/NAME; may be repeated."
    return click.option(f"--{prefix}", metavar="[STREAM=]NAME", multiple=True, help=text)


@click.group(cls=Group)
@click.pass_context
def session(context: click.Context) -> None:
    """Inspect, cut, repair, compare and convert recorded sessions.

    No command overwrites a file. An output file needs an existing folder; an output folder is made with its
    parents.
    """
    # SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that incomplete outputs are removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # an ignored signal stays ignored, as under nohup
            signal.signal(number, signal.default_int_handler)
            context.call_on_close(partial(signal.signal, number, signal.SIG_DFL))


@session.command()
@_file
@_json
def info(file: Path, as_json: bool) -> int:
    """Show topics, rates, metadata and damage of FILE.

    FILE is a session, a bag or a folder of either.
    """
    from dataclasses import asdict

    from perception.session.info import look

    found, problems = look(file)
    if as_json:
        values = [asdict(one) for one in found]
        click.echo(json.dumps(values if file.is_dir() else values[0]))
    else:
        show(*(line for one in found for line in one.lines()))
    for text in problems:
        show(f"perception: {text}", err=True)
    return SessionError.exit_code if problems else 0


@session.command()
@_file
@_topics
@_start
@_end
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after N messages.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per message.")
def cat(
    file: Path,
    topics: tuple[str, ...],
    start_s: float | None,
    end_s: float | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Print the messages of FILE, one line each, in recorded order."""
    from itertools import islice

    from perception.cli import message_text
    from perception.session.file.reader import Session, available

    with Session(file) as opened:
        messages = opened.messages(topics, opened.at_ns(start_s), opened.at_ns(end_s))
        message = None
        for message in islice(messages, count):
            at_s = opened.zero.seconds(message.header.stamp_ns)
            if as_json:
                click.echo(message_text.as_json(message, at_s))
            else:
                show(message_text.as_line(message, message.received_ns, at_s))
        _show_damage(opened.damage)
        if message is None:
            raise SessionError(f"{file}: no such messages{available(opened, topics)}")


@session.command()
@_file
@_target
@_topics
@_start
@_end
def trim(
    file: Path, target: Path, topics: tuple[str, ...], start_s: float | None, end_s: float | None
) -> None:
    """Copy a part of FILE, by time and topic, to the new session TARGET."""
    from perception.session.edit import trim as cut

    copied = cut(file, target, topics, start_s, end_s)
    _show_copied(target, copied, f"; its zero is second {copied.begins_s:.3f} of {file}")


@session.command()
@_file
@_target
def repair(file: Path, target: Path) -> None:
    """Copy all that is intact in FILE to the new session TARGET, with an index."""
    from perception.session import edit

    _show_copied(target, edit.repair(file, target))


@session.command()
@click.argument("expected", type=click.Path(path_type=Path))
@click.argument("actual", type=click.Path(path_type=Path))
@_topics
@click.option("--measured", is_flag=True, help="Also compare measured times, which differ from run to run.")
@setting("--limit", "N", click.IntRange(min=1), 20, "Show at most N differences.")
def diff(expected: Path, actual: Path, topics: tuple[str, ...], measured: bool, limit: int) -> int:
    """Show where two sessions differ: topic, seq, field.

    Exit codes: 0 no difference, 1 different.
    """
    from itertools import islice

    from perception.io.progress import progress
    from perception.session.diff import diff as compare
    from perception.session.file.reader import Session, available

    with Session(expected) as one, Session(actual) as other:
        with progress("comparing") as advance:
            one.watch = other.watch = advance
            found = list(islice(compare(one, other, topics, measured=measured), limit + 1))
        if not found and next(one.messages(topics), None) is None:
            there = f"{available(one, topics)}; {actual}{available(other)}"
            raise SessionError(f"{expected}: no such messages, nothing to compare{there}")
        for divergence in found[:limit]:
            show(f"at {one.zero.seconds(divergence.stamp_ns):.3f} s: {divergence}")
        _show_damage([f"{opened.path}: {text}" for opened in (one, other) for text in opened.damage])
    if len(found) > limit:
        show(f"... and more; --limit {2 * limit} shows further ones")
    if not found:
        show("no difference")
    return DIFFERENT if found else 0


@session.command()
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.argument("target", type=OutFolder(SessionError, new=True))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["media", "webdataset", "lerobot", "rosbag2"]),
    default="media",
    show_default=True,
    help="media: MP4 per camera, FLAC or WAV per microphone, tables.",
)
@click.option(
    "--tables",
    type=click.Choice(["parquet", "csv"]),
    default="parquet",
    show_default=True,
    help="File type of the tables of media.",
)
@setting(
    "--rate rate_hz",
    "HZ",
    click.FloatRange(min=0.1, max=1000),
    10.0,
    "Samples per second of webdataset, frames per second of lerobot.",
)
@_topics
def export(
    files: tuple[Path, ...],
    target: Path,
    kind: str,
    tables: Literal["parquet", "csv"],
    rate_hz: float,
    topics: tuple[str, ...],
) -> None:
    """Convert sessions FILES into the new folder TARGET.

    Several sessions become the episodes of one dataset; only lerobot takes several.
    """
    from perception.io.beside import refuse_existing
    from perception.io.progress import progress
    from perception.session.file.reader import Session

    if len(files) > 1 and kind != "lerobot":
        raise SessionError(f"--format {kind} takes one session; --format lerobot makes episodes of several")
    refuse_existing(target)
    with ExitStack() as stack, extras():
        opened = [stack.enter_context(Session(file)) for file in files]
        with progress("exporting") as advance:
            for one in opened:
                one.watch = advance
            lines = list(_exported(opened, target, kind, tables, rate_hz, topics))
        for line in lines:
            show(line)
        _show_damage([f"{one.path}: {text}" for one in opened for text in one.damage])


def _exported(
    opened: "list[Session]",
    target: Path,
    kind: str,
    tables: Literal["parquet", "csv"],
    rate_hz: float,
    topics: tuple[str, ...],
) -> Iterator[str]:
    if kind == "media":
        from perception.session.convert import export_media

        return export_media.write(opened[0], target, topics, kind=tables)
    if kind == "webdataset":
        from perception.session.convert import export_webdataset

        return export_webdataset.write(opened[0], target, topics, rate_hz=rate_hz)
    if kind == "lerobot":
        from perception.session.convert import export_lerobot

        return export_lerobot.write_all(opened, target, topics, rate_hz=rate_hz)
    from perception.session.convert import rosbag

    return rosbag.write(opened[0], target, topics)


@session.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@_target
@click.option(
    "--subtitles",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="SRT, WebVTT or ASS file. Default: the one beside SOURCE with its name, else those in SOURCE.",
)
@_topics
@_start
@_end
@_named("camera")
@_named("microphone")
@_named("text")
@click.option(
    "--audio-rate",
    "audio_rate_hz",
    metavar="HZ",
    type=click.IntRange(min=1),
    help="Sample rate of sound that a bag does not describe; it is read as S16LE, mono.",
)
def import_(
    source: Path,
    target: Path,
    subtitles: Path | None,
    topics: tuple[str, ...],
    start_s: float | None,
    end_s: float | None,
    audio_rate_hz: int | None,
    **names: tuple[str, ...],
) -> None:
    """Convert SOURCE into the new session TARGET.

    SOURCE is a media file, or a file or folder that ROS 1, ROS 2 or Foxglove recorded.
    """
    from perception.session.convert.selection import Selection

    selection = Selection(topics, start_s, end_s, names)
    if source.is_dir() or source.suffix.lower() in _BAGS:
        with extras():
            from perception.session.convert import import_bag

            lines = import_bag.read(source, target, selection, audio_rate_hz)
    else:
        from perception.session.convert import import_media

        lines = import_media.read(source, target, subtitles, selection)
    for line in lines:
        show(line)


def _show_copied(target: Path, copied: "Copied", more: str = "") -> None:
    _show_damage(copied.damage)
    left_out = f"; left out: {', '.join(copied.left_out)}" if copied.left_out else ""
    show(f"{target}: {copied.messages} messages, {copied.bytes_written / 1e6:.1f} MB{left_out}{more}")


def _show_damage(damage: list[str]) -> None:
    for text in damage:
        show(f"perception: damage: {text}", err=True)
