"""Sessions without a clock are cut to their end, by every path: after silences, leaps, on any log times."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from msgspec import structs

from perception.errors import SessionError
from perception.fusion.core import FusionCore
from perception.fusion.presence import Presence
from perception.fusion.window import Window
from perception.messages import CameraFrame, Header, Message, TextCommand, with_condition
from perception.profile import EncoderConfig, FusionConfig, HeadConfig, InputConfig, Profile
from perception.retrieval.search import open_indexes
from perception.retrieval.streams import Step
from perception.session import Session, SessionWriter, read, replay
from perception.session.convert import export_lerobot, export_webdataset, import_media
from perception.session.recompute.arrivals import AHEAD, FIRST, LONE_NS
from perception.session.recompute.cutting import MAX_SILENCE_NS, account, cut_as_arrived
from perception.session.recompute.perturb import Perturbed, stamp_leap
from perception.training import dataset, encoding
from perception.training.media import media_sources
from perception.training.sources import SessionSource
from perception.units import SECOND_NS, Counts
from tests import retrieval
from tests.streams import CAMERA, MS, START_NS, Stream, clock_tick, scripted_room

JPEG = cv2.imencode(".jpg", np.full((16, 16, 3), 90, np.uint8))[1].tobytes()
PATHS = ["lerobot", "webdataset", "replay", "training", "search"]


def frame(seq: int, at_ms: float, leap_ms: float = 0.0, log_ns: int | None = None) -> Message[Header]:
    """A picture `at_ms` after the start, which arrives at once unless its log time is given."""
    stamp_ns = START_NS + round((at_ms + leap_ms) * MS)
    fields = {"seq": seq, "stamp_ns": stamp_ns, "width": 16, "height": 16, "source": "c#1"}
    arrival_ns = START_NS + round(at_ms * MS) if log_ns is None else log_ns
    return Message(CAMERA, CameraFrame(encoding="jpeg", **fields), JPEG, arrival_ns)  # type: ignore[arg-type]


def command(at_ms: float, log_ms: float, words: str = "come here") -> Message[Header]:
    header = TextCommand(stamp_ns=START_NS + round(at_ms * MS), text=words, source="t#1")
    return Message("text/say", header, b"", START_NS + round(log_ms * MS))


def film(*spans_s: tuple[float, float], rate_hz: float = 10.0) -> Stream:
    """Pictures over spans of time."""
    times = [start + k / rate_hz for start, end in spans_s for k in range(round((end - start) * rate_hz))]
    return [frame(seq, at_s * 1000) for seq, at_s in enumerate(times)]


def on_another_clock(stream: Stream, log_ns: Callable[[int], int]) -> Stream:
    return [structs.replace(one, received_ns=log_ns(number)) for number, one in enumerate(stream)]


# Of two pictures at the start that are on the grid, a first window uses the second.
STREAMS: dict[str, tuple[Stream, float, int]] = {
    "a command 2.5 s before all else": ([command(-2500, 0), *film((0, 5))], 5.0, 49),
    "a hole of 3 s": (film((0, 2), (5, 8)), 8.0, 49),
    "one picture in 2 s": (film((0, 20), rate_hz=0.5), 18.0, 10),
    "an outage of two minutes": (film((0, 2), (122, 124)), 124.0, 39),
    "log times that count": (on_another_clock(film((0, 2), (5, 8)), lambda n: n + 1), 8.0, 49),
    "log times of another epoch": (on_another_clock(film((0, 2), (5, 8)), lambda n: n * 37 * MS), 8.0, 49),
    "slow, log times that count": (on_another_clock(film((0, 20), rate_hz=0.5), lambda n: n + 1), 18.0, 10),
}


def config(hop_ms: float = 100.0) -> FusionConfig:
    return FusionConfig(
        device="cpu",
        threads=1,
        hop_ms=hop_ms,
        lateness_ms=60.0,
        inputs={"camera": InputConfig(topic=CAMERA), "text": InputConfig(topic="text/*")},
        encoders={"motion": EncoderConfig(input="camera", kind="motion")},
        head=HeadConfig(weights="random", classes=("a", "b")),
    )


def record(path: Path, stream: Iterable[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        for message in stream:
            writer.write(message)
    return path


def windows(stream: Stream, fusion: FusionConfig | None = None, **known: bool) -> tuple[list[Window], Counts]:
    counts: Counts = defaultdict(Counter)
    found = [cut.window for cut in cut_as_arrived(stream, fusion or config(), counts, **known)]
    assert [window.tick for window in found] == sorted({window.tick for window in found})
    return found, counts


def pictures(found: Iterable[Window]) -> set[int]:
    """The numbers of the pictures in windows."""
    seqs = (window.inputs["camera"].seqs for window in found)
    return {seq[0] for seq in seqs if seq is not None}


def entries(path: Path, how: str, out: Path) -> int:
    """Number of windows that a path cuts from a session."""
    if how == "replay":
        return len(list(replay(path, Profile(fusion=config()))))
    if how == "training":
        return len(encoding.encode(SessionSource(path), config())["ends_ns"])
    write = {"lerobot": export_lerobot.write, "webdataset": export_webdataset.write}[how]
    with Session(path) as session:
        return int(next(iter(list(write(session, out)))).split()[0])


def found_in(path: Path, model: Path, every_s: float = 0.1) -> int:
    """Number of pictures in a search index of a session."""
    models, cpu = {"frames": str(model)}, "cpu"
    (index,) = open_indexes([path], ["frames"], models, Step(every_s), device=cpu, show=print)
    return len(index)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return retrieval.clip(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("how", PATHS)
def test_every_path_cuts_a_session_to_its_end(name: str, how: str, tmp_path: Path, clip: Path) -> None:
    stream, seconds, count = STREAMS[name]
    path = record(tmp_path / "s.mcap", stream)
    if how == "search":
        assert found_in(path, clip) == count
    else:
        assert entries(path, how, tmp_path / "out") == pytest.approx(seconds * 10, abs=1)


def test_pictures_that_are_rarer_than_ticks_are_found_by_rare_ticks(tmp_path: Path, clip: Path) -> None:
    path = record(tmp_path / "s.mcap", [frame(k, 300 + k * 2000.0) for k in range(10)])
    assert found_in(path, clip, every_s=2.0) == 9


def write_film(path: Path, times_s: Iterable[float]) -> Path:
    """A film whose pictures are shown at these times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p"
        video.codec_context.time_base = Fraction(1, 1000)
        for number, at_s in enumerate(times_s):
            picture = VideoFrame.from_ndarray(np.full((48, 64, 3), 40 + number, np.uint8), format="bgr24")
            picture.pts, picture.time_base = round(at_s * 1000), Fraction(1, 1000)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return path


