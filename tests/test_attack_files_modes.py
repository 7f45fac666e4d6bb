"""What was recorded, and what was made from it, is not readable by other users, whatever the umask."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from perception.io.beside import beside, replace_file
from perception.messages import Header, Message
from perception.models.feature_cache import Cache
from perception.profile import RecorderConfig
from perception.session import Session, SessionWriter
from perception.session.convert import export_media, export_webdataset, rosbag
from perception.session.edit import trim
from perception.session.recorder import Recorder
from perception.training import fit_state
from tests import streams


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def scene() -> list[Message[Header]]:
    sources = [streams.camera_stream(1), streams.microphone_stream(1), streams.text_stream(1)]
    return streams.arrivals(sources, lambda message: 0)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for message in scene():
            writer.write(message)
    return tmp_path / "s.mcap"


def readable_by_others(path: Path) -> list[str]:
    """Return what other users can access: the path, and what is below it."""
    return [str(one) for one in (path, *path.rglob("*")) if one.stat().st_mode & 0o077]


def test_attack_other_users_read_no_session(session: Path, tmp_path: Path) -> None:
    trim(session, tmp_path / "part.mcap", end_s=0.5)
    assert readable_by_others(session) == readable_by_others(tmp_path / "part.mcap") == []


def test_attack_other_users_read_no_recording_while_it_is_written(tmp_path: Path) -> None:
    with Recorder(tmp_path / "live.mcap", RecorderConfig(), {}) as recorder:
        for message in scene():
            recorder.write(message, message.received_ns)
        assert readable_by_others(recorder.path) == []


@pytest.mark.parametrize("write", [export_media.write, export_webdataset.write, rosbag.write])
def test_attack_other_users_read_no_export(session: Path, tmp_path: Path, write: object) -> None:
    with Session(session) as opened:
        list(write(opened, tmp_path / "out"))  # type: ignore[operator]
    assert (tmp_path / "out").is_dir()
    assert any((tmp_path / "out").iterdir())
    assert readable_by_others(tmp_path / "out") == []


def test_attack_other_users_read_no_index_and_no_features(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "s.index")
    cache.put("a", {"vectors": torch.zeros(2, 3)})
    assert cache.get("a") is not None
    assert readable_by_others(tmp_path / "s.index") == []


def test_attack_other_users_read_no_training_state_and_no_report(tmp_path: Path) -> None:
    fit_state.save(tmp_path / "head.state" / "fit.pt", {"of": "x", "weights": torch.zeros(2)})
    assert readable_by_others(tmp_path / "head.state") == []
    replace_file(tmp_path / "sheet.png", b"faces")
    assert readable_by_others(tmp_path / "sheet.png") == []


def test_attack_other_users_read_no_checkpoint(tmp_path: Path) -> None:
    with beside(tmp_path / "head") as part:
        (part / "encoders").mkdir(parents=True)
        (part / "encoders" / "config.json").write_text("{}")
        np.save(part / "weights.npy", np.zeros(3))
        with tarfile.open(part / "a.tar", "w"):
            pass
    assert readable_by_others(tmp_path / "head") == []


def test_a_link_in_a_written_folder_leaves_its_target_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "shared.txt").write_text("public")
    (tmp_path / "shared.txt").chmod(0o644)
    with beside(tmp_path / "out") as part:
        part.mkdir()
        (part / "link").symlink_to(tmp_path / "shared.txt")
    assert (tmp_path / "shared.txt").stat().st_mode & 0o777 == 0o644
