"""`session fuse`: a film, a bag or a session in, a session of states out, and no graph anywhere."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from perception.cli.main import run
from perception.errors import ProfileError, SessionError
from perception.messages import FusedState
from perception.profile import load
from perception.session import Session, SessionWriter, read, replay
from perception.session.convert import import_media, rosbag
from perception.session.convert.fuse import fuse, mapped
from perception.session.recompute.compare import without_measured
from perception.session.recompute.perturb import Perturbed, stamp_leap
from tests.media import RATE_HZ, write_clip
from tests.streams import Stream, scripted_room

PROFILE = """
[fusion]
threads = 1
lateness_ms = 120
[fusion.inputs]
camera = { topic = "camera/front" }
microphone = { topic = "microphone/main" }
text = { topic = "text/*" }
[fusion.encoders]
motion = { input = "camera", kind = "motion" }
level = { input = "microphone", kind = "level" }
[fusion.head]
classes = ["calm", "lively"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuse")
    (folder / "p.toml").write_text(PROFILE)
    return folder


@pytest.fixture(scope="module")
def profile(folder: Path) -> str:
    return str(folder / "p.toml")


def record(path: Path, stream: Stream, **metadata: object) -> Path:
    with SessionWriter(path) as writer:
        for name, value in metadata.items():
            writer.add_metadata(name, value)
        for message in stream:
            writer.write(message)
    return path


@pytest.fixture(scope="module")
def session(folder: Path, profile: str) -> Path:
    return record(folder / "room.mcap", scripted_room(), profile=load(profile).model_dump(mode="json"))


@pytest.fixture(scope="module")
def film(folder: Path) -> Path:
    """Two seconds of noise, seen and heard."""
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    return write_clip(
        folder / "film.mkv", pictures, [(0.0, rng.integers(-9999, 9999, 2 * RATE_HZ, np.int16))]
    )


def states(path: Path) -> list[FusedState]:
    return [one.header for one in read(path, ["state/*"]) if isinstance(one.header, FusedState)]


def test_the_states_of_a_session_are_those_of_a_replay(session: Path, tmp_path: Path) -> None:
    lines = list(fuse(session, tmp_path / "s.mcap"))
    found = states(tmp_path / "s.mcap")
    assert [without_measured(state) for state in found] == list(replay(session))
    assert lines[0] == "text: absent, the source has no further text"
    assert lines[1] == f"state/fused: {len(found)} states: {_counted(state.fused.label for state in found)}"
    assert lines[2].startswith("camera (camera/front): present ")
    with Session(session) as source, Session(tmp_path / "s.mcap") as made:
        assert made.zero == source.zero
        assert made.metadata["profile"] == load_metadata(source)
        assert made.metadata["fused"]["from"] == str(session)
        assert any(name.startswith("model ") for name in made.metadata)
        assert [one.received_ns for one in made.messages()] == [state.stamp_ns for state in found]


def load_metadata(session: Session) -> object:
    return session.metadata["profile"]


def _counted(labels: object) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(labels).most_common())  # type: ignore[call-overload]


def test_a_film_is_fused_as_it_would_be_imported(film: Path, profile: str, tmp_path: Path) -> None:
    lines = list(fuse(film, tmp_path / "s.mcap", load(profile)))
    assert "camera: reads camera/video" in lines
    assert "microphone: reads microphone/video" in lines
    assert "text: absent, the source has no further text" in lines
    list(import_media.read(film, tmp_path / "imported.mcap"))
    config = load(profile).fusion
    assert config is not None
    names = {"camera": "camera/video", "microphone": "microphone/video"}
    inputs = {
        name: one.model_copy(update={"topic": names.get(name, one.topic)})
        for name, one in config.inputs.items()
    }
    renamed = load(profile).model_copy(update={"fusion": config.model_copy(update={"inputs": inputs})})
    found = states(tmp_path / "s.mcap")
    assert [without_measured(state) for state in found] == list(replay(tmp_path / "imported.mcap", renamed))
    assert len(found) in (19, 20)
    seen = {(name, one.modalities[name].presence) for one in found for name in names}
    assert {("camera", "present"), ("microphone", "present")} <= seen
    assert found[-1].modalities["camera"].condition == "noise"  # as the film is
    assert sorted(file.name for file in tmp_path.iterdir()) == ["imported.mcap", "s.mcap"]


def test_a_bag_is_fused(session: Path, profile: str, tmp_path: Path) -> None:
    with Session(session) as opened:
        list(rosbag.write(opened, tmp_path / "bag", ["camera/*", "microphone/*"]))
    list(fuse(tmp_path / "bag", tmp_path / "s.mcap", load(profile)))
    present = Counter(state.modalities["camera"].presence for state in states(tmp_path / "s.mcap"))
    assert present["present"] >= 35


def test_inputs_take_what_is_there_of_their_modality_once(profile: str) -> None:
    config = load(profile).fusion
    assert config is not None
    again = config.model_copy(
        update={
            "inputs": config.inputs
            | {"second": config.inputs["camera"].model_copy(update={"topic": "camera/b"})}
        }
    )
    topics = ["camera/x", "camera/front", "camera/y", "text/a", "text/b", "state/fused", "microphone/m"]
    found, lines = mapped(again, topics)
    read_by = {name: one.topic for name, one in found.inputs.items()}
    assert read_by == {
        "camera": "camera/front", "microphone": "microphone/m", "text": "text/*", "second": "camera/x"
    }  # fmt: skip
    assert lines == ["microphone: reads microphone/m", "second: reads camera/x", "camera/y: read by no input"]
    assert mapped(config, ["camera/front", "microphone/main", "text/a"]) == (config, [])


def test_the_command_says_what_came_of_it_and_ends_with_the_right_code(
    session: Path, profile: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leapt = record(
        tmp_path / "leapt.mcap", list(Perturbed(scripted_room(), stamp_leap("camera", ms=9e3, at_s=1.0)))
    )
    target = tmp_path / "s.mcap"
    assert run(["session", "fuse", str(leapt), "--profile", profile, "--out", str(target)]) == 0
    output = capsys.readouterr().out
    assert "camera/front: refused: stamp ahead (1 times)" in output
    assert output.endswith(f"{target}: written\n")
    target.unlink()
    silent = record(
        tmp_path / "text.mcap", [one for one in scripted_room() if one.topic.startswith("label/")]
    )
    for arguments, code, reason in (
        ([str(silent), "--profile", profile], SessionError.exit_code, "no input reads any of its streams"),
        ([str(leapt)], SessionError.exit_code, "contains no profile; give the one it was recorded with"),
        (
            [str(session), "--set", "fusion.hop_ms=50"],
            ProfileError.exit_code,
            "add --profile, or leave --set out",
        ),
        ([str(tmp_path / "none.mp4"), "--profile", profile], 3, "no such file"),
    ):
        assert run(["session", "fuse", *arguments, "--out", str(target)]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
        assert not target.exists()
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".mcap", ".mcap"]


def test_a_session_that_is_too_short_for_a_state_leaves_no_file(profile: str, tmp_path: Path) -> None:
    path = record(tmp_path / "short.mcap", [structs.replace(one) for one in scripted_room()[:2]])
    with pytest.raises(SessionError, match=r"short\.mcap: no state computed: .* shorter than a tick"):
        list(fuse(path, tmp_path / "s.mcap", load(profile)))
    assert [file.name for file in tmp_path.iterdir()] == ["short.mcap"]
