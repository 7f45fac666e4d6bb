"""Without a named domain, commands and programs use the only graph that is up."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import perception
from perception.bus import domains
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli.main import run
from perception.cli.up import with_domain
from perception.errors import PerceptionError
from perception.messages import Health, TextCommand
from perception.profile import load
from perception.session.file.writer import SessionWriter
from tests import streams
from tests.bus import text
from tests.test_cli import command
from tests.test_up import SCRIPTED, up
from tests.waiting import LONG_S, eventually


@contextmanager
def graph(domain: str, base: Path | None = None) -> Iterator[Publisher]:
    """A minimal graph: a node that publishes its health, and one topic."""
    runtime, clock = Runtime(domain, base), HostClock().now_ns
    with (
        Publisher("health/text-typed", source="typed", runtime=runtime, clock=clock),
        Publisher("text/typed", source="typed", runtime=runtime, clock=clock) as typed,
    ):
        yield typed


def typed_line() -> TextCommand:
    return TextCommand(stamp_ns=HostClock().now_ns(), text="hello")


# --- selection ---


def test_nothing_is_meant_where_no_graph_is_up() -> None:
    with Publisher("text/a", source="program", runtime=Runtime("default"), clock=HostClock().now_ns):
        assert domains.graphs_up() == []
        assert domains.find() is None
        with pytest.raises(PerceptionError, match="no graph is up; start one: perception up PROFILE"):
            domains.joined(None)


def test_the_only_graph_is_meant_whatever_its_domain() -> None:
    with graph("demo"):
        runtime = domains.find()
        assert runtime is not None
        assert runtime.domain == domains.joined(None).domain == "demo"


def test_a_replay_goes_to_the_only_graph_that_is_up(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        writer.write(streams.text(0, 10**18, "hello"))
    command = ["replay", str(tmp_path / "s.mcap"), "--wait", "1", "--rate", "max"]
    clock = HostClock().now_ns
    with graph("demo"), Subscriber(streams.TEXT, runtime=Runtime("demo"), clock=clock) as reader:
        assert run(command) == 0
        assert (message := reader.receive(LONG_S)) is not None
        assert message.topic == streams.TEXT


def test_several_are_listed() -> None:
    with graph("robot"), graph("demo"), pytest.raises(PerceptionError) as caught:
        domains.find()
    assert str(caught.value) == "several graphs are up: demo, robot; name one, by --domain or domain="


def test_what_is_named_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    with graph("robot"), graph("demo"):
        assert domains.joined("elsewhere").domain == "elsewhere"
        monkeypatch.setenv("PERCEPTION_DOMAIN", "robot")
        assert domains.joined(None).domain == "robot"
        assert domains.joined("demo").domain == "demo"


# --- programs ---


@pytest.mark.parametrize("pattern", ["text/typed", "text/*", "*"])
def test_a_program_may_read_before_the_graph_is_up(pattern: str, caplog: pytest.LogCaptureFixture) -> None:
    with perception.subscribe(pattern) as subscriber:
        assert [record.message for record in caplog.records] == [
            f"no graph is up; waiting for one to read {pattern}"
        ]
        assert subscriber.receive(0.0) is None
        with graph("demo") as typed:
            assert typed.wait_for_subscriber(LONG_S)
            typed.send(typed_line())
            assert text(subscriber.receive(LONG_S)) == "hello"


def test_programs_without_a_graph_meet_in_the_default_domain() -> None:
    with perception.subscribe("text/mine") as subscriber:
        eventually(lambda: perception.publish("text/mine", text="hello") == 1)
        assert text(subscriber.receive(LONG_S)) == "hello"


def test_a_program_reads_the_only_graph(caplog: pytest.LogCaptureFixture) -> None:
    with graph("demo") as typed, perception.subscribe("text/typed") as subscriber:
        assert typed.wait_for_subscriber(LONG_S)
        typed.send(typed_line())
        assert text(subscriber.receive(LONG_S)) == "hello"
    assert not caplog.records


def test_a_program_that_waits_says_that_several_came_up(
    caplog: pytest.LogCaptureFixture, runtime_directory: Path
) -> None:
    """Both appear at once, by one rename; a reader that finds one of them first joins it."""
    with tempfile.TemporaryDirectory(prefix="run") as folder:
        ahead, up = Path(folder) / "ahead", Path(folder) / "up"
        for domain in ("demo", "robot"):
            (runtime_directory / domain).symlink_to(up / domain)
        with graph("demo", ahead), graph("robot", ahead), perception.subscribe("text/other"):
            ahead.rename(up)
            eventually(lambda: any("several graphs are up" in record.message for record in caplog.records))


def test_a_program_publishes_into_the_only_graph_and_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    with graph("demo"):
        here = Runtime("demo")
        with Subscriber("text/said", runtime=here, clock=HostClock().now_ns) as subscriber:
            assert perception.publish("text/said", text="one") == 1
            with graph("robot"):
                assert perception.publish("text/said", text="two") == 1
            assert [text(subscriber.receive(LONG_S)) for _ in range(2)] == ["one", "two"]
    with (
        graph("robot"),
        graph("lab"),
        pytest.raises(PerceptionError, match="several graphs are up: lab, rob"),
    ):
        perception.publish("text/said", text="where?")
    assert not caplog.records


# --- commands ---


JOINING = [
    ["nodes"],
    ["echo", "text/typed", "--count", "1"],
    ["say", "hello"],
    ["swap", "--back"],
    ["mark", "wave", "--seconds", "0.01"],
    ["record", "--topics", "text/*", "--seconds", "0.3", "--out"],
]


def given(arguments: list[str], folder: Path) -> list[str]:
    return [*arguments, str(folder / "out.mcap")] if arguments[-1] == "--out" else arguments


@pytest.mark.parametrize("arguments", JOINING, ids=lambda arguments: arguments[0])
def test_a_command_lists_the_graphs_among_which_it_cannot_choose(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with graph("demo"), graph("robot"):
        assert run(given(arguments, tmp_path)) == 1
    assert capsys.readouterr().err == (
        "perception: several graphs are up: demo, robot; name one, by --domain or domain=\n"
    )


@pytest.mark.parametrize("arguments", [JOINING[0], *JOINING[2:]], ids=lambda arguments: arguments[0])
def test_a_command_says_that_no_graph_is_up(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(given(arguments, tmp_path)) == 1
    assert "no graph is up" in capsys.readouterr().err


def test_nodes_are_those_of_the_only_graph(capsys: pytest.CaptureFixture[str]) -> None:
    with graph("demo"):
        health = Publisher("health/camera-a", source="a", runtime=Runtime("demo"), clock=HostClock().now_ns)
        end = threading.Event()

        def report() -> None:
            while not end.wait(0.05):
                health.send(Health(stamp_ns=HostClock().now_ns(), node="camera-a"))

        with health:
            reporter = threading.Thread(target=report)
            reporter.start()
            assert run(["nodes"]) == 0
            end.set()
            reporter.join()
    assert "camera-a" in capsys.readouterr().out


def test_echo_shows_the_only_graph_and_waits_for_one() -> None:
    early = command("echo", "text/typed", "--count", "1")
    assert early.stderr is not None
    assert early.stderr.readline() == "perception: waiting for text/typed; no graph is up\n"
    with graph("demo") as typed:
        late = command("echo", "text/*", "--count", "1")
        eventually(lambda: typed.subscribers == 2)
        typed.send(typed_line())
        for echo in (early, late):
            assert "text=hello" in echo.communicate(timeout=LONG_S)[0]


def test_say_and_mark_go_to_the_only_graph() -> None:
    with (
        graph("demo"),
        Subscriber("text/say", "label/*", runtime=Runtime("demo"), clock=HostClock().now_ns) as subscriber,
    ):
        assert run(["say", "hello"]) == 0
        assert text(subscriber.receive(LONG_S)) == "hello"
        assert run(["mark", "wave", "--seconds", "0.01"]) == 0
        marked = subscriber.receive(LONG_S)
        assert marked is not None
        assert marked.topic == "label/mark"


def test_a_recording_joins_the_only_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    end = threading.Event()
    with graph("demo") as typed:

        def talk() -> None:
            while not end.wait(0.02):
                typed.send(typed_line())

        talker = threading.Thread(target=talk)
        talker.start()
        try:
            assert run(["record", "--topics", "text/*", "--seconds", "1", "--out", f"{tmp_path}/a.mcap"]) == 0
        finally:
            end.set()
            talker.join()
    assert "messages of 1 topics, 0 lost" in capsys.readouterr().out


# --- up ---


def test_a_graph_goes_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "graph.toml"
    file.write_text(SCRIPTED)

    def domain(*overrides: str, named: str | None = None) -> str:
        return load(str(file), with_domain(overrides, named)).domain

    assert domain() == "test"
    monkeypatch.setenv("PERCEPTION_DOMAIN", "lab")
    assert domain() == "lab"
    assert domain("domain=set") == "set"
    assert domain("domain=set", named="named") == "named"


def test_up_honours_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "graph.toml"
    file.write_text(SCRIPTED)
    monkeypatch.setenv("PERCEPTION_DOMAIN", "lab")
    with up(file):
        eventually(lambda: "health/text-script" in Runtime("lab").topics())
        assert domains.graphs_up() == ["lab"]
