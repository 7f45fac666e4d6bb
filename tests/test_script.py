"""The scripted devices: a script with known ground truth, equal for all processes."""

import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from perception.devices.device import CapturedBlock, CapturedFrame, CapturedLabel, CapturedText, Device
from perception.devices.scene import BORDER_NS, Scene
from perception.devices.script import ASSETS, CLASSES, Script, Segment
from perception.devices.scripted import (
    messages,
    open_scripted_camera,
    open_scripted_microphone,
    open_scripted_text,
)
from perception.devices.soundtrack import Soundtrack
from perception.devices.wire import block_message, frame_message, text_message
from perception.errors import MalformedMessageError
from perception.messages import AudioBlock, CameraFrame, Label, TextCommand
from perception.profile import CameraConfig, InputConfig, MicrophoneConfig, ScriptConfig
from perception.units import SECOND_NS

ORIGIN_NS = 1_700_000_000 * SECOND_NS
CAMERA = CameraConfig(source="scripted", width=160, height=120, rate_hz=30.0)
MICROPHONE = MicrophoneConfig(source="scripted")
SEED = ScriptConfig(seed=7)
CASCADE = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"


class Time:
    """A clock that moves only when a reader waits, or when a test sets it."""

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_ns = ORIGIN_NS + round(now_s * SECOND_NS)

    def clock(self) -> int:
        return self.now_ns

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now_ns += max(round(seconds * SECOND_NS), 1)


def camera(time: Time, config: CameraConfig = CAMERA) -> Device[CapturedFrame]:
    return open_scripted_camera(config, SEED, clock=time.clock, origin_ns=ORIGIN_NS, wait=time.wait)


def microphone(time: Time, config: MicrophoneConfig = MICROPHONE) -> Device[CapturedBlock]:
    return open_scripted_microphone(config, SEED, clock=time.clock, origin_ns=ORIGIN_NS, wait=time.wait)


def text(time: Time) -> Device[CapturedText | CapturedLabel]:
    return open_scripted_text(SEED, clock=time.clock, origin_ns=ORIGIN_NS, wait=time.wait)


@pytest.fixture(scope="module")
def script() -> Script:
    return Script(SEED)


@pytest.fixture(scope="module")
def hour(script: Script) -> list[Segment]:
    return list(script.segments(0, 3600 * SECOND_NS))


def middle(segment: Segment) -> int:
    return (segment.start_ns + segment.end_ns) // 2


# The script


def test_the_script_follows_from_the_seed_whatever_was_asked_before(hour: list[Segment]) -> None:
    fresh = Script(SEED)
    for segment in reversed(hour[::37]):
        assert fresh.segment(segment.index) == segment
        assert fresh.at(segment.start_ns) == fresh.at(segment.end_ns - 1) == segment
    assert [segment.name for segment in Script(ScriptConfig(seed=8)).segments(0, 60 * SECOND_NS)] != [
        segment.name for segment in fresh.segments(0, 60 * SECOND_NS)
    ]


def test_segments_follow_each_other_without_gap_for_2_to_7_seconds(hour: list[Segment]) -> None:
    assert hour[0].start_ns == 0
    for before, after in pairwise(hour):
        assert (before.end_ns, before.index + 1) == (after.start_ns, after.index)
        assert 2.5 <= (before.end_ns - before.start_ns) / SECOND_NS <= 7


def test_every_class_fills_at_least_7_percent_of_the_time(hour: list[Segment]) -> None:
    span: Counter[str] = Counter()
    for segment in hour:
        span[segment.name] += segment.end_ns - segment.start_ns
    assert set(span) == set(CLASSES)
    assert min(span.values()) >= 0.07 * sum(span.values())


