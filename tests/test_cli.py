"""The `perception` command as a user meets it: real processes, real sockets, a domain of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.subscriber import Subscriber
from perception.cli.main import cli, run
from perception.cli.message_text import Rates, as_json, as_line
from perception.errors import INTERRUPTED
from perception.messages import AudioBlock, CameraFrame, Health, Message, TextCommand
from tests.waiting import LONG_S, eventually

MS = 1_000_000


def commands_below(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_below(command, f"{prefix}{name} ")
        if not command.hidden:
            yield f"{prefix}{name}", command


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("PERCEPTION_DOMAIN", "test")
    return Runtime()


def command(*arguments: str, group: int | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "perception", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=group,
    )


def publisher(topic: str, runtime: Runtime) -> Publisher:
    return Publisher(topic, source="tester", runtime=runtime, clock=HostClock().now_ns)


@pytest.fixture
def spoken(runtime: Runtime) -> Iterator[Publisher]:
    with publisher("text/console", runtime) as texts:
        yield texts


def test_help_is_fast_and_imports_neither_torch_nor_zmq() -> None:
    code = (
        "import sys, time; begun = time.process_time(); from perception.cli.main import run\n"
        "run(['--help']); "
        "print(time.process_time() - begun, 'torch' in sys.modules, 'zmq' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch, zmq = done.stdout.splitlines()[-1].split()
    assert (torch, zmq) == ("False", "False")
    assert float(seconds) < 1.0


def test_ctrl_c_is_quiet_while_its_modules_load() -> None:
    """Where the installed command begins, with a Ctrl-C in the midst of an import."""
    code = """if True:
        import sys
        from importlib.metadata import entry_points
        class CtrlC:
            def find_spec(self, name, *_):
                if name == "perception.topics":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, CtrlC())
        (begin,) = entry_points(group="console_scripts", name="perception")
        begin.load()()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (INTERRUPTED, "")


@pytest.mark.parametrize("arguments", [["--version"], ["up", "--help"], ["keys", "new", "--help"]])
def test_help_and_version_succeed(arguments: list[str]) -> None:
    assert run(arguments) == 0


@pytest.mark.parametrize("group", [[], ["session"], ["keys"]], ids=["perception", "session", "keys"])
def test_help_of_a_group_cuts_no_sentence(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*group, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.split("Show this message and exit.")[1]


def test_help_lists_every_command_in_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ") and line[2:3].isalpha()]
    known = {name for name, command in cli.commands.items() if not command.hidden}
    assert sorted(name for name in listed if name in known) == sorted(known)
    assert "Commands:" not in lines


@pytest.mark.parametrize(("path", "command"), list(commands_below(cli)), ids=str)
def test_help_explains_every_command_and_option_on_80_columns(path: str, command: click.Command) -> None:
    context = click.Context(command, info_name=path, max_content_width=80)
    assert command.help
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []
    assert max(map(len, command.get_help(context).splitlines())) <= 80


def test_a_wrong_profile_is_one_line_and_exit_code_2(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("[camera.front]\nsource = 0\ncolour = 'red'\n")
    assert run(["up", str(file)]) == 2
    assert capsys.readouterr().err == f"perception: {file}: camera.front.colour: no such key\n"


def test_a_profile_that_does_not_exist_names_those_that_ship(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "kitchen"]) == 2
    assert "'kitchen' is no profile; shipped are demo" in capsys.readouterr().err


def test_an_override_without_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["up", "demo", "--set", "fusion"]) == 2
    assert capsys.readouterr().err == "perception: --set fusion: expected dotted.key=value\n"


def test_unknown_options_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["echo", "state/fused", "--fast"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_say_reaches_a_listener(runtime: Runtime) -> None:
    with Subscriber("text/*", runtime=runtime, clock=HostClock().now_ns) as subscriber:
        said = command("say", "come", "here", "--language", "en")
        message = subscriber.receive(LONG_S)
        assert said.communicate(timeout=LONG_S) == ("", "")
    assert message is not None
    assert message.topic == "text/say"
    assert isinstance(message.header, TextCommand)
    assert (message.header.text, message.header.language) == ("come here", "en")


def test_say_to_nobody_is_an_error(runtime: Runtime) -> None:
    said = command("say", "hello", "--name", "void")
    _, error = said.communicate(timeout=LONG_S)
    assert said.returncode == 1
    assert error.startswith("perception: no subscriber to text/void; ")
    assert error.count("\n") == 1


def test_echo_prints_json_and_ends_after_count(spoken: Publisher) -> None:
    echo = command("echo", "text/*", "--json", "--count", "2")
    assert spoken.wait_for_subscriber(LONG_S)
    for text in ("one", "two"):
        spoken.send(TextCommand(stamp_ns=HostClock().now_ns(), text=text))
    output, _ = echo.communicate(timeout=LONG_S)
    assert echo.returncode == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["header"]["text"] for line in lines] == ["one", "two"]
    assert {line["topic"] for line in lines} == {"text/console"}


