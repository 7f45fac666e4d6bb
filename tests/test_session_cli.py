"""`perception session` and `perception record` from the user's side."""

import json
import signal
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.cli.record import record
from perception.cli.session import session
from perception.errors import PerceptionError, ProfileError, SessionError
from perception.messages import TextCommand
from perception.session import Session, SessionWriter
from perception.units import SECOND_NS
from tests import streams
from tests.waiting import LONG_S


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "s.mcap"
    write(path)
    return path


def write(path: Path, label: str = "hello") -> None:
    sources = [streams.camera_stream(2), streams.microphone_stream(2)]
    with SessionWriter(path) as writer:
        for message in streams.arrivals(sources, lambda message: 0):
            writer.write(message)
        writer.write(streams.text(0, streams.START_NS + 3 * SECOND_NS, label))


def invoke(command: click.Command, *arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(
        command, [str(argument) for argument in arguments], standalone_mode=False, catch_exceptions=False
    )
    assert (result.return_value or 0) == code
    return result


def test_info_for_people_and_for_programs(path: Path) -> None:
    assert "camera/front" in invoke(session, "info", path).output
    found = json.loads(invoke(session, "info", path, "--json").output)
    assert found["counts"] == {"camera/front": 60, "microphone/main": 62, "text/terminal": 1}


def test_cat_prints_what_was_asked_for(path: Path) -> None:
    lines = invoke(session, "cat", path, "--topics", "camera/*", "--count", 3).output.splitlines()
    assert [line.split()[0] for line in lines] == ["camera/front"] * 3
    (line,) = invoke(session, "cat", path, "--from", 2.5, "--json").output.splitlines()
    assert json.loads(line)["header"]["text"] == "hello"


def test_trim_repair_and_diff(path: Path, tmp_path: Path) -> None:
    invoke(session, "trim", path, tmp_path / "t.mcap", "--topics", "text/*")
    assert "1 messages" in invoke(session, "repair", tmp_path / "t.mcap", tmp_path / "r.mcap").output
    assert "no difference" in invoke(session, "diff", tmp_path / "t.mcap", tmp_path / "r.mcap").output
    write(tmp_path / "other.mcap", "goodbye")
    output = invoke(session, "diff", path, tmp_path / "other.mcap", code=1).output
    assert "text/terminal seq 0: text: expected 'hello', actual 'goodbye'" in output


@pytest.mark.parametrize("kind", ["media", "webdataset", "lerobot", "rosbag2"])
def test_export_makes_a_folder_and_never_overwrites_one(path: Path, tmp_path: Path, kind: str) -> None:
    invoke(session, "export", path, tmp_path / "out", "--format", kind, "--topics", "microphone/*")
    assert any((tmp_path / "out").iterdir())
    with pytest.raises(SessionError, match="exists"):
        invoke(session, "export", path, tmp_path / "out", "--format", kind)


def test_several_sessions_become_one_lerobot_dataset_and_nothing_else(path: Path, tmp_path: Path) -> None:
    several, rest = ("export", path, path), ("--topics", "microphone/*", "--format")
    assert "in 2 episodes" in invoke(session, *several, tmp_path / "out", *rest, "lerobot").output
    with pytest.raises(SessionError, match="--format media takes one session"):
        invoke(session, *several, tmp_path / "other", *rest, "media")


def test_a_missing_extra_is_named(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("rosbags", "perception.session.ros"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("perception.session.convert.rosbag", raising=False)
    monkeypatch.setitem(sys.modules, "rosbags", None)
    with pytest.raises(SessionError, match=r"perception-node\[export\]"):
        invoke(session, "export", path, tmp_path / "out", "--format", "rosbag2")


def test_export_and_import_of_a_rosbag(path: Path, tmp_path: Path) -> None:
    invoke(session, "export", path, tmp_path / "bag", "--format", "rosbag2")
    assert "microphone/main: 62" in invoke(session, "import", tmp_path / "bag", tmp_path / "b.mcap").output
    with Session(tmp_path / "b.mcap") as back:
        assert back.counts == {"camera/front": 60, "microphone/main": 62, "text/terminal": 1}


def test_the_suffix_of_a_bag_may_be_in_capitals(path: Path, tmp_path: Path) -> None:
    invoke(session, "export", path, tmp_path / "bag", "--format", "rosbag2")
    bag = next((tmp_path / "bag").glob("*.mcap")).rename(tmp_path / "BAG.MCAP")
    options = ("--topics", "microphone/*", "--microphone", "desk")
    assert "microphone/desk: 62" in invoke(session, "import", bag, tmp_path / "b.mcap", *options).output


def test_record_refuses_to_overwrite_and_to_guess(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="exists"):
        invoke(record, "demo", "--out", path)
    with pytest.raises(SessionError, match="--set"):
        invoke(record, "--topics", "*", "--set", "a=1", "--out", tmp_path / "n.mcap")


@pytest.mark.parametrize("choice", [("--topics", "nope/*"), ("--from", "900")])
def test_printing_nothing_is_an_error(path: Path, choice: tuple[str, str]) -> None:
    with pytest.raises(SessionError, match="no such messages"):
        invoke(session, "cat", path, *choice)


def test_a_comparison_of_nothing_is_no_agreement(path: Path) -> None:
    with pytest.raises(SessionError, match="nothing to compare"):
        invoke(session, "diff", path, path, "--topics", "nope/*")


@pytest.mark.parametrize(
    "arguments",
    [
        ("cat", "FILE"),
        ("trim", "FILE", "NEW"),
        ("diff", "FILE", "FILE"),
        *(
            ("export", "FILE", "NEW", "--format", kind)
            for kind in ("media", "webdataset", "lerobot", "rosbag2")
        ),
    ],
)
def test_topics_that_are_not_there_are_an_error_that_names_those_that_are(
    path: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    places = {"FILE": path, "NEW": tmp_path / "new"}
    asked = (*(places.get(one, one) for one in arguments), "--topics", "camera/zzz")
    there = " under --topics camera/zzz; it holds camera/front, microphone/main, text/terminal"
    with pytest.raises(SessionError, match=f"{path}: .*{there}"):
        invoke(session, *asked)
    assert not places["NEW"].exists()


def test_topics_that_cannot_be_recorded_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"recorder\.topics\.0: 'lidar/\*' matches no topic"):
        invoke(record, "--topics", "lidar/*", "--out", tmp_path / "n.mcap")


def test_a_recording_of_nothing_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(PerceptionError, match="received no message of text/none in domain 'rec'"):
        invoke(
            record, "--topics", "text/none", "--domain", "rec", "--seconds", 0.1, "--out", tmp_path / "n.mcap"
        )
    assert not list(tmp_path.glob("*.mcap"))


def test_record_joins_what_runs_until_told_to_stop(tmp_path: Path) -> None:
    runtime, clock = Runtime("rec"), HostClock().now_ns
    with Publisher("text/say", source="t", runtime=runtime, clock=clock) as out:

        def talk() -> None:
            if out.wait_for_subscriber(LONG_S):
                for number in range(50):
                    out.send(TextCommand(stamp_ns=clock(), text=f"line {number}"))
            signal.raise_signal(signal.SIGINT)

        talker = threading.Thread(target=talk)
        talker.start()
        result = invoke(record, "--topics", "text/*", "--domain", "rec", "--out", tmp_path / "j.mcap")
        talker.join()
    assert "50 messages of 1 topics, 0 lost" in result.output
    with Session(tmp_path / "j.mcap") as joined:
        assert [message.header.seq for message in joined.messages()] == list(range(50))
        assert joined.metadata["recorded"]["inputs"]["text/say"]["lost"] == 0