def test_the_truth_is_what_is_shown_heard_and_said_together(hour: list[Segment]) -> None:
    for segment in hour:
        face, voice = segment.person is not None, segment.sound.voicing
        marker = segment.card is not None and segment.card.marker is not None
        match segment.name:
            case "idle":
                assert (face, voice, marker) == (False, "none", False)
            case "visitor":
                assert (face, voice, marker) == (True, "none", False)
            case "talking":
                assert (face, voice, marker) == (True, "speech", False)
            case "call":
                assert (face, voice, marker) == (False, "speech", False)
            case "clap":
                assert (voice, marker) == ("claps", False)
            case "marker":
                assert marker
            case "command":
                assert (face, marker, bool(segment.text)) == (True, False, True)


def test_no_single_sense_tells_the_class() -> None:
    hour = list(Script(ScriptConfig(seed=7, noise=0)).segments(0, 3600 * SECOND_NS))
    small_talk = tomllib.loads((ASSETS / "phrases.toml").read_text(encoding="utf-8"))["small_talk"]
    told_by_text = {segment.name for segment in hour if segment.text and segment.text not in small_talk}
    shown = {segment.name for segment in hour if segment.person}
    speech_classes = {segment.name for segment in hour if segment.sound.voicing == "speech"}
    assert told_by_text == {"command", "idle", "call"}
    assert shown == {"visitor", "talking", "command", "clap", "marker"}
    assert speech_classes == {"talking", "call", "command", "marker"}


def test_no_text_is_in_force_beyond_its_segment(hour: list[Segment]) -> None:
    ttl_ns = InputConfig(topic="text/terminal").ttl_ms * 1e6
    assert all(segment.end_ns - segment.start_ns >= ttl_ns for segment in hour if segment.text)
    assert all(segment.end_ns - segment.start_ns <= ttl_ns for segment in hour if segment.name == "command")


def test_disturbances_follow_the_noise_and_leave_the_truth_alone(hour: list[Segment]) -> None:
    calm, wild = (Script(ScriptConfig(seed=7, noise=noise)) for noise in (0, 4))
    for index, segment in enumerate(hour[:100]):
        assert calm.segment(index).name == wild.segment(index).name == segment.name
        assert (calm.segment(index).grain, calm.segment(index).objects) == (0, ())
        assert calm.segment(index).sound.backdrop_db == -np.inf


@pytest.mark.parametrize("seed", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_any_integer_of_64_bits_is_a_seed(seed: int) -> None:
    assert Script(ScriptConfig(seed=seed)).at(0).index == 0


def test_nothing_is_played_before_the_beginning(script: Script) -> None:
    with pytest.raises(ValueError, match="begins at 0"):
        script.at(-1)


# The scene


def test_a_picture_depends_on_its_moment_alone(script: Script) -> None:
    times_ns = np.random.default_rng(0).integers(0, 300 * SECOND_NS, 20).tolist()
    first, second = Scene(script, 160, 120), Scene(Script(SEED), 160, 120)
    pictures = {t_ns: first.at(t_ns) for t_ns in times_ns}
    for t_ns in reversed(times_ns):
        np.testing.assert_array_equal(second.at(t_ns), pictures[t_ns])
    assert not np.array_equal(first.at(0), first.at(33_333_333))


@pytest.mark.parametrize("size", [(16, 16), (320, 240), (641, 333), (1280, 720)])
def test_the_scene_fits_any_picture_size(script: Script, size: tuple[int, int]) -> None:
    scene = Scene(script, *size)
    for second in range(0, 40, 7):
        image = scene.at(second * SECOND_NS)
        assert (image.shape, image.dtype) == ((size[1], size[0], 3), np.dtype(np.uint8))


def test_a_face_in_view_is_found_and_posters_are_not(script: Script, hour: list[Segment]) -> None:
    cascade = cv2.CascadeClassifier(str(CASCADE))
    scene = Scene(script, 640, 480)
    clear = [segment for segment in hour[:40] if not any(item.in_front for item in segment.objects)]
    right = 0
    for segment in clear:
        grey = cv2.cvtColor(scene.at(middle(segment)), cv2.COLOR_BGR2GRAY)
        faces = cascade.detectMultiScale(grey, 1.15, 5, minSize=(60, 60))
        right += (len(faces) > 0) == (segment.person is not None)
    assert right >= 0.95 * len(clear)


def test_a_marker_in_view_is_read_as_the_script_wrote_it(script: Script, hour: list[Segment]) -> None:
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50))
    scene = Scene(script, 640, 480)
    cards = [segment.card for segment in hour[:150] if segment.name == "marker" and segment.card]
    times_ns = [middle(segment) for segment in hour[:150] if segment.name == "marker"]
    read = [detector.detectMarkers(scene.at(t_ns))[1] for t_ns in times_ns]
    right = sum(ids is not None and card.marker in ids for card, ids in zip(cards, read, strict=True))
    assert right >= 0.85 * len(cards)


