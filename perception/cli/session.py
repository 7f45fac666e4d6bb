"""`perception session ...` and `perception record`. Each command imports what it needs when it runs."""

import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from perception.bus.domains import JOINED_DOMAIN
from perception.cli.help import Group
from perception.cli.standard_streams import show
from perception.errors import PerceptionError, SessionError, extras
from perception.io.out_path import OutFile, OutFolder

if TYPE_CHECKING:
    from perception.profile import RecorderConfig
    from perception.session.edit import Copied
    from perception.session.file.reader import Session

DIFFERENT: Final = 1
"""Exit code of `session diff` when there is a difference."""
_BAGS: Final = (".mcap", ".db3", ".bag", ".zstd")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
_above_zero: Final = click.FloatRange(min=0, min_open=True)
_file = click.argument("file", type=click.Path(path_type=Path))
_target = click.argument("target", type=OutFile(SessionError, new=True))
_topics = click.option(
    "--topics", metavar="PATTERN", multiple=True, default=("*",), help="Such as 'camera/*'; may be repeated."
)
_start = click.option("--from", "start_s", type=float, help="Seconds from its zero; negative: the end.")
_end = click.option("--to", "end_s", type=float, help="Likewise.")


def _named(prefix: str) -> Callable[[FunctionT], FunctionT]:
    text = f"Name of the next {prefix} stream of SOURCE, or of STREAM; may be repeated."
    return click.option(f"--{prefix}", metavar="[STREAM=]NAME", multiple=True, help=text)


@click.group(cls=Group)
@click.pass_context
def session(context: click.Context) -> None:
    """Look at, cut, repair, compare and convert recorded sessions.

    A file is written into a folder that is there; a folder is made, with what is missing of its path.
    """
    # Ended by whoever, a command leaves nothing half-made behind, as with Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # one that is ignored stays so, as under nohup
            signal.signal(number, signal.default_int_handler)
            context.call_on_close(partial(signal.signal, number, signal.SIG_DFL))


@session.command()
@_file
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(file: Path, as_json: bool) -> int:
    """Show what FILE holds: topics, rates, metadata, damage; or each session of a folder."""
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
@click.option("--count", type=click.IntRange(min=1), help="End after this many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per message.")
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

    from perception.cli import message_text as echo
    from perception.session.file.reader import Session, nothing_of

    with Session(file) as opened:
        messages = opened.messages(topics, opened.at_ns(start_s), opened.at_ns(end_s))
        message = None
        for message in islice(messages, count):
            at_s = opened.zero.seconds(message.header.stamp_ns)
            if as_json:
                click.echo(echo.as_json(message, at_s))
            else:
                show(echo.as_line(message, message.received_ns, at_s))
        _tell(opened.damage)
        if message is None:
            raise SessionError(f"{file}: no such messages{nothing_of(opened, topics)}")


@session.command()
@_file
@_target
@_topics
@_start
@_end
def trim(
    file: Path, target: Path, topics: tuple[str, ...], start_s: float | None, end_s: float | None
) -> None:
    """Write a part of FILE to TARGET."""
    from perception.session.edit import trim as cut

    copied = cut(file, target, topics, start_s, end_s)
    _say_copied(target, copied, f"; its zero is second {copied.begins_s:.3f} of {file}")


@session.command()
@_file
@_target
def repair(file: Path, target: Path) -> None:
    """Write what is intact in FILE to TARGET, with an index."""
    from perception.session.edit import repair as mend

    copied = mend(file, target)
    _say_copied(target, copied)


