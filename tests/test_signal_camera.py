"""The judge of pictures: each fault is named within 2.5 s, and good pictures never are."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import pytest

from perception.devices.device import CapturedFrame
from perception.devices.scripted import open_scripted_camera
from perception.devices.signal.frames import FrameJudge
from perception.devices.video import FileSource
from perception.profile import CameraConfig, ScriptConfig
from perception.profile.signal import CameraSignal
from perception.units import SECOND_NS
from tests.camera_faults import FAULTS, Picture, Pictures, clipped, clock, jpeg
from tests.media import write_coded

RATE_HZ: Final = 15
GOOD_S: Final = 4.0
NOTICED_S: Final = 2.5
WIDTH, HEIGHT = 160, 120


@cache
def room(seed: int = 4) -> Picture:
    """Return a furnished room, larger than a picture."""
    rng = np.random.default_rng(seed)
    shape = (HEIGHT + 40, WIDTH + 80, 3)
    walls = cv2.GaussianBlur(rng.integers(0, 255, shape, np.uint8), (0, 0), 12).astype(float)
    image = clipped(60 + (walls - walls.min()) * 120 / np.ptp(walls))
    for _ in range(60):
        x, y = (int(rng.integers(0, end - 30)) for end in (shape[1], shape[0]))
        corner = (x + int(rng.integers(6, 30)), y + int(rng.integers(6, 30)))
        cv2.rectangle(image, (x, y), corner, rng.integers(20, 236, 3).tolist(), -1)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 0.6), np.uint8)


def still(seconds: float, *, noise: float = 2.0, light: float = 1.0, rate_hz: int = RATE_HZ) -> list[Picture]:
    """Return a room in which nothing moves, with the noise of a sensor."""
    rng = np.random.default_rng(7)
    scene = room()[:HEIGHT, :WIDTH] * light
    shape = scene.shape
    return [clipped(scene + rng.normal(0, noise, shape)) for _ in range(round(seconds * rate_hz))]


@cache
def lively(seconds: float = GOOD_S + NOTICED_S) -> Sequence[Picture]:
    """Return a room that a camera pans over, with the noise of a sensor, after JPEG."""
    rng = np.random.default_rng(8)
    shown = []
    for number in range(round(seconds * RATE_HZ)):
        left = round(20 + 15 * np.sin(number / 9))
        top = round(10 + 8 * np.sin(number / 7))
        scene = room()[top : top + HEIGHT, left : left + WIDTH]
        shown.append(jpeg(clipped(scene + rng.normal(0, 2.0, scene.shape)), 90))
    return shown


def conditions(
    pictures: Pictures, rate_hz: float = RATE_HZ, *, raw: bool = False, limits: CameraSignal | None = None
) -> list[str]:
    """Return the condition after each picture."""
    judge = FrameJudge(limits)
    named: list[str] = []
    for number, picture in enumerate(pictures):
        judge.update(CapturedFrame(picture, round(number * SECOND_NS / rate_hz) + 1, raw=raw))
        named.append(judge.condition)
        assert bool(judge.reason) == (judge.condition != "ok")
    return named


UNSEEN: Final = {"frozen, quality counts", "torn, one picture late", "torn, ten late", "slight defocus"}
"""Faults that look like a good picture in some scenes; the benchmark counts them."""


@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in UNSEEN])
def test_a_fault_of_a_lively_scene_is_named_within_its_time(fault: str) -> None:
    rightly, make = FAULTS[fault]
    start = round(GOOD_S * RATE_HZ)
    good = lively()
    named = conditions([*good[:start], *make(good, start, np.random.default_rng(3))])
    assert set(named[:start]) == {"ok"}
    assert named[-1] in rightly


@pytest.mark.parametrize("fault", ["identical", "clock over frozen", "two buffers", "looped second", "black"])
def test_a_fault_of_a_still_room_is_named_by_the_noise_it_lacks(fault: str) -> None:
    rightly, make = FAULTS[fault]
    good, start = still(GOOD_S + NOTICED_S), round(GOOD_S * RATE_HZ)
    named = conditions([*good[:start], *make(good, start, np.random.default_rng(3))])
    assert set(named[:start]) == {"ok"}
    assert named[-1] in rightly


@pytest.mark.parametrize("fault", ["identical", "hand", "defocus", "torn, shifted", "white noise"])
def test_a_grey_camera_is_judged_alike(fault: str) -> None:
    rightly, make = FAULTS[fault]
    good = [np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), np.uint8) for picture in lively()]
    start = round(GOOD_S * RATE_HZ)
    assert conditions([*good[:start], *make(good, start, np.random.default_rng(3))])[-1] in rightly


@pytest.mark.parametrize("size", [(64, 48), (1280, 720)])
def test_pictures_of_other_sizes_are_judged_alike(size: tuple[int, int]) -> None:
    good = [np.asarray(cv2.resize(picture, size), np.uint8) for picture in lively()]
    start = round(GOOD_S * RATE_HZ)
    assert set(conditions(good)) == {"ok"}
    for fault in ("identical", "hand", "two buffers"):
        rightly, make = FAULTS[fault]
        assert conditions([*good[:start], *make(good, start, np.random.default_rng(3))])[-1] in rightly


def test_bars_beside_a_picture_hide_no_fault() -> None:
    good = [
        cv2.copyMakeBorder(picture, 30, 30, 0, 0, cv2.BORDER_CONSTANT).astype(np.uint8)
        for picture in lively()
    ]
    start = round(GOOD_S * RATE_HZ)
    assert set(conditions(good)) == {"ok"}
    for fault in ("identical", "over-exposed", "hand"):
        rightly, make = FAULTS[fault]
        inner = make(lively(), start, np.random.default_rng(3))
        faulty = [
            cv2.copyMakeBorder(one, 30, 30, 0, 0, cv2.BORDER_CONSTANT).astype(np.uint8) for one in inner
        ]
        assert conditions([*good[:start], *faulty])[-1] in rightly


def test_a_raw_camera_that_starts_frozen_is_named_even_with_a_clock() -> None:
    picture = still(0.1)[0]
    assert conditions([picture] * 45, raw=True)[-1] == "frozen"
    assert conditions([clock(picture, number) for number in range(45)], raw=True)[-1] == "frozen"
    assert set(conditions([picture] * 45)) == {"ok"}, "coded pictures of a still room may be equal"


def test_pictures_that_live_again_are_ok_again() -> None:
    good, start = lively(), round(GOOD_S * RATE_HZ)
    rng = np.random.default_rng(3)
    for fault in ("identical", "black", "hand", "defocus", "dead red", "torn, shifted", "looped second"):
        faulty = FAULTS[fault][1](good, start, rng)
        named = conditions([*good[:start], *faulty, *good[:start]])
        assert named[-1] == "ok", fault


def test_one_odd_picture_is_no_condition() -> None:
    good = list(lively())
    for number in range(20, len(good), 30):
        good[number] = np.zeros_like(good[number])
        good[number + 5] = np.full_like(good[number], 255)
    assert set(conditions(good)) == {"ok"}


def light_switched(factor: float) -> Iterator[Picture]:
    yield from still(4)
    yield from still(4, light=factor)


HARMLESS: Final[dict[str, Callable[[], Iterable[Picture]]]] = {
    "pan": lambda: lively(),
    "still": lambda: still(6),
    "6 % light": lambda: still(6, light=0.06, noise=1.0),
    "3 % light": lambda: still(6, light=0.03, noise=0.7),
    "noise of the night": lambda: still(6, light=0.3, noise=20.0),
    "light switched off": lambda: light_switched(0.06),
    "light dimmed": lambda: light_switched(0.3),
    "light switched on": lambda: light_switched(1.6),
    "white wall": lambda: [
        clipped(np.random.default_rng(n).normal(225, 2, (HEIGHT, WIDTH, 3))) for n in range(90)
    ],
    "flicker": lambda: [clipped(one * (1 + 0.15 * (n % 2))) for n, one in enumerate(still(6))],
    "clock": lambda: [clock(one, n) for n, one in enumerate(still(6))],
    "rain": lambda: [_rain(one, n) for n, one in enumerate(still(6))],
    "an object passes": lambda: [_passing(one, n) for n, one in enumerate(still(8))],
    "cut to another scene": lambda: [*still(4), *(one[::-1, ::-1] // 2 for one in still(4))],
    "grey picture": lambda: [np.repeat(one[..., :1], 3, axis=2) for one in still(5)],
    "small stripes that jump": lambda: [_stripes(n) for n in range(90)],
    "cartoon": lambda: [_cartoon(n) for n in range(90)],
}


def _rain(picture: Picture, number: int) -> Picture:
    rng = np.random.default_rng(number)
    for _ in range(80):
        x, y = int(rng.integers(0, WIDTH)), int(rng.integers(0, HEIGHT))
        cv2.line(picture, (x, y), (x + 1, y + 9), (200, 200, 200), 1)
    return picture


def _passing(picture: Picture, number: int) -> Picture:
    left = number * 3 - 100
    cv2.rectangle(picture, (left, 20), (left + 90, 110), (240, 240, 240), -1)
    return picture


def _stripes(number: int) -> Picture:
    across, down = np.meshgrid(np.arange(64), np.arange(48))
    phase = np.random.default_rng(number).uniform(0, 6.3)
    return clipped(128 + 100 * np.sin((across + 0.6 * down) * 1.4 + phase)[..., None].repeat(3, axis=2))


def _cartoon(number: int) -> Picture:
    picture = np.full((HEIGHT, WIDTH, 3), (230, 180, 90), np.uint8)
    picture[80:] = (60, 160, 60)
    cv2.circle(picture, (20 + number, 60), 15, (40, 40, 220), -1)
    return picture


@pytest.mark.parametrize("scene", HARMLESS)
def test_what_is_only_unusual_is_ok(scene: str) -> None:
    assert set(conditions(list(HARMLESS[scene]()))) == {"ok"}


@pytest.mark.parametrize("rate_hz", [1, 5, 60])
def test_any_rate_is_judged_by_time(rate_hz: int) -> None:
    pictures = still(12 if rate_hz < 10 else 4, rate_hz=rate_hz)
    assert set(conditions(pictures, rate_hz, raw=True)) == {"ok"}
    assert set(conditions([jpeg(one, 80) for one in pictures], rate_hz)) == {"ok"}
    assert conditions([*pictures, *pictures[-1:] * max(5 * rate_hz, 5)], rate_hz)[-1] == "frozen"


X264: Final = {"preset": "veryfast", "bf": "0"}
CODINGS: Final = {
    "mjpeg": ("mjpeg", {"qscale": "5"}, 2.0, 1.0, False),
    "crf 23": ("libx264", X264 | {"crf": "23", "g": "30"}, 2.0, 1.0, False),
    "crf 28": ("libx264", X264 | {"crf": "28", "g": "60"}, 2.0, 1.0, False),
    "crf 35": ("libx264", X264 | {"crf": "35", "g": "150"}, 2.0, 1.0, False),
    "quiet sensor": ("libx264", X264 | {"crf": "28", "g": "60"}, 1.0, 1.0, False),
    "constant rate": ("libx264", X264 | {"b": "60k", "maxrate": "60k", "bufsize": "120k"}, 2.0, 1.0, False),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:keyint=100:crf=32"},
        *(2.0, 1.0, False),
    ),
    "dark": ("libx264", X264 | {"crf": "28", "g": "60"}, 1.0, 0.08, False),
    "a clock in the corner": ("libx264", X264 | {"crf": "35", "g": "150"}, 1.0, 1.0, True),
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_live_camera_in_a_still_room_causes_no_warning(tmp_path: Path, coding: str) -> None:
    codec, options, noise_level, light, clock = CODINGS[coding]
    rng = np.random.default_rng(4)
    walls = cv2.GaussianBlur(rng.integers(0, 255, (120, 160, 3), np.uint8), (0, 0), 5).astype(float)
    walls = (walls - walls.min()) * 255 / np.ptp(walls)
    images = []
    for number in range(75):
        seen = walls * light + rng.normal(0, noise_level, walls.shape)
        if clock:
            seen[100:110, 20 : 60 + number // 15] = 255
        images.append(np.clip(seen, 0, 255).astype(np.uint8))
    path = write_coded(tmp_path / "room.mkv", codec, images, rate_hz=15, options=options)
    judge, now_ns = FrameJudge(), [0]
    config = CameraConfig(source=str(path), width=160, height=120)
    source = FileSource(str(path), config, clock=lambda: now_ns[0], origin_ns=0, stop=threading.Event())
    now_ns[0] = 1 << 60
    named: set[str] = set()
    for _ in images:
        shown = source.read()
        assert shown is not None
        judge.update(shown)
        named.add(judge.condition)
    source.close()
    assert named == {"ok"}


def test_the_scripted_room_is_ok_at_any_light() -> None:
    config = CameraConfig(source="scripted", width=160, height=120, rate_hz=10)
    now_ns = [0]

    def wait(seconds: float) -> None:
        now_ns[0] += round(seconds * SECOND_NS)

    camera = open_scripted_camera(
        config, ScriptConfig(seed=1001), clock=lambda: now_ns[0], origin_ns=0, wait=wait
    )
    judge, named = FrameJudge(), set[str]()
    for _ in range(600):
        frame = camera.read(1.0)
        assert frame is not None
        judge.update(frame)
        named.add(judge.condition)
    assert named == {"ok"}


def test_thresholds_are_those_of_the_profile() -> None:
    good, start = lively(), round(GOOD_S * RATE_HZ)
    assert (
        conditions([*good[:start], *[good[start - 1]] * 12], limits=CameraSignal(frozen_s=0.5))[-1]
        == "frozen"
    )


def test_a_short_film_that_is_played_in_a_loop_is_ok() -> None:
    film = [*lively()[:RATE_HZ]] * 5
    assert conditions(film)[-1] == "frozen"
    assert set(conditions(film, limits=CameraConfig(source="film.mp4", loop=True).limits)) == {"ok"}


def test_pictures_of_any_size_and_of_changing_sizes_are_judged_without_error() -> None:
    rng = np.random.default_rng(5)
    judge = FrameJudge()
    for number in range(400):
        if number % 5 == 0:
            shape = (int(rng.integers(1, 90)), int(rng.integers(1, 90)), *((3,) if number % 2 else ()))
        picture = clipped(rng.normal(rng.integers(0, 256), rng.integers(0, 60), shape))
        judge.update(CapturedFrame(picture, number * SECOND_NS // 10))
        assert (judge.condition != "ok") == bool(judge.reason)
