"""Foreign text in a terminal is one line, and the terminal executes none of it."""

import io
import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from perception.cli import main, standard_streams
from perception.cli.finding import Finding, print_findings
from perception.cli.panel import Board, node_table
from perception.cli.summary import Summary
from perception.cli.summary_tables import print_report
from perception.cli.views import PlainView
from perception.errors.credentials import CleanFormatter, harmless
from perception.io.progress import LINE_S, progress
from perception.messages import Health, Message, TextCommand
from perception.session.file.writer import SessionWriter

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b1;1H\r\nstate/fused #1 forged\u2028\u202egnol\x7f\ud800[red]b"
_OBEYED = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e\ud800]")


def assert_harmless(shown: str, lines: int = 1) -> None:
    assert not _OBEYED.search(shown)
    assert "forged" in shown
    assert "[red]b" in shown
    assert not any(line.startswith("state/fused") for line in shown.split("\n"))
    assert shown.count("\n") == lines


def test_a_command_says_each_text_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    standard_streams.show(HOSTILE, HOSTILE)
    standard_streams.show(HOSTILE, err=True)
    shown = capsys.readouterr()
    assert_harmless(shown.out, 2)
    assert_harmless(shown.err)


def test_letters_of_every_script_are_shown_as_they_are() -> None:
    text = "Grüße 你好 עברית हिन्दी 👩‍🚀 ½"
    assert harmless(text) == text


def test_a_log_line_is_one_line_and_a_traceback_has_its_own() -> None:
    log = logging.getLogger("test.terminal")
    handler = logging.StreamHandler(shown := io.StringIO())
    handler.setFormatter(CleanFormatter("perception: %(message)s"))
    log.addHandler(handler)
    try:
        log.warning("unknown encoding %s", HOSTILE)
        assert_harmless(shown.getvalue())
        try:
            raise ValueError("\x1b[2J")
        except ValueError:
            log.exception("wrong")
        assert "\x1b" not in shown.getvalue()
        assert "\nTraceback" in shown.getvalue()
    finally:
        log.removeHandler(handler)


def _board() -> Board:
    board = Board()
    board.add(
        Message(
            "health/evil",
            Health(stamp_ns=1, node=HOSTILE, status="ok", reason=HOSTILE, device={HOSTILE: HOSTILE}),
        )
    )
    return board


def test_nodes_are_listed_harmlessly() -> None:
    console = Console(file=(shown := io.StringIO()), width=100_000)
    console.print(node_table(_board()))
    assert_harmless(shown.getvalue(), 2)


def test_lines_of_a_node_are_passed_on_harmlessly() -> None:
    view = PlainView(Board(), io.StringIO(), errors := io.StringIO())
    view.log("camera-front", HOSTILE)
    assert_harmless(errors.getvalue())


def test_a_summary_is_written_harmlessly() -> None:
    report = replace(
        Summary(hop_ns=1, lateness_ns=1, started_ns=0).report(), drops={HOSTILE: {HOSTILE: 1}}, counts={}
    )
    print_report(report, shown := io.StringIO())
    assert "forged" in shown.getvalue()
    assert not _OBEYED.search(shown.getvalue())
    assert "\nstate/fused" not in shown.getvalue()


def test_a_finding_is_one_line() -> None:
    print_findings([Finding("camera", "fail", HOSTILE, HOSTILE)], shown := io.StringIO())
    assert_harmless(shown.getvalue())


def test_progress_is_one_line() -> None:
    times = iter([0.0, LINE_S, 2 * LINE_S])
    with progress(HOSTILE, stream=(shown := io.StringIO()), clock=lambda: next(times)) as advance:
        advance(1, HOSTILE)
    assert_harmless(shown.getvalue())


def test_commands_write_no_text_but_by_one_function() -> None:
    """All other output is JSON, which has its own escapes."""
    package = Path(standard_streams.__file__).parent
    for file in package.glob("*.py"):
        if file.name == "standard_streams.py":
            continue
        for call in re.findall(r"click\.echo\b(.*)", file.read_text()):
            assert re.match(r"\(json\.dumps\(|\(message_text\.as_json\(", call), f"{file.name}: {call}"


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sessions whose texts and metadata are hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    text = HOSTILE.replace("\ud800", "")
    for name in ("one", "other"):
        with SessionWriter(folder / f"{name}.mcap") as writer:
            writer.add_metadata(text, {"value": text})
            command = TextCommand(stamp_ns=10**18, text=f"{text}{name}", source=text)
            writer.write(Message("text/say", command, b"", 10**18))
    return folder / "one.mcap", folder / "other.mcap"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["cat"], id="cat"),
        pytest.param(["info"], id="info"),
        pytest.param(["diff"], id="diff"),
    ],
)
def test_a_hostile_session_is_shown_harmlessly(
    sessions: tuple[Path, Path], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in sessions[: 2 if command == ["diff"] else 1]]
    main.run(["session", *command, *files])
    shown = capsys.readouterr()
    assert "forged" in shown.out
    assert not _OBEYED.search(shown.out + shown.err)
    assert not any(line.startswith("state/fused") for line in shown.out.split("\n"))


@pytest.mark.parametrize("command", ["cat", "info"])
def test_as_json_it_loses_nothing(
    sessions: tuple[Path, Path], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["session", command, str(sessions[0]), "--json"]) == 0
    shown = capsys.readouterr().out
    assert not _OBEYED.search(shown)
    text = HOSTILE.replace("\ud800", "")
    found = json.loads(shown)
    assert (
        found["header"]["source"] == text if command == "cat" else found["metadata"][text] == {"value": text}
    )