@session.command()
@click.argument("expected", type=click.Path(path_type=Path))
@click.argument("actual", type=click.Path(path_type=Path))
@_topics
@click.option("--measured", is_flag=True, help="Also compare fields that hold measured wall time.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Differences shown.")
def diff(expected: Path, actual: Path, topics: tuple[str, ...], measured: bool, limit: int) -> int:
    """Show where two sessions differ: topic, seq, field. Exits with 1 if they do."""
    from itertools import islice

    from perception.io.progress import progress
    from perception.session.diff import diff as compare
    from perception.session.file.reader import Session, nothing_of

    with Session(expected) as one, Session(actual) as other:
        with progress("comparing") as advance:
            one.watch = other.watch = advance
            found = list(islice(compare(one, other, topics, measured=measured), limit + 1))
        if not found and next(one.messages(topics), None) is None:
            there = f"{nothing_of(one, topics)}; {actual}{nothing_of(other)}"
            raise SessionError(f"{expected}: no such messages, nothing to compare{there}")
        for divergence in found[:limit]:
            show(f"at {one.zero.seconds(divergence.stamp_ns):.3f} s: {divergence}")
        _tell([f"{opened.path}: {text}" for opened in (one, other) for text in opened.damage])
    if len(found) > limit:
        show("... and more; --limit shows them")
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
    help="media: MP4, FLAC or WAV, and tables.",
)
@click.option("--tables", type=click.Choice(["parquet", "csv"]), default="parquet", help="Tables of media.")
@click.option(
    "--rate",
    "rate_hz",
    type=click.FloatRange(min=0.1, max=1000),
    default=10.0,
    show_default=True,
    help="Samples per second of webdataset and lerobot.",
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
    """Convert FILES into the new folder TARGET; several become the episodes of one lerobot dataset."""
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
        _tell([f"{one.path}: {text}" for one in opened for text in one.damage])


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
    "--subtitles", type=click.Path(path_type=Path), help="SRT file; default: one named like the video."
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
    type=click.IntRange(min=1),
    help="Hz of sound in a bag that nothing describes: S16LE, mono.",
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
    """Make the session TARGET of SOURCE: a media file, or what ROS or Foxglove recorded (file or folder)."""
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


@click.command()
@click.argument("profile", required=False)
@click.option("--out", type=OutFile(SessionError), required=True, help="File to write.")
@click.option("--seconds", type=_above_zero, help="Stop so long after the first state, or message.")
@click.option("--topics", metavar="PATTERN", multiple=True, help="Record what runs: '*', 'camera/*' ...")
@click.option("--split-mb", type=_above_zero, help="Begin another file at this size.")
@click.option("--split-minutes", type=_above_zero, help="Begin another file after this long.")
@click.option("--domain", metavar="NAME", help=f"Of the graph to launch. {JOINED_DOMAIN}")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="Override a profile key.")
def record(
    profile: str | None,
    out: Path,
    seconds: float | None,
    topics: tuple[str, ...],
    split_mb: float | None,
    split_minutes: float | None,
    domain: str | None,
    overrides: tuple[str, ...],
) -> int:
    """Launch PROFILE and record it; or, with --topics instead of PROFILE, record what runs already."""
    from perception.profile import RecorderConfig, as_override, parse

    if out.exists():
        raise SessionError(f"{out} exists; remove it or choose another name")
    if profile is None:
        if overrides:
            raise SessionError("--set changes a profile: give one to launch, or leave --set out")
        limits = {"split_mb": split_mb, "split_minutes": split_minutes}
        config = parse({"recorder": limits | {"topics": topics or ("*",)}}, where="record").recorder
        assert config is not None
        return _join(config, out, seconds, domain)
    from perception.cli.up import placed, run

    settings: dict[str, str | float | bool | list[str] | None] = {
        "record": True,
        "recorder.out": RecorderConfig.literally(str(out)),
        "recorder.topics": list(topics) or None,
        "recorder.split_mb": split_mb,
        "recorder.split_minutes": split_minutes,
    }
    given = (as_override(key, value) for key, value in settings.items() if value is not None)
    return run(profile, placed((*overrides, *given), domain), seconds=seconds, json_file=None)


def _join(config: "RecorderConfig", out: Path, seconds: float | None, domain: str | None) -> int:
    import time

    from perception.bus import domains
    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli.up import stop_requests
    from perception.io.progress import progress
    from perception.session.recorder import EVERY_MESSAGE, Recorder, describe
    from perception.session.recorder import record as run

    clock, runtime = HostClock(), domains.find(domain)
    limit_s = seconds or float("inf")
    end_s, heard = time.monotonic() + limit_s, False

    def ended() -> bool:
        """The seconds count from the first message; without any they are how long one is waited for."""
        nonlocal end_s, heard
        if recorder.counts["messages"] and not heard:
            end_s, heard = time.monotonic() + limit_s, True
        return bool(requests) or time.monotonic() >= end_s

    with (
        stop_requests() as requests,
        Recorder(out, config, describe(None, clock.to_host_ns(0))) as recorder,
        Subscriber(*config.topics, runtime=runtime, clock=clock.now_ns, policies=EVERY_MESSAGE) as subscriber,
    ):
        show(f"recording {', '.join(config.topics)} to {recorder.path}; Ctrl-C ends it", err=True)
        if runtime is None:
            show(f"perception: {domains.NONE_UP}; waiting for one", err=True)
        with progress("recording") as advance:
            said = Counter[str]()

            def report() -> None:
                advance(recorder.counts["messages"] - said["messages"])
                said["messages"] = recorder.counts["messages"]

            run(
                subscriber,
                recorder,
                clock=clock.now_ns,
                stopped=ended,
                report=report,
            )
        accounts = subscriber.health()
    if not recorder.counts["messages"]:
        recorder.path.unlink()
        nobody = f"nobody published {', '.join(config.topics)}"
        if runtime is None:
            raise PerceptionError(f"{nobody}: {domains.NONE_UP}")
        raise PerceptionError(f"{nobody} in domain '{runtime.domain}'; perception nodes shows who is alive")
    lost = sum(account.lost + sum(account.dropped.values()) for account in accounts.values())
    show(f"{recorder.path}: {recorder.counts['messages']} messages of {len(accounts)} topics, {lost} lost")
    if recorder.full:
        raise SessionError(f"recording stopped: {recorder.full}")
    return 0


def _say_copied(target: Path, copied: "Copied", more: str = "") -> None:
    _tell(copied.damage)
    left_out = f"; left out: {', '.join(copied.left_out)}" if copied.left_out else ""
    show(f"{target}: {copied.messages} messages, {copied.bytes_written / 1e6:.1f} MB{left_out}{more}")


def _tell(damage: list[str]) -> None:
    for text in damage:
        show(f"perception: damage: {text}", err=True)