FILMS = {
    "a hole of 3 s": ([k / 10 for k in (*range(20), *range(50, 80))], 7.9, 49),
    "one picture in 2 s": ([k * 2.0 for k in range(10)], 18.0, 10),
    "an outage of two minutes": ([k / 10 for k in (*range(20), *range(1220, 1240))], 123.9, 39),
}


@pytest.mark.parametrize("name", FILMS)
def test_a_film_is_cut_to_its_end_imported_and_in_a_folder_of_media(name: str, tmp_path: Path) -> None:
    times_s, seconds, count = FILMS[name]
    (tmp_path / "media" / "a").mkdir(parents=True)
    path = write_film(tmp_path / "media" / "a" / "film.mkv", times_s)
    (source,) = media_sources(tmp_path / "media", config())
    in_folder = list(encoding.windows(source, config()))
    list(import_media.read(path, tmp_path / "s.mcap"))
    video = config().model_copy(update={"inputs": {"camera": InputConfig(topic="camera/video")}})
    imported, _ = windows(list(read(tmp_path / "s.mcap")), video)
    for found in (in_folder, imported):
        assert len(found) == pytest.approx(seconds * 10, abs=1)
        assert len(pictures(found)) in (count - 1, count, count + 1)
    assert len(list(replay(tmp_path / "s.mcap", Profile(fusion=video)))) == len(imported)


# --- time goes on as it would have live ---


