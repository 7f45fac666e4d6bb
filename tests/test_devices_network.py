"""Network cameras: all variants of JPEG over HTTP, damage, delays and stamps."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from av.packet import Packet

from perception.devices.arrival import StreamClock
from perception.devices.backlog import Arrived, Backlog
from perception.devices.backoff import Backoff
from perception.devices.camera import DeviceSource, open_camera
from perception.devices.device import CapturedFrame, Device
from perception.devices.grabber import Grabber
from perception.devices.network import StreamSource
from perception.errors import DeviceError
from perception.profile import CameraConfig, ScriptConfig
from perception.units import SECOND_NS
from tests.lossy import SIZE, film, lossy, pictures_of, played
from tests.media import HEIGHT, WIDTH, grey, write_clip
from tests.mjpeg import DIALECTS, LEVELS, MULTIPART, camera_server, jpeg, part, raw_server
from tests.waiting import LONG_S, eventually

OK: Final = f"HTTP/1.0 200 OK\r\nContent-Type: {MULTIPART}\r\n\r\n".encode()
NOISE: Final = np.random.default_rng(1)


def config(source: str, **options: object) -> CameraConfig:
    size = {"width": WIDTH, "height": HEIGHT, "rate_hz": 200}
    return CameraConfig.model_validate(size | {"source": source} | options)


def camera(source: str, **options: object) -> Device[CapturedFrame]:
    return open_camera(config(source, **options), ScriptConfig(), clock=time.time_ns, origin_ns=0)


def next_of(device: Device[CapturedFrame]) -> CapturedFrame:
    frame = device.read(LONG_S)
    assert frame is not None
    return frame


def level_of(frame: CapturedFrame) -> int:
    assert np.ptp(frame.image) < 6  # plain, so of one picture
    return min(LEVELS, key=lambda level: abs(level - frame.image.mean()))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_that_browsers_show_is_followed(dialect: str) -> None:
    seen: Counter[int] = Counter()
    with (
        camera_server(dialect, period_s=0.005) as server,
        camera(f"http://127.0.0.1:{server.server_port}/") as device,
    ):
        while len(seen) < len(LEVELS) or seen.total() < 12:
            seen[level_of(next_of(device))] += 1
        report = device.report()
    assert report.status == "ok"
    assert not {"corrupt", "lost"} & report.counts.keys()
    assert report.facts["format"] == "http/mjpeg"
    assert server.requests == 1  # some cameras serve one reader only


def test_the_address_of_a_single_picture_is_asked_again_and_again() -> None:
    seen: set[int] = set()
    with (
        camera_server("no multipart", pictures=1) as server,
        camera(f"http://127.0.0.1:{server.server_port}/", rate_hz=50) as device,
    ):
        while seen != set(LEVELS):
            seen.add(level_of(next_of(device)))
        assert "lost" not in device.report().counts
    assert server.requests >= 3


def test_a_web_page_is_no_camera_and_says_so() -> None:
    with (
        raw_server(b"HTTP/1.0 200 OK\r\nContent-Length: 20\r\n\r\n<html>log in</html>\n") as port,
        pytest.raises(DeviceError, match=r"127\.0\.0\.1:\d+/: returns a web page"),
    ):
        camera(f"http://127.0.0.1:{port}/")


def test_a_password_of_any_characters_reaches_the_camera() -> None:
    with camera_server() as server, camera(f"http://admin:a/s@127.0.0.1:{server.server_port}/") as device:
        assert next_of(device).image.shape == (HEIGHT, WIDTH, 3)
        assert device.report().facts["source"] == f"http://127.0.0.1:{server.server_port}/"


def scenes() -> list[npt.NDArray[np.uint8]]:
    """Two unlike pictures, after coding."""
    noise = (NOISE.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(2))
    return [cv2.GaussianBlur(one, (0, 0), 2).astype(np.uint8) for one in noise]


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.astype(np.uint8)


DAMAGE: Final = {
    "cut": lambda data: data[: len(data) // 3],
    "cut and ended": lambda data: data[: len(data) // 3] + b"\xff\xd9",
    "a piece lost": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 300 :],
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)])
def test_a_damaged_picture_is_never_published_and_counted(kind: str, options: tuple[int, ...]) -> None:
    quality = (cv2.IMWRITE_JPEG_QUALITY, 95, *options)
    good = [cv2.imencode(".jpg", scene, quality)[1].tobytes() for scene in scenes()]
    whole = [decoded(one).astype(int) for one in good]
    sent = cycle([good[0], good[1], DAMAGE[kind](good[0]), good[1], DAMAGE[kind](good[1])])
    frames = 0
    with (
        camera_server(damage=lambda _: next(sent)) as server,
        camera(f"http://127.0.0.1:{server.server_port}/") as device,
    ):
        while frames < 6 or device.report().counts.get("corrupt", 0) < 4:
            image = next_of(device).image.astype(int)
            assert min(np.abs(image - one).mean() for one in whole) < 3
            frames += 1


def test_usb_cameras_hand_over_their_jpeg_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    class V4L2:
        """As OpenCV's V4L2 reader: the bytes as sent, if conversion is off."""

        def __init__(self, path: str) -> None:
            self._capture = cv2.VideoCapture(path)

        def __getattr__(self, name: str) -> Any:
            return (lambda: "V4L2") if name == "getBackendName" else getattr(self._capture, name)

        def set(self, key: int, value: float) -> bool:
            raw = key == cv2.CAP_PROP_CONVERT_RGB and not value
            return self._capture.set(cv2.CAP_PROP_FORMAT, -1) if raw else False

    path = write_clip(tmp_path / "a.mkv", [scene for scene in scenes() for _ in range(3)])
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    middle = (starts[1] + starts[2]) // 2
    data[middle : middle + 300] = bytes(300)
    path.write_bytes(data)
    source = DeviceSource(str(path), config(str(path)), clock=lambda: 0, open_device=V4L2)  # type: ignore[arg-type]
    frames = [source.read() for _ in range(6)]
    source.close()
    assert [frame is None for frame in frames] == [False, True, False, False, False, False]
    assert source.counts == {"corrupt": 1}
    assert not any(frame.raw for frame in frames if frame is not None)
    shown = [frame.image.astype(int) for frame in frames if frame is not None]
    assert np.abs(shown[0] - shown[1]).mean() < 5
    assert np.abs(shown[1] - shown[2]).mean() > 10