def test_echo_of_a_silent_topic_says_what_there_is(spoken: Publisher) -> None:
    echo = command("echo", "state/fused", group=0)
    assert echo.stderr is not None
    waiting = echo.stderr.readline()
    assert waiting == "perception: waiting for state/fused; published in domain 'test': text/console\n"
    os.killpg(echo.pid, signal.SIGINT)
    assert echo.communicate(timeout=LONG_S)[1].strip() == ""
    assert echo.returncode == 130


def test_echo_into_a_closed_pipe_is_quiet(spoken: Publisher) -> None:
    echo = command("echo", "text/console")
    assert spoken.wait_for_subscriber(LONG_S)
    assert echo.stdout is not None
    echo.stdout.close()

    def ended() -> bool:
        spoken.send(TextCommand(stamp_ns=HostClock().now_ns(), text="more"))
        return echo.poll() is not None

    eventually(ended)
    assert echo.returncode == 141
    assert echo.stderr is not None
    with echo.stderr:
        assert echo.stderr.read() == ""


def test_echo_refuses_what_is_no_topic(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["echo", "video/front"]) == 5
    assert "'video/front' is not a topic" in capsys.readouterr().err


def test_nodes_shows_status_rates_and_drops(runtime: Runtime) -> None:
    with publisher("health/camera-front", runtime) as accounts:
        nodes = command("nodes")
        second = 0
        while nodes.poll() is None:
            accounts.send(
                Health(
                    stamp_ns=second * 1000 * MS,
                    node="camera-front",
                    status="degraded",
                    reason="dim light",
                    outputs={"camera/front": 100 + 30 * second},
                    counts={"corrupt": 2},
                    device={"width": 640.0},
                )
            )
            second += 1
            time.sleep(0.05)
        output, _ = nodes.communicate(timeout=LONG_S)
    assert nodes.returncode == 0
    for words in ("camera-front", "degraded: dim light", "camera/front 30.0 Hz", "corrupt 2", "width=640"):
        assert words in output


def test_nodes_without_nodes_is_an_error(runtime: Runtime) -> None:
    nodes = command("nodes")
    assert "no node is alive in domain 'test'; published: nothing" in nodes.communicate(timeout=LONG_S)[1]
    assert nodes.returncode == 1


def test_schema_writes_a_file_per_topic_and_the_vectors(tmp_path: Path) -> None:
    assert run(["schema", "--out", str(tmp_path / "wire")]) == 0
    state = json.loads((tmp_path / "wire" / "state.schema.json").read_text())
    assert state["title"] == "FusedState"
    assert json.loads((tmp_path / "wire" / "vectors.json").read_text())


def test_new_keys_are_the_owners_alone_and_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    assert run(["keys", "new", str(folder)]) == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
    assert run(["keys", "new", str(folder)]) == 5
    assert "already holds keys" in capsys.readouterr().err


def test_a_message_is_one_line() -> None:
    frame = CameraFrame(stamp_ns=0, seq=7, width=640, height=480, encoding="jpeg")
    message = Message("camera/front", frame, b"x" * 99)
    assert as_line(message, 12 * MS) == (
        "camera/front #7  age 12.0 ms  width=640 height=480 encoding=jpeg  99 B"
    )
    assert json.loads(as_json(message))["payload_bytes"] == 99


def test_rates_are_the_publishers_even_where_messages_were_not_seen() -> None:
    rates = Rates()
    lines: list[str] = []
    for seq in range(0, 63, 2):
        block = AudioBlock(
            stamp_ns=0, seq=seq, sent_ns=seq * 32 * MS, sample_index=0, samples=1, rate_hz=16_000
        )
        lines += rates.add(Message("microphone/m", block, b"12"))
    assert lines[0] == (
        "microphone/m  31.25 Hz  interval ms mean 64.0 min 64.0 max 64.0 std 0.0  0.0 kB  16 missed here"
    )
