"""Cameras on real files and a real HTTP stream; the driver's stamps and the rate limit as plain functions."""

import threading
import time
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from perception.devices.backoff import Backoff
from perception.devices.camera import DeviceSource, driver_stamp_ns, open_camera
from perception.devices.device import CapturedFrame, Device
from perception.devices.grabber import Grabber, RateLimit
from perception.devices.wire import frame_message
from perception.errors import DeviceError
from perception.profile import CameraConfig, ScriptConfig
from perception.units import SECOND_NS
from tests.media import HEIGHT, WIDTH, grey, write_clip
from tests.mjpeg import LEVELS, mjpeg_server
from tests.waiting import LONG_S, eventually

ORIGIN_NS = 1_700_000_000 * SECOND_NS


class Clock:
    """Stands at the origin until it is started, so opening a file may be slow."""

    def __init__(self) -> None:
        self._started_ns: int | None = None

    def start(self) -> None:
        self._started_ns = time.monotonic_ns()

    def __call__(self) -> int:
        return ORIGIN_NS + (0 if self._started_ns is None else time.monotonic_ns() - self._started_ns)


def camera_on(source: int | str, clock: Clock | None = None, **options: object) -> Device[CapturedFrame]:
    config = CameraConfig.model_validate({"source": source, "width": WIDTH, "height": HEIGHT} | options)
    clock = clock or Clock()
    camera = open_camera(config, ScriptConfig(), clock=clock, origin_ns=ORIGIN_NS)
    clock.start()
    return camera


def frames_until_end(camera: Device[CapturedFrame]) -> list[CapturedFrame]:
    frames: list[CapturedFrame] = []
    with camera:
        while True:
            try:
                frame = camera.read(LONG_S)
            except EOFError:
                return frames
            if frame is not None:
                frames.append(frame)


def wait_for(camera: Device[CapturedFrame], status: str) -> None:
    def reached() -> bool:
        camera.read(0.05)
        return camera.report().status == status

    eventually(reached)


def test_a_file_is_played_in_real_time_with_its_own_stamps(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(20 * number) for number in range(10)])
    begun_ns = time.monotonic_ns()
    camera = camera_on(str(path))
    frames = frames_until_end(camera)
    assert time.monotonic_ns() - begun_ns >= 0.36 * SECOND_NS
    levels = {round((frame.stamp_ns - ORIGIN_NS) / 40e6): frame.image.mean() for frame in frames}
    assert len(levels) + camera.report().counts.get("superseded", 0) == 10  # a loaded machine skips some
    assert max(levels) == 9
    assert all(abs(level - 20 * number) < 3 for number, level in levels.items())
    assert all((frame.stamp_ns - ORIGIN_NS) % 40_000_000 == 0 for frame in frames)


def test_a_file_loops_on_request(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(50), grey(200)])
    bright = dark = 0
    with camera_on(str(path), loop=True) as camera:
        while bright < 3 or dark < 3:
            frame = camera.read(LONG_S)
            assert frame is not None
            bright += frame.image.mean() > 150
            dark += frame.image.mean() < 100


def test_frames_have_the_size_the_profile_asks_for(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(50)] * 2)
    frames = frames_until_end(camera_on(str(path), width=32, height=16))
    assert {frame.image.shape for frame in frames} == {(16, 32, 3)}
    assert frames[0].image.dtype == np.uint8


def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(20 * number) for number in range(12)])
    with camera_on(str(path)) as camera:
        eventually(lambda: camera.report().counts.get("superseded") == 11)
        newest = camera.read(0.0)
    assert newest is not None
    assert round(newest.image.mean() / 20) == 11


def test_a_faster_file_is_thinned_to_the_wanted_rate(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(90)] * 12)
    camera = camera_on(str(path), rate_hz=12.5)
    read = len(frames_until_end(camera))
    counts = camera.report().counts
    assert 5 <= counts["over_rate"] <= 7
    assert read + counts["over_rate"] + counts.get("superseded", 0) == 12


