"""Every command that writes refuses an impossible path before any work is done."""

from pathlib import Path

import click
import pytest

from perception.cli.main import cli, run
from perception.io.out_path import OutFile, OutFolder

WRITES = {"json_file", "out", "sheet", "index", "cache", "target"}


def commands(group: click.Group) -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        inside = commands(command) if isinstance(command, click.Group) else {"": command}
        found |= {f"{name} {rest}".strip(): each for rest, each in inside.items()}
    return found


def test_every_option_that_names_what_is_written_is_checked_first() -> None:
    unchecked = [
        f"{name} --{parameter.name}"
        for name, command in commands(cli).items()
        for parameter in command.params
        if parameter.name in WRITES and not isinstance(parameter.type, OutFile | OutFolder)
    ]
    assert unchecked == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["up", "demo", "--json", "none/x.json"], 2),
        (["bench", "transport", "--json", "none/x.json"], 2),
        (["record", "demo", "--out", "none/x.mcap"], 7),
        (["search", "x.mcap", "a cup", "--sheet", "none/x.png"], 2),
        (["session", "fuse", "x.mcap", "--out", "none/x.mcap"], 7),
        (["session", "trim", "x.mcap", "none/y.mcap"], 7),
        (["session", "repair", "x.mcap", "none/y.mcap"], 7),
        (["session", "import", "x.mp4", "none/y.mcap"], 7),
    ],
)
def test_a_folder_that_is_not_there_is_said_at_once(
    arguments: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    out, err = capsys.readouterr()
    where = arguments[-1]
    assert (out, err) == ("", f"perception: {where}: no such folder: {tmp_path}/none; create it first\n")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_file_in_the_way_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", "demo", "--json", str(tmp_path)]) == 2
    assert "is a folder; give the name of a file in it" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run(["schema", "--out", str(tmp_path / "file" / "deep" / "er")]) == 2
    assert f"{tmp_path}/file is not a folder" in capsys.readouterr().err
    assert run(["schema", "--out", str(tmp_path / "new" / "deeper")]) == 0


def test_a_name_that_no_file_can_have_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    for arguments in (
        ["up", "demo", "--json", long],
        ["record", "demo", "--out", long],
        ["schema", "--out", long],
        ["up", f"{long}.toml"],
        ["session", "info", long],
        ["search", long, "a cup"],
    ):
        assert run(arguments) != 0
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
