"""What a session command writes is there whole or not at all, whatever ends it; the reason is one line."""

import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from perception.cli.main import run
from perception.errors import SessionError
from perception.io.beside import beside
from perception.messages import Message
from perception.session import Session, SessionWriter
from tests import streams
from tests.media import write_clip

FORMATS: Final = ("media", "webdataset", "lerobot", "rosbag2")
NOISE: Final = np.random.default_rng(1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds that no compression makes small."""
    path = tmp_path_factory.mktemp("whole") / "s.mcap"
    with SessionWriter(path) as writer:
        for seq in range(40):
            stamp_ns = streams.START_NS + seq * 100 * streams.MS
            pixels = NOISE.integers(0, 256, (48, 64), dtype=np.uint8)
            frame = streams.frame(seq, stamp_ns, width=64, height=48)
            writer.write(Message(frame.topic, frame.header, pixels.tobytes(), stamp_ns))
            sound = NOISE.normal(0, 0.3, 1600)
            writer.write(streams.block(seq, stamp_ns, sound, seq * 1600))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def commands(path: Path, target: Path) -> dict[str, list[str]]:
    exports = {
        kind: ["session", "export", str(path), str(target), "--format", kind, "--rate", "10"]
        for kind in FORMATS
    }
    return exports | {
        "trim": ["session", "trim", str(path), str(target)],
        "repair": ["session", "repair", str(path), str(target)],
        "import": ["session", "import", str(clip(path.parent)), str(target)],
        "fuse": ["session", "fuse", str(path), "--out", str(target), "--profile", profile(path.parent)],
        "fuse film": [
            *("session", "fuse", str(clip(path.parent)), "--out", str(target)),
            *("--profile", profile(path.parent)),
        ],
    }


PROFILE: Final = """
[fusion]
threads = 1
inputs = { camera = { topic = "camera/front" }, microphone = { topic = "microphone/main" } }
encoders = { motion = { input = "camera", kind = "motion" } }
head = { classes = ["calm", "lively"] }
"""


def profile(folder: Path) -> str:
    (folder / "p.toml").write_text(PROFILE)
    return str(folder / "p.toml")


def clip(folder: Path) -> Path:
    if not (folder / "clip.mkv").exists():
        pictures = [NOISE.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(25)]
        write_clip(
            folder / "clip.mkv", pictures, [(0.0, NOISE.integers(-9999, 9999, 16_000, dtype=np.int16))]
        )
    return folder / "clip.mkv"


ALL: Final = (*FORMATS, "trim", "repair", "import", "fuse", "fuse film")


def only_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    return lines[0]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk, writing fails behind so many bytes of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [0, 3_000, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    path: Path, folder: Path, name: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = commands(path, folder / "target")[name]
    with files_of_at_most(size):
        code = run(arguments)
    line = only_line(capsys)
    assert code == SessionError.exit_code, line
    assert line.startswith(f"perception: cannot write {folder / 'target'}: "), line
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_an_existing_place_is_refused_and_stays_as_it_was(
    path: Path, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "target").write_text("mine")
    assert run(commands(path, folder / "target")[name]) == SessionError.exit_code
    assert only_line(capsys) == f"perception: {folder / 'target'} exists; remove it or choose another name"
    assert (folder / "target").read_text() == "mine"
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("name", [*FORMATS, "trim"])
def test_an_output_of_nothing_is_an_error(
    path: Path, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*commands(path, folder / "target")[name], "--topics", "camera/none"]
    assert run(arguments) == SessionError.exit_code
    assert only_line(capsys)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ALL)
def test_what_is_whole_is_there_and_only_its_owner_can_access_it(path: Path, folder: Path, name: str) -> None:
    target = folder / "target"
    assert run(commands(path, target)[name]) == 0
    assert list(folder.iterdir()) == [target]
    assert stat.S_IMODE(target.stat().st_mode) == (0o700 if target.is_dir() else 0o600)


SLOW: Final = """
import signal, sys, time
from perception.cli.main import run
from perception.session.file.mcap_file import McapFile

records = McapFile.records

def slowly(self, *arguments):
    for number, record in enumerate(records(self, *arguments)):
        if number == 30:
            while True:  # one long sleep misses a signal that comes just before it
                print("half", flush=True)
                time.sleep(0.01)
        yield record

McapFile.records = slowly
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["media", "trim", "fuse"])
def test_interrupted_half_way_it_leaves_nothing(
    path: Path, folder: Path, name: str, number: signal.Signals
) -> None:
    arguments: Any = [sys.executable, "-c", SLOW, *commands(path, folder / "target")[name]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert list(folder.iterdir())
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []


def test_a_hang_up_that_is_ignored_stays_so(path: Path, folder: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLOW
    arguments: Any = [sys.executable, "-c", ignored, *commands(path, folder / "target")["trim"]]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGHUP)
        after = [process.stdout.readline() for _ in range(100)]
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert set(after) == {"half\n"}
    assert process.returncode == 130


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SessionError, match=r"cannot write .*file/target"),
        beside(tmp_path / "file" / "target"),
    ):
        pass


def test_a_source_that_fails_is_not_taken_for_the_target(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"^/nowhere/at/all: No such file"), beside(tmp_path / "target"):
        Path("/nowhere/at/all").read_bytes()
    assert list(tmp_path.iterdir()) == []


def fill(path: Path) -> None:
    with SessionWriter(path) as writer:
        for seq in range(400):
            frame = streams.frame(seq, streams.START_NS + seq * 100 * streams.MS, width=64, height=48)
            pixels = NOISE.integers(0, 256, 64 * 48, dtype=np.uint8).tobytes()
            writer.write(Message(frame.topic, frame.header, pixels, frame.header.stamp_ns))


def test_a_recording_on_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.mcap"
    with files_of_at_most(30_000), pytest.raises(SessionError, match=r"cannot write .*r\.mcap"):
        fill(path)
    with Session(path) as session:
        assert len(list(session.messages())) >= 5
        assert session.damage


@pytest.mark.parametrize("name", ALL)
def test_a_terminal_shows_how_far_it_is(
    path: Path,
    folder: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what is no terminal counts as one
    assert run(commands(path, folder / "target")[name]) == 0
    others = {"trim": "copying", "repair": "copying", "import": "importing", "fuse": "fusing"}
    doing = others.get(name.partition(" ")[0], "exporting")
    assert doing in capsys.readouterr().err