def test_an_mjpeg_stream_is_followed_with_stamps_of_arrival() -> None:
    clock = Clock()
    asked_ns: list[int] = []
    stamps_ns: list[int] = []
    seen: set[int] = set()
    with mjpeg_server() as port, camera_on(f"http://127.0.0.1:{port}/", clock, rate_hz=100) as camera:
        while len(stamps_ns) < 10 or seen != set(LEVELS):
            asked_ns.append(clock())
            frame = camera.read(LONG_S)
            assert frame is not None
            assert frame.stamp_ns <= clock()
            stamps_ns.append(frame.stamp_ns)
            seen.add(min(LEVELS, key=lambda level: abs(level - frame.image.mean())))
    # one frame waits and one is being decoded when the next is requested
    assert all(requested < stamp for requested, stamp in zip(asked_ns, stamps_ns[2:], strict=False))
    assert all(earlier < later for earlier, later in pairwise(stamps_ns))


def test_a_stream_that_dies_is_lost_and_taken_up_again_when_it_comes_back() -> None:
    with mjpeg_server() as port:
        camera = camera_on(f"http://user:secret@127.0.0.1:{port}/")
        wait_for(camera, "ok")
        assert camera.read(LONG_S) is not None
    with camera:
        wait_for(camera, "lost")
        assert f"http://127.0.0.1:{port}/" in camera.report().reason
        with mjpeg_server(port):
            wait_for(camera, "ok")
            assert camera.read(LONG_S) is not None
        assert camera.report().counts["lost"] >= 1
        assert camera.report().counts["reopened"] >= 1


class Dying:
    """A camera that can always be opened, and fails at its first frame."""

    counts: ClassVar[dict[str, int]] = {}
    facts: ClassVar[dict[str, str | float]] = {}

    def read(self) -> CapturedFrame:
        raise DeviceError("stopped delivering")

    def close(self) -> None: ...


def test_a_source_that_opens_and_dies_again_and_again_is_tried_ever_more_seldom() -> None:
    backoff = Backoff(first_s=0.001, longest_s=0.01)
    with Grabber(lambda stop: Dying(), rate_hz=30, backoff=backoff) as grabber:
        eventually(lambda: grabber.report().counts.get("reopened", 0) >= 5)
    assert backoff.failures >= 5


class Blocking(Dying):
    """A camera whose driver does not return from the first `blocks` opened ones until it is released."""

    def __init__(self, blocks: bool, released: threading.Event, closed: list[object]) -> None:
        self._blocks = blocks
        self._released = released
        self._closed = closed

    def read(self) -> CapturedFrame:
        if self._blocks:
            self._released.wait()
        return CapturedFrame(np.zeros((2, 2, 3), np.uint8), time.monotonic_ns())

    def close(self) -> None:
        self._closed.append(self)


def test_a_read_that_its_driver_blocks_is_abandoned_and_the_camera_opened_again() -> None:
    released, opened = threading.Event(), count()
    closed: list[object] = []
    with Grabber(
        lambda stop: Blocking(next(opened) == 0, released, closed),
        rate_hz=1000,
        backoff=Backoff(first_s=0.001),
        stuck_s=0.05,
    ) as grabber:
        first = grabber._grab
        eventually(lambda: grabber.read(0.01) is not None)
        report = grabber.report()
        assert report.status == "ok"
        assert report.counts["blocked"] == report.counts["reopened"] == 1
        assert closed == []
        released.set()
        eventually(lambda: len(closed) == 1)  # the abandoned thread closes what it had opened
        assert first.read(0.0) is not None
        assert grabber.read(LONG_S) is not None
    assert len(closed) == 2


def test_a_driver_that_blocks_every_time_is_lost_with_the_reason_and_closing_does_not_wait() -> None:
    released = threading.Event()
    with Grabber(
        lambda stop: Blocking(True, released, []), rate_hz=1000, backoff=Backoff(0.001, 0.001), stuck_s=0.02
    ) as grabber:
        eventually(lambda: grabber.read(0.01) is None and grabber.report().counts.get("blocked", 0) >= 3)
        eventually(lambda: grabber.read(0.001) is None and grabber.report().status == "lost")
        assert grabber.report().reason == "the driver has not returned for 0.02 s"
        with pytest.raises(DeviceError, match="has blocked 9 times in a row"):
            eventually(lambda: grabber.read(0.01) is not None)
    released.set()


def test_a_back_off_is_forgiven_by_what_works_well_only() -> None:
    backoff = Backoff()
    delays = [backoff.failed(worked_s) for worked_s in (0, 9.9, 3, 10.0, 0)]
    assert delays == [0.5, 1.0, 2.0, 0.5, 1.0]
    assert max(backoff.failed(0) for _ in range(2000)) == 10.0


