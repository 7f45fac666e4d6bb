"""The capture nodes as processes: what they publish, how they end, how they refuse."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest
from msgspec import structs

from perception.bus.host import HostClock, Runtime, base_directory
from perception.bus.keys import new_keys
from perception.bus.subscriber import Subscriber
from perception.messages import AudioBlock, CameraFrame, Header, Health, Message, TextCommand
from perception.units import SECOND_NS
from tests.media import RATE_HZ, grey, noise, write_clip
from tests.mjpeg import camera_server
from tests.waiting import LONG_S


class Nodes:
    """Starts capture nodes in a separate runtime directory with a separate profile; ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.profile = folder / "test.toml"
        self.origin_ns = 0
        self.base = base_directory()
        self.clock = HostClock(self.base).now_ns
        self._started: list[subprocess.Popen[bytes]] = []

    def write(self, *sections: str) -> None:
        self.profile.write_text("\n".join(('domain = "t"', *sections)))

    def start(self, kind: str, name: str = "x", **environment: str) -> "subprocess.Popen[bytes]":
        origin = {"PERCEPTION_ORIGIN_NS": str(self.origin_ns)} if self.origin_ns else {}
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", f"perception.nodes.{kind}", str(self.profile), "--name", name),
            env=os.environ | origin | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def subscribe(self, *patterns: str) -> Subscriber:
        return Subscriber(*patterns, runtime=Runtime("t", base=self.base), clock=self.clock)

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    nodes.close()


def ending(process: "subprocess.Popen[bytes]") -> tuple[int, str]:
    """Wait for a node's end; return its exit code and stderr."""
    _, errors = process.communicate(timeout=LONG_S)
    return process.returncode, errors.decode()


def test_a_file_is_published_as_camera_and_microphone_together(nodes: Nodes) -> None:
    lap = round(0.48 * RATE_HZ)
    sound = noise(lap)
    clip = write_clip(nodes.folder / "clip.mkv", [grey(20 * number) for number in range(12)], [(0.0, sound)])
    source = f'source = "{clip}"\nloop = true'
    nodes.write(f"[camera.x]\n{source}\nwidth = 64\nheight = 48\n[microphone.x]\n{source}")
    nodes.origin_ns = nodes.clock()
    frames: list[Message[Header]] = []
    blocks: list[Message[Header]] = []
    with nodes.subscribe("camera/*", "microphone/*") as bus:
        for kind in ("camera", "microphone"):
            nodes.start(kind)
        while len(frames) < 14 or len(blocks) < 30:
            message = bus.receive(LONG_S)
            assert message is not None
            (frames if isinstance(message.header, CameraFrame) else blocks).append(message)
    shown_ms = [(frame.header.stamp_ns - nodes.origin_ns) / 1e6 for frame in frames]
    assert all(at_ms % 480 / 40 == pytest.approx(round(at_ms % 480 / 40), abs=1e-3) for at_ms in shown_ms)
    first = blocks[0].header
    assert isinstance(first, AudioBlock)
    assert first.stamp_ns - nodes.origin_ns == first.sample_index * SECOND_NS // RATE_HZ
    received = np.frombuffer(b"".join(bytes(block.payload) for block in blocks), "<i2")
    assert np.array_equal(received, np.resize(np.roll(sound, -first.sample_index), len(received)))


def test_the_end_of_a_file_is_told_in_a_last_health_message(nodes: Nodes) -> None:
    clip = write_clip(nodes.folder / "clip.mkv", [grey(6 * number) for number in range(40)])
    nodes.write(f'[camera.x]\nsource = "{clip}"\nwidth = 64\nheight = 48\nencoding = "mono8"')
    with nodes.subscribe("camera/*", "health/*") as bus:
        node = nodes.start("camera")
        frames: list[Message[Header]] = []
        final = Health(stamp_ns=0, node="none")
        while final.reason != "end of file":
            message = bus.receive(LONG_S)
            assert message is not None
            if isinstance(message.header, Health):
                final = message.header
            else:
                frames.append(message)
        assert ending(node)[0] == 0
    assert final.status == "ok"
    assert final.outputs["camera/x"] >= len(frames)  # a busy machine may open the file when it is over
    assert {len(frame.payload) for frame in frames} <= {64 * 48}


