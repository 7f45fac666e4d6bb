"""Sixty files made by ffmpeg are imported as ffprobe sees them: see `tests/media_table.py`."""

import shutil
from pathlib import Path

import pytest

from perception.messages import CameraFrame
from perception.training.media import ORIGIN_NS, MediaSource
from tests.media_table import Case, cases, compare, imported, make, probed


@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_file_is_imported_as_ffprobe_sees_it(tmp_path: Path, case: Case) -> None:
    path = make(case, tmp_path)
    theirs, ours = probed(path), imported(path, tmp_path / "s.mcap")
    deviation = compare(ours, theirs)
    assert deviation.is_within_a_frame, deviation
    assert (ours.size, ours.rate_hz, ours.channels) == (theirs.size, theirs.rate_hz, theirs.channels)
    played = MediaSource(path, tmp_path, "camera/front", None, 0.0).messages()
    frames = [message.header for message in played if isinstance(message.header, CameraFrame)]
    times_s = [(frame.stamp_ns - ORIGIN_NS) / 1e9 for frame in frames]
    assert times_s == pytest.approx(list(ours.times_s), abs=1e-6)
    assert all((frame.width, frame.height) == ours.size for frame in frames)
