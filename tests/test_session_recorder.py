"""The recorder splits, describes, watches the disk, and as a process loses nothing that it can help."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from perception.bus import codec
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.schema import golden_vectors
from perception.errors import DISTRIBUTION
from perception.messages import CameraFrame, Header, Health, Message, TextCommand
from perception.profile import Profile, RecorderConfig
from perception.session import Session, read
from perception.session.info import info
from perception.session.recorder import Recorder, describe
from perception.units import SECOND_NS
from perception.units.bounded import MAX_NAMES
from tests import streams
from tests.streams import START_NS
from tests.waiting import LONG_S

PLENTY = 10**12


def config(**changes: Any) -> RecorderConfig:
    return RecorderConfig.model_validate(changes)


def record(
    folder: Path, seconds: float, *, free_bytes: int = PLENTY, **changes: Any
) -> tuple[Recorder, list[Message[Header]]]:
    """Feed a recorder with camera and sound, each message at its own time, until it is full."""
    sources = [streams.camera_stream(seconds), streams.microphone_stream(seconds)]
    messages = streams.arrivals(sources, lambda message: 0)
    recorder = Recorder(folder / "r.mcap", config(**changes), {"profile": {}}, lambda _: free_bytes)
    for message in messages:
        if recorder.full:
            break
        recorder.write(message, streams.end_ns(message))
        recorder.tick(streams.end_ns(message))
    recorder.close()
    return recorder, messages


def test_everything_goes_to_one_file(tmp_path: Path) -> None:
    recorder, messages = record(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["r.mcap"]
    assert len(list(read(recorder.path))) == len(messages) == recorder.counts["messages"]


@pytest.mark.parametrize("limit", [{"split_minutes": 1 / 60}, {"split_mb": 0.05}])
def test_a_recording_is_split_by_time_or_size_and_nothing_falls_between(
    tmp_path: Path, limit: dict[str, Any]
) -> None:
    _, messages = record(tmp_path, 4, **limit)
    files = sorted(tmp_path.iterdir())
    assert len(files) >= 3
    assert files[0].name == "r-000.mcap"
    back = [message for file in files for message in read(file)]
    assert [(one.topic, one.header) for one in back] == [(one.topic, one.header) for one in messages]
    for file in files:
        with Session(file) as session:
            assert "profile" in session.metadata


def test_a_nearly_full_disk_ends_the_recording_cleanly(tmp_path: Path) -> None:
    recorder, messages = record(tmp_path, 2, free_bytes=10**6, min_free_mb=5)
    assert "1 MB are free" in recorder.full
    with Session(recorder.path) as session:
        assert session.closed_properly
        assert len(list(session.messages())) < len(messages)
        assert "1 MB" in session.metadata["recorded"]["stopped"]


def test_a_restarted_recorder_goes_on_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "r.mcap").write_bytes(b"from before")
    recorder, _ = record(tmp_path, 1)
    assert recorder.path.name == "r-000.mcap"
    assert (tmp_path / "r.mcap").read_bytes() == b"from before"


def test_models_and_devices_are_noted_when_first_heard_of_and_in_every_later_file(tmp_path: Path) -> None:
    parts = [[bytes.fromhex(part) for part in vector["parts"]] for vector in golden_vectors()]
    known = [codec.decode(one, received_ns=START_NS) for one in parts]
    recorder = Recorder(tmp_path / "r.mcap", config(split_mb=0.001), {}, lambda _: PLENTY)
    for number in range(3):
        now_ns = START_NS + number * SECOND_NS
        for message in known:
            recorder.write(structs.replace(message, received_ns=now_ns), now_ns)
        recorder.tick(now_ns + SECOND_NS)
    recorder.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    with Session(files[-1]) as session:
        assert session.metadata["model c0ffee"] == {"config_hash": "c0ffee", "weights_hash": "5eed"}
        assert session.metadata["device fusion"] == {"name": "cpu", "rate_hz": 10.0}
        states = session.counts["state/fused"]
        assert session.metadata["conditions"] == {"camera blurred": states}
    assert f"conditions: camera blurred {states}" in info(files[-1]).lines()


def test_a_device_that_another_one_replaces_is_noted_too(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", config(), {}, lambda _: PLENTY)
    for number, name in enumerate(["built in", "built in", "usb", "built in"]):
        device: dict[str, str | float] = {"name": name, "brightness": 100.0 + number}
        health = Health(stamp_ns=START_NS + number, node="camera-front", device=device)
        recorder.write(Message("health/camera-front", health), START_NS)
    recorder.close()
    with Session(tmp_path / "r.mcap") as session:
        assert {name: value for name, value in session.metadata.items() if name.startswith("device")} == {
            "device camera-front": {"name": "built in", "brightness": 100.0},
            "device camera-front 2": {"name": "usb", "brightness": 102.0},
        }


def test_notes_on_a_flood_of_nodes_are_bounded_and_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", config(), {}, lambda _: PLENTY)
    for number in range(MAX_NAMES + 100):
        header = Health(stamp_ns=START_NS + number, node=f"n{number}", device={"name": "usb"})
        recorder.write(Message("health/flood", header), START_NS)
    recorder.close()
    with Session(tmp_path / "r.mcap") as session:
        assert sum(name.startswith("device ") for name in session.metadata) == MAX_NAMES
        assert session.metadata["recorded"]["notes_left_out"] == 100
        assert session.metadata["recorded"]["messages"] == MAX_NAMES + 100


def test_more_topics_than_a_file_can_number_are_refused_and_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "r.mcap", config(), {}, lambda _: PLENTY)
    for number in range(65_537):
        recorder.write(Message(f"text/{number}", TextCommand(stamp_ns=START_NS + number, text="")), START_NS)
    recorder.close()
    assert recorder.counts["refused"] == 2
    with Session(tmp_path / "r.mcap") as session:
        assert len(session.topics or ()) == 65_535


def test_what_a_file_begins_with_says_how_it_came_about() -> None:
    notes = describe(Profile(domain="x"), anchor_ns=5)
    assert notes["profile"]["domain"] == "x"
    assert notes["clock"]["anchor_ns"] == 5
    assert {DISTRIBUTION, "numpy", "python"} <= set(notes["packages"])


def test_as_a_process_it_records_every_message_byte_for_byte(tmp_path: Path) -> None:
    profile, out = tmp_path / "p.toml", tmp_path / "out.mcap"
    profile.write_text(f'domain = "r"\n[recorder]\nout = "{out}"\n')
    runtime, clock = Runtime("r"), HostClock().now_ns
    node = subprocess.Popen(
        [sys.executable, "-P", "-m", "perception.nodes.recorder", str(profile)], stderr=subprocess.PIPE
    )
    sent: list[tuple[Header, bytes]] = []
    try:
        with Publisher("camera/a", source="c", runtime=runtime, clock=clock) as camera:
            assert camera.wait_for_subscriber(LONG_S)
            for number in range(60):  # as many as can wait while a busy machine keeps the recorder
                header = CameraFrame(stamp_ns=clock(), width=8, height=8, encoding="jpeg")
                payload = bytes([number]) * (1000 if number % 3 else 100_000)
                sent.append((camera.send(header, payload), payload))
            node.send_signal(signal.SIGINT)
            _, errors = node.communicate(timeout=LONG_S)
    finally:
        node.kill()
    assert node.returncode == 0, errors
    back = list(read(out, ["camera/a"]))
    assert [(one.header, bytes(one.payload)) for one in back] == sent
    assert [one.wire for one in back] == [codec.encode("camera/a", *one)[1] for one in sent]
    with Session(out) as session:
        assert session.closed_properly
        assert session.metadata["recorded"]["inputs"]["camera/a"]["lost"] == 0


def test_as_a_process_it_says_by_its_exit_code_that_the_disk_ended_it(tmp_path: Path) -> None:
    profile = tmp_path / "p.toml"
    profile.write_text(f'domain = "full"\n[recorder]\nout = "{tmp_path / "r.mcap"}"\nmin_free_mb = 1e9\n')
    command = [sys.executable, "-P", "-m", "perception.nodes.recorder", str(profile)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    assert ended.returncode == 7
    assert "perception: recording stopped: only" in ended.stderr
    assert "Traceback" not in ended.stderr