@pytest.mark.parametrize(("form", "raw"), [("YUYV", True), ("NV12", True), ("MJPG", False), ("H264", False)])
def test_a_device_says_which_frames_no_coding_has_smoothed(tmp_path: Path, form: str, raw: bool) -> None:
    class Reporting:
        """Reports a pixel format as V4L2 does."""

        def __init__(self, path: str) -> None:
            self._capture = cv2.VideoCapture(path)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._capture, name)

        def get(self, key: int) -> float:
            return cv2.VideoWriter.fourcc(*form) if key == cv2.CAP_PROP_FOURCC else self._capture.get(key)

    path = str(write_clip(tmp_path / "a.mkv", [grey(90)]))
    source = DeviceSource(path, config(path), clock=lambda: 0, open_device=Reporting)  # type: ignore[arg-type]
    frame = source.read()
    source.close()
    assert frame is not None
    assert frame.raw is raw


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_video_that_lost_packets_is_refused_until_the_next_whole_key_frame(
    tmp_path: Path, codec: str
) -> None:
    path = film(tmp_path / "film.ts", codec)
    whole = pictures_of(path)
    broken = lossy(path, tmp_path / "lossy.ts")
    shown, counted = played(broken)
    assert all(min(np.abs(one - other).mean() for other in whole) < 3 for one in shown)
    assert len(whole) - 4 <= len(shown) + counted < len(whole) + 8
    source = StreamSource(f"file://{broken}", config("http://camera/", **SIZE), clock=time.time_ns)
    published: list[npt.NDArray[np.int64]] = []
    with suppress(DeviceError):  # its server ends it
        while True:
            frame = source.read()
            if frame is not None:
                published.append(frame.image.astype(np.int64))
    source.close()
    assert published
    assert all(min(np.abs(one - other).mean() for other in whole) < 3 for one in published)
    assert sum(source.counts.values()) + len(published) >= len(whole) - 4