def test_the_condition_of_a_signal_is_published_with_its_data_and_in_health(nodes: Nodes) -> None:
    clip = write_clip(nodes.folder / "clip.mkv", [grey(0)] * 100, [(0.0, np.zeros(4 * RATE_HZ, np.int16))])
    source = f'source = "{clip}"\nloop = true'
    nodes.write(f"[camera.x]\n{source}\nwidth = 64\nheight = 48\n[microphone.x]\n{source}")
    expected = {
        *(("camera/x", "black"), ("health/camera-x", "black")),
        *(("microphone/x", "silent"), ("health/microphone-x", "silent")),
    }
    received: set[tuple[str, str]] = set()
    with nodes.subscribe("camera/*", "microphone/*", "health/*") as bus:
        for kind in ("camera", "microphone"):
            nodes.start(kind)
        while not expected <= received:
            message = bus.receive(LONG_S)
            assert message is not None
            header = message.header
            assert isinstance(header, CameraFrame | AudioBlock | Health)
            received.add((message.topic, header.condition))
            if isinstance(header, Health) and header.condition == "black":
                assert (header.status, header.reason[:20]) == ("degraded", "the picture is black")


def test_a_camera_whose_pictures_are_all_damaged_says_so_and_how_many(nodes: Nodes) -> None:
    pictures = count()

    def damaged(picture: bytes) -> bytes:
        return picture if next(pictures) < 5 else picture[:-60] + b"\xff\xd9"

    with camera_server(damage=damaged) as server, nodes.subscribe("health/*") as bus:
        source = f"http://127.0.0.1:{server.server_port}/"
        nodes.write(f'[camera.x]\nsource = "{source}"\nwidth = 64\nheight = 48\nrate_hz = 60')
        nodes.start("camera")
        health = Health(stamp_ns=0, node="none")
        while health.status != "lost":
            message = bus.receive(LONG_S)
            assert message is not None
            assert isinstance(message.header, Health)
            health = message.header
    assert (
        found := re.fullmatch(r"the device delivers damaged data: (\d+) items in a row .*", health.reason)
    )
    assert 10 < int(found[1]) <= health.counts["corrupt"]


def test_a_camera_that_disconnects_is_reconnecting_and_then_starting_again(nodes: Nodes) -> None:
    def health(bus: Subscriber, condition: str) -> Health:
        while True:
            message = bus.receive(LONG_S)
            assert message is not None
            if isinstance(message.header, Health) and message.header.condition == condition:
                return message.header

    with nodes.subscribe("health/*", "camera/*") as bus:
        with camera_server() as server:
            port = server.server_port
            nodes.write(f'[camera.x]\nsource = "http://127.0.0.1:{port}/"\nwidth = 64\nheight = 48')
            nodes.start("camera")
            assert health(bus, "starting").status == "ok"
        gone = health(bus, "reconnecting")
        with camera_server(port=port):
            assert health(bus, "starting").status == "ok"
            frames = (found.header for found in iter(lambda: bus.receive(LONG_S), None))
            again = next(header for header in frames if isinstance(header, CameraFrame))
    assert (gone.status, again.condition) == ("lost", "starting")
    assert gone.reason.startswith(f"http://127.0.0.1:{port}/")