def live(stream: Stream, fusion: FusionConfig) -> list[Window]:
    """The windows of a live core, moved by a clock at each of its deadlines."""
    core = FusionCore(fusion)
    found = core.push(clock_tick(stream[0].header.stamp_ns))
    for message in stream:
        while (deadline_ns := core.deadline_ns) is not None and deadline_ns < message.received_ns:
            found += core.push(clock_tick(deadline_ns))
        found += core.push(message)
    return list(map(Presence().mark_held, found))


@pytest.mark.parametrize("hop_ms", [100.0, 250.0, 2000.0])
def test_without_a_clock_arrivals_move_time_as_the_clock_did_live(hop_ms: float) -> None:
    room = [with_condition(one, "ok") for one in scripted_room() if one.topic == CAMERA]
    late = [structs.replace(one, received_ns=one.received_ns + 90 * MS) for one in room]
    stream = [one for one in late if not 1000 * MS < one.header.stamp_ns - START_NS < 2600 * MS]
    expected = live(stream, config(hop_ms))
    found, _ = windows(stream, config(hop_ms))
    assert len(expected) >= 1
    assert found[: len(expected)] == expected


def test_a_live_core_of_rare_ticks_does_not_take_what_follows_a_silence_for_a_leap() -> None:
    stream = film((0, 1), (3.5, 9))
    found = live(stream, config(hop_ms=4000.0))
    assert [window.inputs["camera"].presence for window in found] == ["present", "present"]


# --- wrong stamps do not move time ---


def leapt(stream: Stream, at: int, count: int, leap_ms: float) -> Stream:
    """The stamps of some messages in a row leap ahead."""
    return [
        structs.replace(
            one, header=structs.replace(one.header, stamp_ns=one.header.stamp_ns + round(leap_ms * MS))
        )
        if at <= number < at + count
        else one
        for number, one in enumerate(stream)
    ]


LOGS: dict[str, Callable[[Stream], Iterable[int]]] = {
    "of the host": lambda stream: [one.received_ns for one in stream],
    "that count": lambda stream: range(1, len(stream) + 1),
    "made of the stamps": lambda stream: _rising(one.header.stamp_ns for one in stream),
}