def test_what_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no film at all\n" * 100)
    with pytest.raises(DeviceError, match=r"camera /dev/video97: no such device; "):
        camera_on(97)
    with pytest.raises(DeviceError, match=r"camera /dev/null: not a camera, or in use by another program"):
        camera_on("/dev/null")
    with pytest.raises(DeviceError, match=r"none\.mp4: no such file"):
        camera_on(str(tmp_path / "none.mp4"))
    with pytest.raises(DeviceError, match=r"notes\.mp4: cannot be opened: Invalid data"):
        camera_on(str(text))
    with pytest.raises(DeviceError, match=r"http://127\.0\.0\.1:9/: cannot be opened: Connection refused"):
        camera_on("http://user:secret@127.0.0.1:9/")
    with pytest.raises(DeviceError, match="camera 'webcam': not a device index, /dev path, file or URL"):
        camera_on("webcam")


def test_a_file_without_a_single_whole_frame_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", [grey(90)] * 3)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xff\xd8\xff")])
    with pytest.raises(DeviceError, match=r"a\.mkv: no video can be decoded; is the file damaged, "):
        camera_on(str(path))


@dataclass
class Memory:
    data: memoryview


@pytest.mark.parametrize("encoding", ["bgr8", "mono8"])
@pytest.mark.parametrize("width", [WIDTH, WIDTH // 2])
def test_a_device_writes_raw_frames_where_they_are_published_from(
    tmp_path: Path, encoding: str, width: int
) -> None:
    path = str(write_clip(tmp_path / "a.mkv", [grey(20 * number) for number in range(4)]))
    sizes: list[int] = []

    def lend(size: int) -> Memory:
        sizes.append(size)
        return Memory(memoryview(bytearray(size)))

    options = {"source": path, "width": width, "height": HEIGHT, "encoding": encoding}
    config = CameraConfig.model_validate(options)
    lending, plain = (
        DeviceSource(path, config, clock=time.monotonic_ns, lend=way, open_device=cv2.VideoCapture)
        for way in (lend, None)
    )
    for _ in range(4):
        written, copied = lending.read(), plain.read()
        assert written is not None
        assert copied is not None
        assert isinstance(written.lent, Memory)
        assert np.shares_memory(written.image, np.frombuffer(written.lent.data, np.uint8))
        assert frame_message(written, config)[1] == written.lent.data
        assert bytes(written.lent.data) == bytes(frame_message(copied, config)[1])
    assert set(sizes) == {width * HEIGHT * (3 if encoding == "bgr8" else 1)}
    for source in (lending, plain):
        source.close()


def test_a_device_asks_for_no_memory_for_jpeg(tmp_path: Path) -> None:
    path = str(write_clip(tmp_path / "a.mkv", [grey(9)]))
    config = CameraConfig.model_validate({"source": path, "width": WIDTH, "height": HEIGHT})
    source = DeviceSource(
        path,
        config,
        clock=time.monotonic_ns,
        lend=lambda _: pytest.fail("requested"),
        open_device=cv2.VideoCapture,
    )
    frame = source.read()
    assert frame is not None
    assert frame.lent is None
    source.close()


def test_a_drivers_buffer_time_is_mapped_to_the_host_clock() -> None:
    assert driver_stamp_ns(5_000.0, 5_020_000_000, 90 * SECOND_NS) == 90 * SECOND_NS - 20_000_000


@pytest.mark.parametrize("position_ms", [0.0, -1.0, 5_021.0, 3_900.0, 1.79e12])
def test_a_position_that_is_no_buffer_time_is_not_believed(position_ms: float) -> None:
    assert driver_stamp_ns(position_ms, 5_020_000_000, 90 * SECOND_NS) is None


@pytest.mark.parametrize(("source_hz", "wanted_hz", "kept_hz"), [(60, 31, 30), (90, 31, 30), (30, 31, 30)])
def test_the_rate_limit_keeps_evenly(source_hz: int, wanted_hz: float, kept_hz: int) -> None:
    limit = RateLimit(wanted_hz)
    kept = [number for number in range(10 * source_hz) if limit.admits(number * SECOND_NS // source_hz)]
    assert len(kept) == pytest.approx(10 * kept_hz, rel=0.05)


def test_the_rate_limit_leaves_a_jittering_source_of_the_right_rate_alone() -> None:
    limit = RateLimit(31.5)
    jitter = np.random.default_rng(1).normal(0, 5e6, 3000)
    admitted = [limit.admits(round(number * SECOND_NS / 30 + jitter[number])) for number in range(3000)]
    assert np.mean(admitted) > 0.995
