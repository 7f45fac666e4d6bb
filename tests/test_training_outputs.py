"""Outputs of training, evaluation and search: written whole or not at all, with one line of error."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perception.cli.main import run
from perception.devices.scripted import messages
from perception.errors import INTERRUPTED
from perception.io.beside import restore
from perception.models.checkpoint import own_encoders
from perception.models.feature_cache import Cache
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from perception.session import SessionWriter
from tests.waiting import LONG_S, eventually

PROFILE = """
[fusion]
hop_ms = 250
device = "cpu"
threads = 1
[fusion.inputs]
camera = { topic = "camera/front" }
[fusion.encoders]
motion = { input = "camera", kind = "motion" }
[fusion.head]
weights = "random"
classes = ["a", "b"]
"""
PLAN = 'profile = "{profile}"\nseeds = 1\ntest = 0.0\n[training]\nepochs = {epochs}\npatience = 1000000\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions, and the features of them in a cache."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "profile.toml").write_text(PROFILE)
    (folder / "sessions").mkdir()
    camera = CameraConfig(source="scripted", width=64, height=48, rate_hz=8)
    for seed in (1, 2):
        with SessionWriter(folder / "sessions" / f"play-{seed}.mcap") as writer:
            for message in messages(
                ScriptConfig(seed=seed), camera, MicrophoneConfig(source="scripted"), 20.0
            ):
                writer.write(message)
    assert run(train(folder, folder / "head", "--workers", 1)) == 0
    return folder


def train(folder: Path, out: Path, *more: object, text: str = "", epochs: int = 2) -> list[str]:
    plan = folder / f"plan-{epochs}-{len(text)}.toml"
    plan.write_text(PLAN.format(profile=folder / "profile.toml", epochs=epochs) + text)
    paths = ("--sessions", folder / "sessions", "--cache", folder / "cache", "--out", out)
    return [str(argument) for argument in ("train", plan, *paths, *more)]


@contextmanager
def a_disk_that_takes(size: int) -> Iterator[None]:
    """Let no file of this process grow over a size, as on a disk with so much left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, after the lines of progress that a slow machine prints."""
    *progress, line = capsys.readouterr().err.splitlines()
    assert all(": encoding: " in one or ": training heads: " in one for one in progress), progress
    return line


def left_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("place", ["file", "folder", "other", "link"])
def test_training_never_writes_over_what_is_no_head_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    out = tmp_path / "out"
    if place == "file":
        out.write_text("mine")
    elif place == "link":
        out.symlink_to(folder / "head")
    elif place == "other":
        shutil.copytree(folder / "head", out)
        (out / "mine.txt").write_text("mine")
    else:
        out.mkdir()
    before = {file: file.stat().st_mtime_ns for file in [out, *out.glob("*")]}
    code = run(train(folder, out, "--cache", tmp_path / "cache"))
    assert code == (2 if place == "file" else 7)
    assert str(out) in error_of(capsys)
    assert {file: file.stat().st_mtime_ns for file in [out, *out.glob("*")]} == before
    assert not (tmp_path / "cache").exists(), "refused before anything is encoded"


def test_a_head_is_replaced_as_a_whole_by_the_next_training_and_stays_if_that_fails(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "head"
    shutil.copytree(folder / "head", out)
    (out / "encoders" / "motion").mkdir(parents=True)
    (out / "evaluation").mkdir()
    before = {file: file.read_bytes() for file in out.glob("*.*")}
    with a_disk_that_takes((folder / "head" / "report.html").stat().st_size - 1):
        assert run(train(folder, out)) == 7
    assert {file: file.read_bytes() for file in out.glob("*.*")} == before
    assert own_encoders(out)
    capsys.readouterr()
    assert run(train(folder, out, "--resume", epochs=3)) == 0
    assert left_in(out) == left_in(folder / "head")
    assert left_in(tmp_path) == {"head"}
    assert json.loads((out / "plan.json").read_text())["training"]["epochs"] == 3
    assert not own_encoders(out)


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_head_whose_replacement_was_killed_is_restored_by_the_next_training(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, renamed: int
) -> None:
    out = tmp_path / "head"
    shutil.copytree(folder / "head", out)
    script = f"""
import os, pathlib, sys
from perception.io.beside import beside
left = {renamed}
def kill(event, arguments):
    global left
    if event == "os.rename":
        if left == 0:
            os._exit(9)
        left -= 1
    if event == "shutil.rmtree":
        os._exit(9)
sys.addaudithook(kill)
with beside({str(out)!r}, replace=True) as part:
    part.mkdir()
    (part / "model.safetensors").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert out.exists() == (renamed == 2)
    (tmp_path / "head.unfinished").mkdir()
    (tmp_path / "head.unfinished" / "seed-0.state").write_bytes(b"")
    assert run(train(folder, out)) == 1, "refused, but the head is back"
    assert (out / "model.safetensors").read_text() == "new"
    assert left_in(tmp_path) == {"head", "head.unfinished"}
    assert (f"{out} restored" in caplog.text) == (renamed == 1)


def test_what_a_killed_replacement_left_of_a_head_removed_since_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / ".perception-killed"
    (left / "head.before").mkdir(parents=True)
    restore(tmp_path / "head")
    assert left_in(tmp_path) == set()