def test_off_the_host_raw_frames_travel_encrypted_as_jpeg(nodes: Nodes) -> None:
    keys = new_keys(nodes.folder / "keys")
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    camera = '[camera.x]\nsource = "scripted"\nwidth = 64\nheight = 48\nencoding = "bgr8"'
    nodes.write(f'keys = "{keys}"', camera, f'endpoint = "{endpoint}"')
    remote = Subscriber(
        "camera/x",
        runtime=Runtime("far", nodes.folder / "far"),  # readers of one runtime directory are on one host
        clock=nodes.clock,
        connect={"camera/x": endpoint},
        keys=keys,
    )
    with nodes.subscribe("camera/x") as bus, remote:
        nodes.start("camera")
        here: dict[int, Message[Header]] = {}
        there: dict[int, Message[Header]] = {}
        while len(here.keys() & there.keys()) < 3:
            for subscriber, frames in ((bus, here), (remote, there)):
                message = subscriber.receive(LONG_S)
                assert message is not None
                frames[message.header.seq] = message
    for seq in here.keys() & there.keys():
        raw, jpeg = here[seq].header, there[seq].header
        assert isinstance(raw, CameraFrame)
        assert raw.encoding == "bgr8"
        assert jpeg == structs.replace(raw, encoding="jpeg")
        image = cv2.imdecode(np.frombuffer(there[seq].payload, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        seen = np.frombuffer(here[seq].payload, np.uint8).reshape(48, 64, 3)
        assert np.abs(image.astype(int) - seen).mean() < 10


def test_typed_lines_are_published_until_the_terminal_closes(nodes: Nodes) -> None:
    nodes.write('[text.x]\nsource = "terminal"\nlanguage = "de"')
    with nodes.subscribe("text/*") as bus:
        node = nodes.start("text")
        assert node.stdin is not None
        message = None
        while message is None:  # repeated until the subscriber is connected
            node.stdin.write(b"komm her\n")
            node.stdin.flush()
            message = bus.receive(0.2)
        assert message is not None
        assert isinstance(message.header, TextCommand)
        assert (message.header.text, message.header.language) == ("komm her", "de")
        code, errors = ending(node)
    assert (code, errors.strip().endswith("end of input")) == (0, True)


def test_a_node_is_small_knows_no_torch_and_stops_cleanly(nodes: Nodes) -> None:
    clip = write_clip(nodes.folder / "clip.mkv", [grey(20 * number) for number in range(12)])
    nodes.write(f'[camera.x]\nsource = "{clip}"\nloop = true')
    with nodes.subscribe("camera/*") as bus:
        node = nodes.start("camera")
        assert bus.receive(LONG_S) is not None
        assert bus.receive(LONG_S) is not None
        status = Path(f"/proc/{node.pid}/status").read_text()
        libraries = Path(f"/proc/{node.pid}/maps").read_text()
        node.send_signal(signal.SIGINT)
        code, errors = ending(node)
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) / 1000 < 150
    assert "libtorch" not in libraries
    assert (code, errors) == (0, "")


def test_what_cannot_run_is_one_line_and_its_exit_code(nodes: Nodes) -> None:
    nodes.write(
        '[camera.x]\nsource = 97\n[camera.file]\nsource = "none.mp4"\n[camera.no]\nsource = 98',
        '[microphone.x]\nsource = "default"\n[text.x]\nsource = "none.txt"',
    )
    broken = nodes.folder / "broken"
    broken.mkdir()
    # What sounddevice itself does where the library is missing.
    (broken / "sounddevice.py").write_text('raise OSError("PortAudio library not found")\n')
    no_library = "ImportError: libGL.so.1: cannot open shared object file"
    blind = nodes.folder / "blind"
    blind.mkdir()
    (blind / "cv2.py").write_text(f"raise ImportError({no_library[13:]!r}, name='cv2')\n")
    expected = {
        nodes.start("camera", "no", PYTHONPATH=str(blind)): (
            9,
            f"perception: cv2 cannot be imported: lacks a system library ({no_library}); apt-get install ",
        ),
        nodes.start("camera"): (3, "perception: camera /dev/video97: no such device; "),
        nodes.start("camera", "file"): (3, "perception: none.mp4: no such file"),
        nodes.start("camera", "rear"): (
            2,
            "perception: camera.rear: no such section; the profile has x, file, no",
        ),
        nodes.start("microphone", PYTHONPATH=str(broken)): (
            9,
            "perception: PortAudio is not installed: apt-get install libportaudio2",
        ),
        nodes.start("text"): (3, "perception: none.txt: cannot be read: No such file or directory"),
    }
    for process, (code, line) in expected.items():
        ended, errors = ending(process)
        assert (ended, errors[: len(line)], errors.count("\n")) == (code, line, 1)


def test_a_recorder_that_recorded_nothing_fails_and_names_the_topics(nodes: Nodes) -> None:
    nodes.write("[recorder]", f'out = "{nodes.folder}/run.mcap"', 'topics = ["camera/*"]')
    recorder = nodes.start("recorder")
    assert recorder.stderr is not None
    assert b"recording to" in recorder.stderr.readline()
    recorder.send_signal(signal.SIGTERM)
    code, errors = ending(recorder)
    assert code == 7
    assert errors.count("perception:") == 2, errors
    assert "run.mcap: nothing was recorded: no node published camera/*" in errors


def test_a_device_whose_driver_blocks_while_it_opens_is_lost_until_it_has(nodes: Nodes) -> None:
    """A pipe that nobody writes to blocks its reader, as a driver may."""
    pipe = nodes.folder / "lines"
    os.mkfifo(pipe)
    nodes.write("[text.x]", f'source = "{pipe}"')
    with nodes.subscribe("health/*") as bus:
        node = nodes.start("text")

        def next_health(wanted: str) -> Health:
            while (message := bus.receive(LONG_S)) is not None:
                if isinstance(message.header, Health) and message.header.status == wanted:
                    return message.header
            raise AssertionError("none came")

        assert re.fullmatch(r"the device has not opened for \d+ s", next_health("lost").reason)
        pipe.write_text("30\tcome here\n")
        next_health("ok")
        node.send_signal(signal.SIGTERM)
        assert ending(node)[0] == 0
        blocked = nodes.start("text")
        next_health("lost")
        blocked.send_signal(signal.SIGTERM)
        assert ending(blocked)[0] == 0