@pytest.mark.parametrize("count", [1, 2, AHEAD // 2 - 1])
@pytest.mark.parametrize("leap_ms", [5000.0, 3_600_000.0, 1e12])
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("at", [0, 7, 20])
def test_stamps_that_leap_are_refused_and_move_nothing(count: int, leap_ms: float, log: str, at: int) -> None:
    if at < FIRST <= at + count:
        count = FIRST // 2 - 1  # wrong stamps at the start cannot be distinguished from right ones
    stream = film((0, 8))
    liars = leapt(stream, at, count, leap_ms)
    logged = [
        structs.replace(one, received_ns=log_ns) for one, log_ns in zip(liars, LOGS[log](liars), strict=True)
    ]
    found, counts = windows(logged)
    honest, _ = windows(stream)
    assert counts == {CAMERA: {"stamp ahead": count}}
    assert [one.tick for one in found] == [one.tick for one in honest][len(honest) - len(found) :]
    assert pictures(found) >= pictures(honest) - set(range(at, at + count + 1))
    assert len(found) >= len(honest) - (count if at == 0 else 0)


def _rising(stamps: Iterable[int]) -> list[int]:
    """Log times made of stamps, as by a writer without log times."""
    rising: list[int] = []
    for stamp_ns in stamps:
        rising.append(max(stamp_ns, rising[-1] + 1 if rising else 0))
    return rising


def test_a_stream_on_a_foreign_clock_does_not_silence_the_others() -> None:
    room = [one for one in scripted_room() if not one.topic.startswith("label/")]
    both = FusionConfig.model_validate(
        config().model_dump()
        | {"inputs": {"camera": {"topic": CAMERA}, "sound": {"topic": "microphone/main"}}}
    )
    for log in (False, True):
        stream = [
            structs.replace(
                one, header=structs.replace(one.header, stamp_ns=one.header.stamp_ns + 3600 * SECOND_NS)
            )
            if one.topic == CAMERA
            else one
            for one in room
        ]
        found, counts = windows(on_another_clock(stream, lambda n: n + 1) if log else stream, both)
        assert {window.inputs["sound"].presence for window in found[12:]} == {"present"}
        assert counts[CAMERA]["stamp ahead"] == sum(one.topic == CAMERA for one in room)


def test_a_last_message_alone_may_be_late_but_not_by_hours() -> None:
    stream = film((0, 2))
    for leap_ns, last in ((LONE_NS // 2, 20), (LONE_NS * 2, 19)):
        lone = frame(20, 2000 + leap_ns / MS)
        assert max(pictures(windows([*stream, lone])[0])) >= last - 1
        found, counts = windows(on_another_clock([*stream, lone], lambda n: n + 1))
        assert counts[CAMERA]["stamp ahead"] == (last == 19)
        assert (len(found) > 100) == (last == 20)


def test_a_clock_that_was_set_is_passed_over_and_said() -> None:
    stream = film((0, 2))
    later = [frame(20 + k, 2 * MAX_SILENCE_NS / MS + k * 100) for k in range(20)]
    found, counts = windows([*stream, *later])
    assert pictures(found) >= set(range(1, 19)) | set(range(21, 39))
    assert len(found) < 200
    assert account(counts) == [
        f"windows: passed over in a long silence ({counts['windows']['skipped']} times)"
    ]
    assert counts["windows"]["skipped"] == 2 * MAX_SILENCE_NS // (100 * MS) + 19 - len(found)


# --- refusals are reported, and no window is an error ---

LEAP = Perturbed(film((0, 5)), stamp_leap("camera", ms=9000, at_s=2.0, count=3))
LINE = "camera/front: refused: stamp ahead (3 times)"


@pytest.mark.parametrize("how", PATHS)
def test_every_path_says_what_was_refused(
    how: str, tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record(tmp_path / "s.mcap", LEAP)
    for _ in range(2):  # also where what was cut comes from a cache
        if how == "search":
            found_in(path, clip)
            assert f"{path}: {LINE}" in capsys.readouterr().out
        elif how in ("lerobot", "webdataset"):
            write = {"lerobot": export_lerobot.write, "webdataset": export_webdataset.write}[how]
            with Session(path) as session:
                assert any(LINE in line for line in write(session, tmp_path / f"out {_}"))
        else:
            (tmp_path / "s.labels.txt").write_text("0\t2\ta\n2\t5\tb\n")
            if how == "training":
                dataset.build([SessionSource(path)], config(), tmp_path / "cache")
            else:
                list(replay(path, Profile(fusion=config())))
            assert LINE in caplog.text
            caplog.clear()


@pytest.mark.parametrize("how", PATHS)
def test_an_output_of_nothing_is_an_error_with_its_reason(how: str, tmp_path: Path, clip: Path) -> None:
    path = record(tmp_path / "s.mcap", film((0, 0.1)))
    (tmp_path / "s.labels.txt").write_text("0\t2\ta\n2\t5\tb\n")
    make: Callable[[], object] = {
        "training": lambda: dataset.build([SessionSource(path)], config(), tmp_path / "cache"),
        "search": lambda: found_in(path, clip),
    }.get(how, lambda: entries(path, how, tmp_path / "out"))
    with pytest.raises(SessionError, match=r"s(\.mcap)?: no.* (camera/front|frames).*short"):
        make()


def test_what_other_topics_hold_is_the_reason_why_nothing_comes_of_them(tmp_path: Path) -> None:
    fusion = config().model_copy(update={"inputs": {"camera": InputConfig(topic="camera/rear")}})
    path = record(tmp_path / "s.mcap", film((0, 5)))
    with pytest.raises(SessionError, match=r"camera/front: read by no input \(50 times\)"):
        list(replay(path, Profile(fusion=fusion)))
    (tmp_path / "s.labels.txt").write_text("0\t2\ta\n2\t5\tb\n")
    with pytest.raises(SessionError, match=r"s: nothing of camera/rear enters a window.*camera/front"):
        dataset.build([SessionSource(path)], fusion, tmp_path / "cache")
