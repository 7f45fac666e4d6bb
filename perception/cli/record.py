"""`perception record`: launch a graph and record it, or record one that runs."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from perception.cli.options import connecting, overriding, run_seconds, session_out, this_host
from perception.cli.standard_streams import show
from perception.errors import PerceptionError, SessionError

if TYPE_CHECKING:
    from perception.cli.connect import Source
    from perception.messages import InputHealth
    from perception.profile import RecorderConfig
    from perception.session.recorder import Recorder

_ABOVE_ZERO: Final = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("profile", required=False)
@session_out
@run_seconds
@click.option(
    "--topics",
    metavar="PATTERN",
    multiple=True,
    help="Record only topics such as 'camera/*'; may be repeated. Without PROFILE: of the graph that runs.",
)
@click.option("--split-mb", metavar="MB", type=_ABOVE_ZERO, help="Begin the next file at this size.")
@click.option("--split-minutes", metavar="MIN", type=_ABOVE_ZERO, help="Begin the next file after this time.")
@click.option(
    "--domain",
    metavar="NAME",
    help="Domain of the graph. Default: $PERCEPTION_DOMAIN, else the profile's own; "
    "without PROFILE the only graph that is up.",
)
@connecting
@this_host
@overriding("the profile")
def record(
    profile: str | None,
    out: Path,
    seconds: float | None,
    topics: tuple[str, ...],
    split_mb: float | None,
    split_minutes: float | None,
    domain: str | None,
    overrides: tuple[str, ...],
    host: str | None,
    connect: str | None,
    keys: str | None,
    insecure: bool,
) -> int:
    """Launch PROFILE and record it, or record a running graph with --topics, on another host with --connect.

    Ctrl-C ends the recording and closes the file.
    """
    from perception.cli.connect import source_of
    from perception.profile import RecorderConfig, as_override, parse

    if out.exists():
        raise SessionError(f"{out} exists; remove it or choose another name")
    if profile is None:
        if overrides or host:
            raise SessionError("--set and --host are for a profile: give one to launch, or leave them out")
        limits = {"split_mb": split_mb, "split_minutes": split_minutes}
        config = parse({"recorder": limits | {"topics": topics or ("*",)}}, where="record").recorder
        assert config is not None
        source = source_of(config.topics, domain, connect, keys, insecure=insecure)
        return _join(config, out, seconds, source)
    if connect is not None:
        raise SessionError("--connect records the graph of another host: leave PROFILE out")
    from perception.cli.up import run, with_domain, with_host

    settings: dict[str, str | float | bool | list[str] | None] = {
        "record": True,
        "recorder.out": RecorderConfig.literally(str(out)),
        "recorder.topics": list(topics) or None,
        "recorder.split_mb": split_mb,
        "recorder.split_minutes": split_minutes,
    }
    given = (as_override(key, value) for key, value in settings.items() if value is not None)
    settled = with_host(with_domain((*overrides, *given), domain), host)
    return run(profile, settled, seconds=seconds, json_file=None)


def _join(config: "RecorderConfig", out: Path, seconds: float | None, source: "Source") -> int:
    """Record a graph that runs, or the first one that comes up; return the exit code."""
    from perception.bus import domains
    from perception.bus.host import HostClock
    from perception.bus.subscriber import Subscriber
    from perception.cli.up import stop_requests
    from perception.io.progress import progress
    from perception.session.recorder import EVERY_MESSAGE, Recorder, describe
    from perception.session.recorder import record as run

    clock, runtime = HostClock(), source.runtime
    with (
        stop_requests() as requests,
        Recorder(out, config, describe(None, clock.anchor_ns)) as recorder,
        Subscriber(
            *source.topics, clock=clock.now_ns, policies=EVERY_MESSAGE, **source.options
        ) as subscriber,
    ):
        show(f"recording {', '.join(config.topics)} to {recorder.path}; Ctrl-C stops", err=True)
        if runtime is None:
            show(f"perception: {domains.NONE_UP}; waiting for one", err=True)
        with progress("recording") as advance:
            stopped, report = _stop_condition(requests, recorder, seconds), _progress_of(recorder, advance)
            run(subscriber, recorder, clock=clock.now_ns, stopped=stopped, report=report)
        inputs = subscriber.health()
    if not recorder.counts["messages"] and not recorder.full:
        recorder.path.unlink()
        nothing = f"received no message of {', '.join(config.topics)}"
        if runtime is None:
            raise PerceptionError(f"{nothing}: {domains.NONE_UP}")
        where = source.host or f"domain '{runtime.domain}'"
        raise PerceptionError(f"{nothing} in {where}; perception nodes lists the live nodes")
    _show_totals(recorder, inputs)
    return 0


def _stop_condition(
    requests: Sequence[int], recorder: "Recorder", seconds: float | None
) -> Callable[[], bool]:
    """Return a function: whether to stop, by request, or `seconds` after the first message or without one."""
    limit_s = seconds or math.inf
    end_s, received = time.monotonic() + limit_s, False

    def stopped() -> bool:
        nonlocal end_s, received
        if recorder.counts["messages"] and not received:
            end_s, received = time.monotonic() + limit_s, True
        return bool(requests) or time.monotonic() >= end_s

    return stopped


def _progress_of(recorder: "Recorder", advance: Callable[[int], object]) -> Callable[[], None]:
    """Return what shows the messages recorded since its last call."""
    shown = 0

    def report() -> None:
        nonlocal shown
        advance(recorder.counts["messages"] - shown)
        shown = recorder.counts["messages"]

    return report


def _show_totals(recorder: "Recorder", inputs: "Mapping[str, InputHealth]") -> None:
    lost = sum(one.lost + sum(one.dropped.values()) for one in inputs.values())
    show(f"{recorder.path}: {recorder.counts['messages']} messages of {len(inputs)} topics, {lost} lost")
    if recorder.full:
        raise SessionError(f"recording stopped: {recorder.full}")