def test_an_evaluation_is_written_beside_the_report_of_the_training_never_in_its_place(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head"
    shutil.copytree(folder / "head", head)
    before = {file: file.read_bytes() for file in head.iterdir()}
    options = ("--profile", str(folder / "profile.toml"), "--cache", str(tmp_path / "cache"))
    arguments = ["evaluate", str(head), str(folder / "sessions"), *options, "--workers", "1"]
    assert run([*arguments, "--out", str(head)]) == 7
    assert f"{head} holds the report of a training; give another folder by --out" in error_of(capsys)
    assert not (tmp_path / "cache").exists(), "refused before anything is encoded"
    for _ in range(2):
        assert run(arguments) == 0
    assert left_in(head / "evaluation") == {"report.json", "report.html"}
    assert {file: file.read_bytes() for file in before} == before


def test_one_session_alone_is_evaluated_and_the_sessions_that_chose_thresholds_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--profile", str(folder / "profile.toml"), "--cache", str(folder / "cache"))
    single = folder / "sessions" / "play-1.mcap"
    for sources, thresholds, tested in (
        ([single], [], "play-1"),
        ([folder / "sessions"], ["play-1"], "play-2"),
    ):
        arguments = ("evaluate", folder / "head", *sources, *options, "--out", tmp_path)
        assert run([str(argument) for argument in arguments]) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["threshold_sessions"] == thresholds
        assert bool(report["conformal"]) == bool(thresholds)
        assert list(report["per_session"]) == [tested]
        chosen_by = ", ".join(thresholds) or "none, there is only one session"
        assert f"conformal thresholds and are not in the test: {chosen_by}\n" in capsys.readouterr().out
        assert "Thresholds come from" in (tmp_path / "report.html").read_text()


def test_a_full_disk_takes_no_half_features(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with a_disk_that_takes(1000):
        assert run(train(folder, tmp_path / "head", "--cache", tmp_path / "cache")) == 7
    line = error_of(capsys)
    assert line.startswith(f"perception: cannot write {tmp_path / 'cache'}: ")
    assert line.endswith("; choose another place by --cache")
    assert left_in(tmp_path) == set()


def test_a_full_disk_takes_no_half_checkpoint_and_training_goes_on_when_it_has_room(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "head"
    with a_disk_that_takes(1000):
        assert run(train(folder, out)) == 7
    assert "cannot write" in error_of(capsys)
    assert left_in(tmp_path) == set()
    whole = (folder / "head" / "report.html").stat().st_size
    with a_disk_that_takes(whole - 1):
        assert run(train(folder, out)) == 7
    assert f"cannot write {out}: " in error_of(capsys)
    assert left_in(tmp_path) == {"head.unfinished"}
    assert run(train(folder, out)) == 1
    assert "holds an interrupted training; resume it with --resume or remove it" in error_of(capsys)
    assert run(train(folder, out, "--resume")) == 0
    assert left_in(tmp_path) == {"head"}
    assert left_in(out) == left_in(folder / "head")
    assert f'fusion.head.weights = "{out}"' in (out / "README.md").read_text()


def test_a_training_that_fails_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = 'optimiser = "sgd"\nlearning_rate = 1e30\nclip = 1e30\nselect = "last"\n'
    assert run(train(folder, tmp_path / "head", text=text)) == 1
    assert "the last epoch had no finite loss" in error_of(capsys)
    assert left_in(tmp_path) == set()


def test_a_damaged_state_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "head.unfinished").mkdir()
    (tmp_path / "head.unfinished" / "seed-0.state").write_bytes(b"PK\x03\x04 cut off")
    assert run(train(folder, tmp_path / "head", "--resume")) == 1
    assert "seed-0.state: damaged; remove it to start from the beginning" in error_of(capsys)


def test_an_interrupted_training_leaves_its_state_and_names_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    command = [sys.executable, "-m", "perception", *train(folder, out, epochs=1_000_000)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            eventually(lambda: (tmp_path / "head.unfinished" / "seed-0.state").exists())
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(LONG_S) == INTERRUPTED
        finally:
            process.kill()
        assert process.stderr is not None
        printed = process.stderr.read()
    assert f"interrupted; to resume from {out}.unfinished, give the same command with --resume" in printed
    assert "Traceback" not in printed
    assert left_in(tmp_path) == {"head.unfinished"}
    assert left_in(tmp_path / "head.unfinished") == {"seed-0.state"}
    assert run(train(folder, out, "--resume")) == 0
    assert left_in(tmp_path) == {"head"}


def test_an_evaluation_that_cannot_be_written_leaves_the_report_before_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = folder / "head"
    before = {name: (head / name).read_bytes() for name in left_in(head)}
    profile = ("--profile", str(folder / "profile.toml"), "--cache", str(folder / "cache"))
    with a_disk_that_takes(1000):
        assert run(["evaluate", str(head), str(folder / "sessions"), *profile]) == 7
    assert f"cannot write {head / 'evaluation'}: " in error_of(capsys)
    assert {name: (head / name).read_bytes() for name in left_in(head)} == before


def test_a_contact_sheet_is_written_whole_or_not_at_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    arguments = ["search", str(folder / "sessions"), "marker", "--in", "commands", "--sheet", str(sheet)]
    assert run(arguments) == 0
    before = sheet.read_bytes()
    capsys.readouterr()
    with a_disk_that_takes(1000):
        assert run(arguments) == 7
    assert f"cannot write {sheet}: " in error_of(capsys)
    assert left_in(tmp_path) == {"sheet.png"}
    assert sheet.read_bytes() == before


def test_a_cache_is_made_with_what_is_first_stored_in_it(tmp_path: Path) -> None:
    Cache(tmp_path / "some.index")
    assert left_in(tmp_path) == set()