def arrivals(pattern: str, period_ns: int = SECOND_NS // 10) -> Iterator[Arrived]:
    for number, letter in enumerate(pattern):
        packet: Packet = Packet(4)  # type: ignore[type-arg]
        packet.is_keyframe, packet.pts = letter == "K", number
        yield Arrived(packet, number * period_ns)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("K", [0]),
        ("KKKKK", [4]),  # pictures of their own: only the newest
        ("Kpp", [0, 1, 2]),  # each is needed for the next
        ("KppppKpp", [5, 6, 7]),
        ("Kppppppppppppp", []),  # over a second behind: continues with a key frame
        ("KpppppppppppppKp", [14, 15]),
    ],
)
def test_what_came_too_late_is_dropped_undecoded(pattern: str, left: list[int]) -> None:
    backlog = Backlog()
    for arrived in arrivals(pattern):
        backlog.put(arrived)
    assert [arrived.packet.pts for arrived in backlog.take(0)] == left
    assert backlog.counts["late"] == len(pattern) - len(left)
    assert backlog.take(0) == []
    backlog.end(DeviceError("over"))
    with pytest.raises(DeviceError, match="over"):
        backlog.take(LONG_S)


def test_a_slow_reader_gets_the_newest_picture_stamped_when_it_was_received() -> None:
    ticks = count()
    sent = [part(cv2.imencode(".jpg", grey(8 * number))[1].tobytes()) for number in range(30)]
    with raw_server(OK + b"".join(sent)) as port:
        source = StreamSource(
            f"http://127.0.0.1:{port}/", config("http://camera/"), clock=lambda: next(ticks)
        )
        eventually(lambda: source.counts.get("late") == 29)
        read_at = [next(ticks) for _ in range(1000)][-1]
        frame = source.read()
        assert frame is not None
        assert abs(frame.image.mean() - 8 * 29) < 2
        assert frame.stamp_ns == 29 < read_at
        assert source.facts["age_ms"] == round((read_at + 1 - 29) / 1e6, 1)
        source.close()


def test_a_camera_that_sends_no_whole_picture_is_lost_though_its_connection_stays() -> None:
    with raw_server(OK + part(jpeg(0)) + part(jpeg(1))[:-40]) as port:
        source = StreamSource(
            f"http://127.0.0.1:{port}/", config("http://camera/"), clock=time.time_ns, stall_s=0.2
        )
        eventually(source.read)
        with pytest.raises(DeviceError, match=r"sent no complete picture for 0\.2 s"):
            eventually(source.read)
        source.close()


def test_a_camera_that_is_lost_for_its_broken_pictures_says_how_many_there_were() -> None:
    pictures = count()

    def broken(picture: bytes) -> bytes:
        return picture if next(pictures) < 5 else picture[:-40]

    with camera_server(damage=broken) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        source = StreamSource(url, config(url), clock=time.time_ns, stall_s=0.5)
        eventually(source.read)
        with pytest.raises(DeviceError, match=r"sent no complete picture for 0\.5 s, [1-9]\d* were damaged"):
            eventually(lambda: source.read() and False)
        source.close()


def test_pictures_beyond_the_rate_are_not_decoded() -> None:
    with (
        camera_server(period_s=0.005) as server,
        camera(f"http://127.0.0.1:{server.server_port}/", rate_hz=10) as device,
    ):
        stamps_ns = [next_of(device).stamp_ns for _ in range(8)]
        counts = device.report().counts
    assert counts["over_rate"] + counts.get("late", 0) > 8
    assert (stamps_ns[-1] - stamps_ns[0]) / SECOND_NS > 5 / 10


