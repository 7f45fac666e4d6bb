"""`perception mark`: what it labels lies at the right seconds of the recording, however it is driven."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perception.bus.api import clock_now_ns, publish
from perception.bus.host import Runtime
from perception.bus.subscriber import Subscriber
from perception.cli.main import run
from perception.profile import RecorderConfig
from perception.session import Session
from perception.session.labels import Span, of_session
from perception.session.recorder import EVERY_MESSAGE, Recorder, describe, record
from perception.units import SECOND_NS
from tests.waiting import LONG_S, eventually

DOMAIN = "marked"


@contextmanager
def recorded(file: Path) -> Iterator[Recorder]:
    """Record everything said in the domain; the first message is there when the context begins."""
    stopped = threading.Event()
    with (
        Recorder(file, RecorderConfig(topics=("*",)), describe(None, 0)) as recorder,
        Subscriber("*", runtime=Runtime(DOMAIN), clock=clock_now_ns, policies=EVERY_MESSAGE) as subscriber,
    ):
        options = {"clock": clock_now_ns, "stopped": stopped.is_set}
        thread = threading.Thread(target=record, args=(subscriber, recorder), kwargs=options)
        thread.start()
        try:
            publish("text/say", domain=DOMAIN, text="begin")
            eventually(lambda: recorder.counts["messages"])
            yield recorder
        finally:
            stopped.set()
            thread.join()


def spans_of(file: Path) -> list[Span]:
    """The spans of label messages, in ns from the session's zero."""
    with Session(file) as session:
        zero_ns = session.zero.stamp_ns
    return [span.at(-zero_ns) for span in of_session(file) if span.track == "truth"]


def test_a_class_that_is_marked_for_seconds_begins_when_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.mcap"
    with recorded(file) as recorder:
        before_ns = clock_now_ns()
        assert run(["mark", "visitor", "--seconds", "0.25", "--domain", DOMAIN]) == 0
        after_ns = clock_now_ns()
        eventually(lambda: recorder.counts["messages"] >= 2)
    (span,) = spans_of(file)
    with Session(file) as session:
        zero_ns = session.zero.stamp_ns
    assert span.name == "visitor"
    assert before_ns <= span.start_ns + zero_ns <= after_ns - SECOND_NS // 4
    assert span.end_ns - span.start_ns == SECOND_NS // 4
    capsys.readouterr()
    assert run(["labels", str(file), "--track", "truth"]) == 0
    assert capsys.readouterr().out.split()[:4] == [
        f"{span.start_ns / 1e9:.3f}",
        f"{span.end_ns / 1e9:.3f}",
        "truth",
        "visitor",
    ]


def test_keys_from_a_pipe_mark_when_they_come(tmp_path: Path) -> None:
    file = tmp_path / "s.mcap"
    command = (sys.executable, "-m", "perception", "mark", "left", "right", "--domain", DOMAIN)
    with (
        recorded(file) as recorder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("1 left  2 right")
            moments_ns = []
            for keys, said in (("12", "left: "), (" ", "right: ")):
                moments_ns.append(clock_now_ns())
                process.stdin.write(keys)
                process.stdin.flush()
                assert process.stdout.readline().startswith(said)
            moments_ns.append(clock_now_ns())
            process.stdin.close()
            assert process.wait(LONG_S) == 0
            eventually(lambda: recorder.counts["messages"] >= 3)
        finally:
            process.kill()
    with Session(file) as session:
        zero_ns = session.zero.stamp_ns
    left, right = spans_of(file)
    assert [left.name, right.name] == ["left", "right"]
    assert moments_ns[0] <= left.start_ns + zero_ns < left.end_ns + zero_ns
    assert left.end_ns == right.start_ns
    assert right.start_ns + zero_ns <= moments_ns[1] <= right.end_ns + zero_ns <= moments_ns[2]


def test_a_mark_that_nobody_records_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mark", "visitor", "--seconds", "0.01", "--domain", DOMAIN]) == 1
    assert "no subscriber to label/mark; start a recorder" in capsys.readouterr().err