def test_people_come_and_go_within_the_border_and_who_stays_is_in_view_throughout() -> None:
    calm = Script(ScriptConfig(seed=7, noise=0))
    cascade = cv2.CascadeClassifier(str(CASCADE))
    scene = Scene(calm, 320, 240)

    def found(t_ns: int) -> bool:
        return len(cascade.detectMultiScale(cv2.cvtColor(scene.at(t_ns), cv2.COLOR_BGR2GRAY), 1.15, 5)) > 0

    for before, after in pairwise(calm.segments(0, 60 * SECOND_NS)):
        border_ns = before.end_ns
        assert found(border_ns - BORDER_NS) == (before.person is not None)
        assert found(border_ns + BORDER_NS) == (after.person is not None)
        if before.person and before.person == after.person:
            assert found(border_ns)


# The sound


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_sound_is_the_same_however_it_is_cut(script: Script, rate_hz: int) -> None:
    count = 12 * rate_hz
    whole = Soundtrack(script, rate_hz).samples(0, count)
    track, cuts = Soundtrack(Script(SEED), rate_hz), np.random.default_rng(1).integers(0, count, 60)
    edges = [0, *sorted(cuts.tolist()), count]
    pieces = [track.samples(a, b - a) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert whole.dtype == np.float32
    assert np.abs(whole).max() <= 1


def test_what_is_heard_stands_out_of_the_backdrop(script: Script, hour: list[Segment]) -> None:
    track = Soundtrack(script, 16_000)
    for segment in hour[:40]:
        first, end = (track.first_sample(t_ns) for t_ns in (segment.start_ns, segment.end_ns))
        level_db = 10 * np.log10(np.mean(np.square(track.samples(first, end - first))))
        assert (level_db > -32) == (segment.sound.voicing != "none")


def test_a_voice_is_the_same_at_every_rate() -> None:
    calm = Script(ScriptConfig(seed=7, noise=0))
    segment = next(s for s in calm.segments(0, 60 * SECOND_NS) if s.sound.voicing == "speech")
    low, high = Soundtrack(calm, 16_000), Soundtrack(calm, 48_000)
    first = low.first_sample(segment.start_ns) + 1000
    a, b = low.samples(first, 16_000), high.samples(first * 3, 48_000)[::3]
    assert np.corrcoef(a, b)[0, 1] > 0.98


# The devices


def test_camera_stamps_lie_on_the_grid_and_never_drift() -> None:
    time = Time()
    device = camera(time)
    stamps = [frame.stamp_ns for _ in range(60) if (frame := device.read(1.0))]
    ticks = [round((stamp - ORIGIN_NS) * 30 / SECOND_NS) for stamp in stamps]
    assert ticks == list(range(ticks[0], ticks[0] + 60))
    assert stamps == [ORIGIN_NS + round(tick * SECOND_NS / 30) for tick in ticks]
    assert time.now_ns == stamps[-1]


def test_camera_shows_the_scene_of_its_stamp(script: Script) -> None:
    frame = camera(Time(12.0)).read(1.0)
    assert frame is not None
    scene = Scene(script, CAMERA.width, CAMERA.height)
    np.testing.assert_array_equal(frame.image, scene.at(frame.stamp_ns - ORIGIN_NS))


def test_a_late_reader_gets_the_newest_frame_and_the_others_are_counted() -> None:
    time = Time()
    device = camera(time)
    first = device.read(1.0)
    time.now_ns += SECOND_NS
    second = device.read(1.0)
    assert first is not None
    assert second is not None
    assert second.stamp_ns - first.stamp_ns == pytest.approx(SECOND_NS, abs=40_000_000)
    assert time.now_ns - second.stamp_ns < SECOND_NS / 30
    assert device.report().counts == {"skipped": 29}


def test_reading_gives_up_at_its_time_limit() -> None:
    time = Time(-5.0)
    with camera(time) as device:
        assert device.read(0.25) is None
        assert time.now_ns == ORIGIN_NS - 4_750_000_000
        frame = device.read(60.0)
    assert frame is not None
    assert frame.stamp_ns == ORIGIN_NS


@pytest.mark.parametrize(("rate_hz", "block_ms"), [(16_000, 32.0), (44_100, 20.0)])
def test_microphone_counts_samples_from_the_origin(rate_hz: int, block_ms: float) -> None:
    time = Time(3.0)
    config = MICROPHONE.model_copy(update={"rate_hz": rate_hz, "block_ms": block_ms, "channels": 2})
    device = microphone(time, config)
    expected = None
    for _ in range(50):
        block = device.read(1.0)
        assert block is not None
        size = len(block.samples)
        assert block.samples.shape == (round(rate_hz * block_ms / 1000), 2)
        assert block.sample_index == (expected if expected is not None else block.sample_index)
        assert block.stamp_ns == ORIGIN_NS + block.sample_index * SECOND_NS // rate_hz
        assert 0 <= time.now_ns - block.stamp_ns - size * SECOND_NS / rate_hz <= 1
        expected = block.sample_index + size
    assert device.report().counts == {"skipped": 0}


def test_sound_waits_a_second_for_a_slow_reader_then_leaves_a_counted_gap() -> None:
    time = Time()
    device = microphone(time)
    first = device.read(1.0)
    time.now_ns += 900_000_000
    second = device.read(0.0)
    time.now_ns += 5 * SECOND_NS
    third = device.read(0.0)
    assert isinstance(first, CapturedBlock)
    assert isinstance(second, CapturedBlock)
    assert isinstance(third, CapturedBlock)
    assert (second.sample_index, second.gap) == (512, 0)
    assert third.gap == third.sample_index - 1024 > 0
    assert device.report().counts == {"skipped": third.gap // 512}


def test_truth_and_text_come_at_their_segments_start(script: Script) -> None:
    time = Time()
    device = text(time)
    for segment in script.segments(0, 60 * SECOND_NS):
        label = device.read(10.0)
        start_ns, end_ns = ORIGIN_NS + segment.start_ns, ORIGIN_NS + segment.end_ns
        assert label == CapturedLabel(segment.name, start_ns, end_ns)
        assert time.now_ns == start_ns
        if segment.text:
            assert device.read(0.0) == CapturedText(segment.text, start_ns)


def test_whoever_joins_late_joins_the_present(script: Script) -> None:
    now_ns = middle(script.segment(1000))
    time = Time(now_ns / SECOND_NS)
    label, frame, block = text(time).read(0.0), camera(time).read(1.0), microphone(time).read(1.0)
    assert isinstance(label, CapturedLabel)
    assert label.name == script.segment(1000).name
    assert isinstance(frame, CapturedFrame)
    assert abs(frame.stamp_ns - ORIGIN_NS - now_ns) < 0.04 * SECOND_NS
    assert isinstance(block, CapturedBlock)
    assert abs(block.stamp_ns - ORIGIN_NS - now_ns) < 0.07 * SECOND_NS


def test_a_command_under_way_is_stamped_when_it_is_typed(script: Script) -> None:
    segment = next(one for one in script.segments(0, 600 * SECOND_NS) if one.text)
    time = Time((segment.start_ns + SECOND_NS) / SECOND_NS)
    device = text(time)
    assert device.read(0.0) == CapturedLabel(
        segment.name, ORIGIN_NS + segment.start_ns, ORIGIN_NS + segment.end_ns
    )
    time.now_ns += SECOND_NS
    assert device.read(0.0) == CapturedText(segment.text, time.now_ns)


def test_offline_messages_are_what_the_devices_publish() -> None:
    offline = list(messages(SEED, CAMERA, MICROPHONE, 12.0, origin_ns=ORIGIN_NS))
    arrivals = [message.received_ns for message in offline]
    assert arrivals == sorted(arrivals)
    by_topic = {topic: [m for m in offline if m.topic == topic] for topic in {m.topic for m in offline}}
    for sent in by_topic.values():
        assert [message.header.seq for message in sent] == list(range(len(sent)))
    cameras, microphones, lines = Time(-0.1), Time(-0.1), Time(-0.1)
    with camera(cameras) as device:
        for message in by_topic["camera/front"]:
            frame = device.read(1.0)
            assert frame is not None
            header, payload = frame_message(frame, CAMERA)
            assert isinstance(message.header, CameraFrame)
            assert (message.header.stamp_ns, message.payload) == (header.stamp_ns, payload)
    with microphone(microphones) as device:
        for message in by_topic["microphone/main"]:
            block = device.read(1.0)
            assert block is not None
            assert isinstance(message.header, AudioBlock)
            assert message.payload == block_message(block, MICROPHONE)[1]
    with text(lines) as device:
        for message in offline:
            if isinstance(message.header, Label | TextCommand):
                line = device.read(10.0)
                assert line is not None
                assert message.header.stamp_ns == (
                    line.stamp_ns if isinstance(line, CapturedText) else line.start_ns
                )


# The wire


@pytest.mark.parametrize("shape", [(6, 8, 3), (6, 8)])
@pytest.mark.parametrize(("encoding", "size"), [("bgr8", 144), ("mono8", 48), ("jpeg", None)])
def test_frames_travel_in_the_encoding_asked_for(
    shape: tuple[int, ...], encoding: str, size: int | None
) -> None:
    config = CAMERA.model_copy(update={"encoding": encoding})
    image = np.full(shape, 77, np.uint8)
    header, payload = frame_message(CapturedFrame(image, 5, exposure_ns=3), config)
    assert (header.width, header.height, header.encoding, header.exposure_ns) == (8, 6, encoding, 3)
    if size is None:
        decoded = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
        assert decoded is not None
        assert decoded.shape == shape
    else:
        assert (len(payload), set(bytes(payload))) == (size, {77})


def test_samples_are_scaled_rounded_and_clipped() -> None:
    samples = np.array([[0.0], [0.5], [-1.0], [1.0], [2.0]], np.float32)
    header, payload = block_message(CapturedBlock(samples, 0, 0, gap=4), MICROPHONE)
    assert np.frombuffer(payload, "<i2").tolist() == [0, 16384, -32768, 32767, 32767]
    assert (header.samples, header.channels, header.gap) == (5, 1, 4)
    floats = MICROPHONE.model_copy(update={"format": "f32"})
    _, payload = block_message(CapturedBlock(np.array([[-32768], [16384]], np.int16), 0, 0), floats)
    assert np.frombuffer(payload, "<f4").tolist() == [-1.0, 0.5]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float) -> None:
    samples = np.array([[0.0], [value]], np.float32)
    with pytest.raises(MalformedMessageError, match="NaN or infinity"):
        block_message(CapturedBlock(samples, 0, 0), MICROPHONE)


@pytest.mark.parametrize("shape", [(0, 0, 3), (4, 4, 4), (4,)])
def test_images_that_are_neither_grey_nor_bgr_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MalformedMessageError, match="not BGR or grey"):
        frame_message(CapturedFrame(np.zeros(shape, np.uint8), 0), CAMERA)


@pytest.mark.parametrize("line", ["x" * 5000, "\ud800"])
def test_text_that_cannot_travel_is_refused(line: str) -> None:
    with pytest.raises(MalformedMessageError, match="TextCommand refused"):
        text_message(CapturedText(line, 0))