def delays_of(
    sent_s: npt.NDArray[np.float64], delay_s: npt.NDArray[np.float64], *, rate: float = 1.0
) -> npt.NDArray[np.float64]:
    """Return how much before its arrival each packet is stamped, in seconds."""
    clock = StreamClock()
    stamps_ns = [
        clock.stamp_ns(round(sent * rate * 1e9), round((1e6 + sent + delay) * 1e9))
        for sent, delay in zip(sent_s, delay_s, strict=True)
    ]
    return 1e6 + sent_s + delay_s - np.array(stamps_ns) / 1e9


SENT_S: Final = np.arange(0, 30, 1 / 25)
JITTER_S: Final = np.random.default_rng(2).exponential(0.004, SENT_S.size) + 0.002


def test_a_delay_that_arrival_hides_shows_in_the_stamps() -> None:
    late = JITTER_S + np.where((SENT_S > 10) & (SENT_S < 13), 0.8, 0)
    found = delays_of(SENT_S, late)
    assert np.abs(found[SENT_S < 3]).max() < 1e-6  # it measures first
    within = (SENT_S > 6) & (SENT_S < 10)
    assert np.abs(found - JITTER_S)[within].max() < 0.01
    hidden = (SENT_S > 10.1) & (SENT_S < 12.9)
    assert np.abs(found - late)[hidden].max() < 0.08
    assert found[SENT_S > 13.1].max() < 0.1


def test_a_clock_that_drifts_is_followed() -> None:
    assert delays_of(SENT_S, JITTER_S, rate=1 - 300e-6).max() < 0.05


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.1, 2.0])
def test_a_nominal_rate_is_no_time_and_never_believed(rate: float) -> None:
    assert np.abs(delays_of(SENT_S, JITTER_S, rate=rate)).max() < 1e-6


def test_a_stream_that_starts_again_is_learnt_again() -> None:
    clock = StreamClock()
    for begin_s in (1000.0, 5.0, 9000.0):
        for number in range(250):
            arrival_ns = round((begin_s + 1e6) * 1e9) + number * SECOND_NS // 25
            stream_ns = round(begin_s * 1e9 / 3) + number * SECOND_NS // 25
            assert abs(arrival_ns - clock.stamp_ns(stream_ns, arrival_ns)) < 1e6
        assert clock.trusted
    assert clock.stamp_ns(None, 77) == 77


def test_a_camera_that_hangs_up_after_each_picture_is_asked_less_and_less_often() -> None:
    opened_s: list[float] = []

    class Dying:
        facts: Final[dict[str, str | float]] = {}
        counts: Final[dict[str, int]] = {"corrupt": 1}
        frame: CapturedFrame | None = CapturedFrame(grey(1), 1)

        def read(self) -> CapturedFrame | None:
            frame, self.frame = self.frame, None
            if frame is None:
                raise DeviceError("hung up")
            return frame

        def close(self) -> None:
            """Nothing to close."""

    def open_source(_: object) -> Dying:
        opened_s.append(time.monotonic())
        return Dying()

    with Grabber(open_source, rate_hz=1000, backoff=Backoff(first_s=0.05)) as grabber:
        eventually(lambda: len(opened_s) == 3)
        eventually(lambda: grabber.report().counts["lost"] == 3)
        assert grabber.report().counts["corrupt"] == 3
    assert opened_s[1] - opened_s[0] >= 0.05
    assert opened_s[2] - opened_s[1] >= 0.1


def test_a_photo_held_upright_stands_upright() -> None:
    left = grey(20)
    left[:, WIDTH // 2 :] = 230
    data = cv2.imencode(".jpg", left)[1].tobytes()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    exif = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    with (
        camera_server(damage=lambda _: data[:2] + exif + data[2:]) as server,
        camera(f"http://127.0.0.1:{server.server_port}/", width=HEIGHT, height=WIDTH) as device,
    ):
        image = next_of(device).image
    assert image.shape == (WIDTH, HEIGHT, 3)
    assert image[: WIDTH // 2 - 8].mean() < 40
    assert image[WIDTH // 2 + 8 :].mean() > 210
