"""`perception up` with real nodes: it ends when it should, and leaves nothing behind."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from perception.bus.host import HostClock, Runtime
from perception.bus.subscriber import Subscriber
from perception.cli.main import run
from perception.cli.watch import Countdown
from perception.errors import DeviceError
from perception.graph import processes
from perception.messages import Health, Message, TextCommand
from tests.waiting import LONG_S, eventually

SCRIPTED = "domain = 'test'\n[text.script]\nsource = 'scripted'\n"
FUSED = (
    "domain = 'test'\n[camera.front]\nsource = 'scripted'\n"
    "[fusion]\nhead = { classes = ['a', 'b'] }\n"
    "inputs = { camera = { topic = 'camera/front' } }\n"
    "encoders = { motion = { input = 'camera', kind = 'motion' } }\n"
)


WITH_TERMINAL = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])",
)
"""Runs a command in a session of its own, whose terminal is its standard input."""


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """A graph of one small node that runs until it is stopped."""
    file = tmp_path / "graph.toml"
    file.write_text(SCRIPTED)
    return file


@contextmanager
def up(profile: Path, *options: str) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "perception", "up", str(profile), *options]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=LONG_S)


def publisher_of(topic: str, other_than: int = 0) -> int:
    """Wait until a process publishes a topic; return its id."""
    path = Runtime("test").socket_path(topic)
    lock = path.with_name(f".{path.name}.lock")
    found = other_than

    def published() -> bool:
        nonlocal found
        if topic in Runtime("test").topics():
            with suppress(FileNotFoundError, ValueError):
                found = int(lock.read_text())
        return found != other_than

    eventually(published)
    return found


def working(accounts: Subscriber) -> str:
    """Return who says next that it works."""
    message = accounts.receive(LONG_S)
    assert message is not None
    return message.header.source


def left_behind(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")} - {".clock"}


def test_ctrl_c_stops_everything_within_five_seconds_and_leaves_nothing(
    profile: Path, runtime_directory: Path
) -> None:
    with up(profile) as graph:
        node = publisher_of("text/script")
        begun_s = time.monotonic()
        graph.send_signal(signal.SIGINT)
        output, _ = graph.communicate(timeout=LONG_S)
    assert time.monotonic() - begun_s < 5.0
    assert graph.returncode == 130
    assert "ticks: no state was published" in output
    assert left_behind(runtime_directory) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(node, 0)


def test_it_ends_after_the_seconds_asked_for_and_writes_its_summary(profile: Path) -> None:
    summary = profile.with_suffix(".json")
    with up(profile, "--seconds", "0.5", "--json", str(summary)) as graph:
        graph.communicate(timeout=LONG_S)
    assert graph.returncode == 0
    assert json.loads(summary.read_text())["ticks"]["due"] == 0


def test_the_seconds_asked_for_begin_with_the_first_state(profile: Path) -> None:
    profile.write_text(FUSED)
    summary = profile.with_suffix(".json")
    with up(profile, "--seconds", "1", "--json", str(summary)) as graph:
        output, _ = graph.communicate(timeout=LONG_S)
    assert graph.returncode == 0
    assert re.search(r"^fusion: loading models, \d+ s", output, re.MULTILINE)
    assert json.loads(summary.read_text())["ticks"]["due"] >= 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fusion_that_published_no_state_is_an_exit_code_of_its_own(
    profile: Path, number: signal.Signals
) -> None:
    profile.write_text(FUSED)
    with up(profile) as graph:
        publisher_of("state/fused")
        graph.send_signal(number)
        _, error = graph.communicate(timeout=LONG_S)
    assert graph.returncode == 8
    assert "perception: the fusion published no state in " in error
    assert " s: it was loading models, " in error


def test_a_run_without_a_fusion_counts_from_the_first_message_of_a_device() -> None:
    countdown = Countdown(10.0, fused=False)
    countdown.add(Message("health/recorder", Health(stamp_ns=0, node="recorder")), 50.0)
    assert not countdown.over(1e6)
    countdown.add(Message("health/text-a", Health(stamp_ns=0, node="text-a")), 100.0)
    countdown.add(Message("text/a", TextCommand(stamp_ns=0, text="hello")), 105.0)
    assert not countdown.over(109.9)
    assert countdown.over(110.0)


def test_a_run_with_a_fusion_counts_from_its_first_state_or_failure() -> None:
    countdown = Countdown(10.0, fused=True)
    countdown.add(Message("health/fusion", Health(stamp_ns=0, node="fusion")), 50.0)
    assert not countdown.over(1e6)
    countdown.begin(60.0)
    assert countdown.over(70.0)
    assert not Countdown(None, fused=False).over(1e6)


def test_a_run_whose_devices_are_not_there_ends_as_well(profile: Path) -> None:
    profile.write_text("domain = 'test'\n[camera.a]\nsource = '/dev/no-camera'\n")
    assert run(["up", str(profile), "--seconds", "0.2"]) == DeviceError.exit_code


def test_a_hang_up_ends_it_as_it_should_be_and_its_summary_is_written(profile: Path) -> None:
    """The terminal is gone: nothing can be shown any more."""
    profile.write_text("domain = 'test'\n[text.typed]\nsource = 'terminal'\n")
    summary = profile.with_suffix(".json")
    ours, theirs = pty.openpty()
    command = [*WITH_TERMINAL, sys.executable, "-m", "perception", "up", str(profile), "--json", str(summary)]
    graph = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    node = publisher_of("text/typed")
    shown = b""
    while b"typed" not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    assert graph.wait(LONG_S) == 0
    assert json.loads(summary.read_text())["ticks"]["due"] == 0
    with pytest.raises(ProcessLookupError):
        os.kill(node, 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_keep_it_from_running_and_summing_up(profile: Path, closed: str) -> None:
    summary = profile.with_suffix(".json")
    command = f"{sys.executable} -m perception up {profile} --seconds 0.2 --json {summary} {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=LONG_S, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(summary.read_text())["ticks"]["due"] == 0
    assert "Traceback" not in done.stderr
    if closed == ">&-":
        assert "ticks: no state was published" in done.stderr
    if closed == "2>&-":
        assert "ticks: no state was published" in done.stdout


def test_a_reader_of_its_output_that_goes_ends_it(profile: Path) -> None:
    summary = profile.with_suffix(".json")
    with up(profile, "--json", str(summary)) as graph:
        assert graph.stdout is not None
        graph.stdout.readline()
        graph.stdout.close()
        graph.stdout = None
        assert graph.wait(LONG_S) == 141
        assert graph.stderr is not None
        assert "Traceback" not in graph.stderr.read()
    assert json.loads(summary.read_text())["ticks"]["due"] == 0


def test_it_ends_by_itself_when_its_files_have(profile: Path) -> None:
    lines = profile.with_suffix(".txt")
    lines.write_text("0.01\thello\n")
    with up(profile, "--set", f"text.script.source='{lines}'") as graph:
        graph.communicate(timeout=LONG_S)
    assert graph.returncode == 0


def test_a_domain_that_is_up_is_not_started_again(profile: Path) -> None:
    with up(profile) as first:
        publisher_of("text/script")
        with up(profile) as second:
            _, error = second.communicate(timeout=LONG_S)
        assert second.returncode == 1
        assert error == (
            f"perception: domain 'test' is already up (process {first.pid}): stop it, or use --domain NAME\n"
        )
        with up(profile, "--domain", "other", "--seconds", "0.2") as other:
            other.communicate(timeout=LONG_S)
        assert other.returncode == 0


def test_a_killed_node_comes_back_under_its_topic(profile: Path) -> None:
    with (
        up(profile) as graph,
        Subscriber("health/*", runtime=Runtime("test"), clock=HostClock().now_ns) as accounts,
    ):
        first = working(accounts)
        before = publisher_of("text/script")
        os.kill(before, signal.SIGKILL)
        publisher_of("text/script", other_than=before)
        while working(accounts) == first:
            pass
        graph.send_signal(signal.SIGTERM)
        _, error = graph.communicate(timeout=LONG_S)
    assert "text-script | ended with SIGKILL; restarts in 0.5 s" in error
    assert graph.returncode == 0


def test_a_line_typed_into_the_terminal_reaches_the_graph(profile: Path) -> None:
    profile.write_text("domain = 'test'\n[text.typed]\nsource = 'terminal'\n")
    with (
        up(profile) as graph,
        Subscriber("text/*", runtime=Runtime("test"), clock=HostClock().now_ns) as subscriber,
    ):
        assert graph.stdin is not None
        while (message := subscriber.receive(0.2)) is None:  # typed again until somebody was there to hear
            graph.stdin.write("come here\n")
            graph.stdin.flush()
    assert isinstance(message.header, TextCommand)
    assert message.header.text == "come here"


def test_a_device_that_is_not_there_is_the_exit_code(profile: Path) -> None:
    profile.write_text("domain = 'test'\n[camera.front]\nsource = 97\n")
    with up(profile) as graph:
        assert graph.stderr is not None
        said, *_, restarts = (graph.stderr.readline() for _ in range(6))
        graph.send_signal(signal.SIGINT)  # while the node is down, which it now is for 2 s
        graph.communicate(timeout=LONG_S)
    assert said.startswith("camera-front | perception: ")
    assert "/dev/video97" in said
    assert restarts == "camera-front | ended with exit code 3; restarts in 2 s\n"
    assert graph.returncode == 3


def test_a_file_that_cannot_be_read_is_not_tried_again(profile: Path) -> None:
    lines = profile.with_suffix(".txt")
    lines.write_text("no number\thello\n")
    with up(profile, "--set", f"text.script.source='{lines}'") as graph:
        _, error = graph.communicate(timeout=LONG_S)
    assert graph.returncode == 3
    assert error.count("text-script | perception: ") == 1
    assert "text-script | ended with exit code 3, which a restart cannot repair; the others run on" in error


def test_a_file_that_is_not_there_is_said_before_anything_starts(profile: Path) -> None:
    with up(profile, "--set", "text.script.source=nowhere.txt") as graph:
        output, error = graph.communicate(timeout=LONG_S)
    assert (graph.returncode, output, error.count("\n")) == (3, "", 1)
    assert "text.script.source: nowhere.txt: no such file" in error


@pytest.mark.parametrize("fault", [None, signal.SIGSTOP, signal.SIGKILL], ids=["runs", "hangs", "killed"])
def test_down_stops_a_graph_from_elsewhere_whatever_its_launcher_does(
    profile: Path, runtime_directory: Path, fault: signal.Signals | None, capsys: pytest.CaptureFixture[str]
) -> None:
    profile.write_text(SCRIPTED + "[camera.front]\nsource = 'scripted'\nwidth = 64\nheight = 48\n")
    with up(profile) as graph:
        pids = [publisher_of("text/script"), publisher_of("camera/front")]
        if fault is not None:
            os.kill(graph.pid, fault)
        if fault == signal.SIGKILL:
            graph.wait(LONG_S)
            assert run(["down"]) in (0, 1)  # the nodes may have ended with their launcher by now
        else:
            assert run(["down"]) == 0
            assert graph.wait(LONG_S) == 0
        eventually(lambda: not any(map(processes.runs, pids)))
    assert left_behind(runtime_directory) == set()
    capsys.readouterr()
    assert run(["down", "--domain", "test"]) == 1
    assert "no graph is up in domain 'test'" in capsys.readouterr().err
