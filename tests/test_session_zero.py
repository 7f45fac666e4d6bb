"""One zero of a session: every command counts from it, every export begins at it or says where it lies."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from msgspec import structs

from perception.cli.main import cli
from perception.messages import AudioBlock, CameraFrame, Header, Health, Label, Message, TextCommand
from perception.retrieval.search import LEXICAL, Query, open_indexes, search
from perception.retrieval.streams import Step
from perception.session import Session, SessionWriter, read
from perception.session.convert import import_media
from perception.session.convert.selection import Selection
from perception.session.edit import repair, trim
from perception.session.recompute.perturb import Perturbed, without
from perception.session.recompute.source import Recording
from perception.training.sources import SessionSource
from perception.units import SECOND_NS
from tests.media import grey, write_clip
from tests.streams import MS, START_NS

RATE_HZ, BLOCK = 16_000, 512
CLICK_NS = START_NS + 4_500 * MS
DAY_NS = 86_400 * SECOND_NS


def heard(name: str, first_ns: int, seconds: float, form: str = "s16") -> list[Message[Header]]:
    """A microphone that is silent but for one click."""
    samples = np.zeros(round(seconds * RATE_HZ) // BLOCK * BLOCK, np.int16)
    samples[(CLICK_NS - first_ns) * RATE_HZ // SECOND_NS] = 20_000
    blocks: list[Message[Header]] = []
    for seq, at in enumerate(range(0, len(samples), BLOCK)):
        stamp_ns = first_ns + at * SECOND_NS // RATE_HZ
        header = AudioBlock(
            stamp_ns=stamp_ns,
            seq=seq,
            source=f"{name}#1",
            sample_index=7_000 + at,
            samples=BLOCK,
            rate_hz=RATE_HZ,
            format="s16" if form == "s16" else "f32",
        )
        block = samples[at : at + BLOCK]
        payload = block.tobytes() if form == "s16" else (block / 32768).astype("<f4").tobytes()
        blocks.append(Message(f"microphone/{name}", header, payload, stamp_ns + 34 * MS))
    return blocks


def seen(first_ns: int, count: int) -> list[Message[Header]]:
    headers = [
        CameraFrame(stamp_ns=first_ns + n * 100 * MS, seq=n, width=16, height=16, encoding="mono8")
        for n in range(count)
    ]
    return [Message("camera/front", one, bytes([one.seq]) * 256, one.stamp_ns + 20 * MS) for one in headers]


def room() -> list[Message[Header]]:
    """As a recorder meets it: first a node's health, then sound from before it, streams that begin later."""
    text = TextCommand(stamp_ns=START_NS + 3_000 * MS, text="come here")
    label = Label(stamp_ns=CLICK_NS, start_ns=CLICK_NS, end_ns=CLICK_NS + SECOND_NS, name="click")
    streams: list[list[Message[Header]]] = [
        [Message("health/camera", Health(stamp_ns=START_NS, node="camera"), b"", START_NS + MS)],
        heard("main", START_NS - 25 * MS, 6.0),
        heard("late", START_NS + 3_900 * MS, 2.0),
        heard("float", START_NS + 600 * MS, 5.0, "f32"),
        seen(START_NS - 10 * MS, 2) + seen(START_NS + 200 * MS, 50),
        [Message("text/say", text, b"", text.stamp_ns + 2 * MS)],
        [Message("label/truth", label, b"", label.end_ns)],
    ]
    return sorted((one for stream in streams for one in stream), key=lambda one: one.received_ns)


def write(path: Path, messages: Iterable[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        for message in messages:
            writer.write(message)
    return path


def older(path: Path, target: Path) -> Path:
    """The same session as it was recorded before zeros were stored."""
    with Session(path) as session, SessionWriter(target) as writer:
        for record in session.records():
            writer.copy(record)
    return target


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("zero") / "kitchen.mcap", room())


def command(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.output


def as_json(*arguments: object) -> Any:
    return json.loads(command(*arguments))


def exported(session: Path, target: Path, kind: str = "media", *more: object) -> Path:
    command("session", "export", session, target, "--format", kind, *more)
    return target


# --- which moment it is ---


@pytest.mark.parametrize("stored", [True, False])
def test_it_is_the_stamp_of_the_first_message_stored_or_not(
    session: Path, tmp_path: Path, stored: bool
) -> None:
    file = session if stored else older(session, tmp_path / "kitchen.mcap")
    found = as_json("session", "info", file, "--json")
    assert found["zero"] == {"stamp_ns": START_NS, "log_ns": START_NS}
    assert found["zero_is_stored"] is stored
    shown = command("session", "info", file)
    assert f"seconds count from 2023-11-14T22:13:20.000+00:00 (stamp {START_NS}" in shown
    assert ("not stored: that of the first message" in shown) is not stored


def test_it_is_in_the_files_own_metadata(session: Path) -> None:
    from mcap.reader import make_reader

    with session.open("rb") as file:
        notes = {record.name: record.metadata for record in make_reader(file).iter_metadata()}
    assert json.loads(notes["zero"]["json"]) == {"stamp_ns": START_NS, "log_ns": START_NS}


def test_an_imported_film_counts_from_the_films_own_zero(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "clip.mkv", [grey(9)] * 50, [(0.0, np.zeros(32_000, np.int16))])
    (tmp_path / "clip.srt").write_text("1\n00:00:01,500 --> 00:00:02,000\nstop\n", "utf-8")
    for selection, second in ((Selection(("text/*",)), 1.5), (Selection(("text/*",), start_s=0.5), 1.0)):
        target = tmp_path / f"{second}.mcap"
        list(import_media.read(film, target, None, selection))
        (line,) = command("session", "cat", target, "--json").splitlines()
        assert json.loads(line)["at_s"] == second


# --- every command ---


def test_all_commands_count_the_same_seconds(session: Path) -> None:
    (click,) = [line for line in command("labels", session).splitlines() if line.endswith("truth  click")]
    assert click.split()[:2] == ["4.500", "5.500"]
    lines = command("session", "cat", session, "--from", 4.5, "--to", 4.6, "--json").splitlines()
    for found in map(json.loads, lines):
        assert found["at_s"] == (found["header"]["stamp_ns"] - START_NS) / 1e9
        assert 4.4 < found["at_s"] < 4.6
    (word,) = command("session", "cat", session, "--topics", "text/*").splitlines()
    assert word.startswith("text/say #0  at 3.000 s  age 2.0 ms")
    models = {"commands": LEXICAL}
    (index,) = open_indexes([session], ["commands"], models, Step(), device="cpu", show=print)
    hits = search(index, Query("come here"), top=1, apart_s=1.0)
    assert [hit.at_s for hit in hits] == [3.0]


def test_a_difference_says_its_second(session: Path, tmp_path: Path) -> None:
    changed = [
        structs.replace(one, header=structs.replace(one.header, text="go away"))
        if isinstance(one.header, TextCommand)
        else one
        for one in room()
    ]
    said = command("session", "diff", session, write(tmp_path / "other.mcap", changed))
    assert said == "at 3.000 s: text/say seq 0: text: expected 'come here', actual 'go away'\n"


def test_a_part_has_its_zero_at_the_cut_and_a_choice_of_topics_keeps_it(
    session: Path, tmp_path: Path
) -> None:
    old = older(session, tmp_path / "old.mcap")
    said = command("session", "trim", session, tmp_path / "part.mcap", "--from", 4, "--to", 6)
    assert f"its zero is second 4.000 of {session}" in said
    assert "    0.500      1.500  truth  click" in command("labels", tmp_path / "part.mcap")
    trim(old, tmp_path / "words.mcap", ["text/*"])
    repair(old, tmp_path / "whole.mcap")
    for name in ("words.mcap", "whole.mcap"):
        with Session(tmp_path / name) as copy:
            assert copy.zero.stamp_ns == START_NS
            assert copy.zero_is_stored


def test_a_perturbation_counts_from_it_whatever_was_concluded_or_lost_before(session: Path) -> None:
    with Recording(session) as recording:
        text = TextCommand(stamp_ns=START_NS + 3_000 * MS, text="come here")
        for blind in (without("text", 2.99, 3.01), without("text", 3.0015, 3.0025)):
            left = Perturbed(recording, without("camera", 0, 1), blind)
            assert text.text not in {getattr(one.header, "text", "") for one in left}
        left = Perturbed(recording, without("microphone", 0, 1), without("text", 3.0025, 9.0))
        assert text.text in {getattr(one.header, "text", "") for one in left}


def test_arrivals_on_another_clock_than_the_stamps_count_from_the_same_moment(tmp_path: Path) -> None:
    later = [structs.replace(one, received_ns=one.received_ns + 400 * DAY_NS) for one in room()]
    file = write(tmp_path / "replayed.mcap", later)
    found = as_json("session", "info", file, "--json")["zero"]
    assert found == {"stamp_ns": START_NS, "log_ns": START_NS + 400 * DAY_NS + MS}
    lines = command("session", "cat", file, "--from", 2.9, "--to", 3.1, "--topics", "text/*", "--json")
    assert json.loads(lines)["at_s"] == 3.0


# --- every export ---


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", ["main.flac", "late.flac", "float.wav"])
def test_a_label_made_on_exported_sound_is_right_in_the_session(
    session: Path, tmp_path: Path, name: str, stored: bool
) -> None:
    file = write(tmp_path / "kitchen.mcap", room())
    if not stored:
        file = older(session, tmp_path / "old.mcap")
    sound, rate_hz = soundfile.read(exported(file, tmp_path / "out") / f"microphone-{name}")
    (click,) = np.flatnonzero(sound)
    at_s = click / rate_hz  # where somebody hears it in an audio editor
    file.with_suffix(".labels.txt").write_text(f"{at_s:.6f}\t{at_s + 0.1:.6f}\tclick\n", "utf-8")
    (span,) = [one for one in SessionSource(file).spans() if one.name == "click"]
    assert abs(span.start_ns - CLICK_NS) <= SECOND_NS // RATE_HZ
    files = json.loads((tmp_path / "out" / "session.json").read_text())["files"]
    assert files[f"microphone-{name}"]["start_s"] == 0.0


def test_sound_from_before_the_zero_is_left_out_and_counted(session: Path, tmp_path: Path) -> None:
    said = command("session", "export", session, tmp_path / "out")
    assert "microphone-main.flac: left out: a sample from before the session's zero (400 times)" in said
    assert "microphone-late.flac: left out" not in said
    with soundfile.SoundFile(tmp_path / "out" / "microphone-main.flac") as file:
        assert len(file) == 6 * RATE_HZ // BLOCK * BLOCK - 400


def test_frames_of_an_exported_film_lie_at_their_seconds(session: Path, tmp_path: Path) -> None:
    with av.open(str(exported(session, tmp_path / "out") / "camera-front.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    expected = [max((one.header.stamp_ns - START_NS) / 1e9, 0.0) for one in read(session, ["camera/*"])]
    assert times == pytest.approx(expected, abs=1e-4)


def test_tables_and_samples_say_their_second(session: Path, tmp_path: Path) -> None:
    exported(session, tmp_path / "csv", "media", "--tables", "csv")
    with (tmp_path / "csv" / "text-say.csv").open(newline="", encoding="utf-8") as file:
        assert [float(row["at_s"]) for row in csv.DictReader(file)] == [3.0]
    notes = json.loads((tmp_path / "csv" / "session.json").read_text())
    assert notes["zero"] == {"stamp_ns": START_NS, "log_ns": START_NS}
    exported(session, tmp_path / "lerobot", "lerobot")
    meta = json.loads((tmp_path / "lerobot" / "meta" / "session.json").read_text())
    assert meta["zero"]["stamp_ns"] == START_NS
    assert meta["first_frame_s"] == pytest.approx(0.0, abs=0.2)
    sound = tmp_path / "lerobot" / "audio" / "observation.audio.late" / "chunk-000" / "file-000.flac"
    (click,) = np.flatnonzero(soundfile.read(sound)[0])
    assert click / RATE_HZ == pytest.approx(4.5, abs=1e-4)
    exported(session, tmp_path / "bag", "rosbag2")


def test_a_bag_says_it_and_brings_it_back(session: Path, tmp_path: Path) -> None:
    exported(session, tmp_path / "bag", "rosbag2", "--topics", "microphone/late", "--topics", "text/*")
    assert f"perception.zero.stamp_ns: '{START_NS}'" in (tmp_path / "bag" / "metadata.yaml").read_text()
    for name, cut, second in (("whole", [], 3.0), ("part", ["--from", 0.0], 0.0)):
        command("session", "import", tmp_path / "bag", tmp_path / f"{name}.mcap", *cut)
        lines = command("session", "cat", tmp_path / f"{name}.mcap", "--topics", "text/*", "--json")
        assert json.loads(lines)["at_s"] == pytest.approx(second, abs=0.003)


def test_samples_of_shards_say_their_second(session: Path, tmp_path: Path) -> None:
    import tarfile

    exported(session, tmp_path / "shards", "webdataset")
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json") and (file := tar.extractfile(member)) is not None:
                facts = json.load(file)
                assert facts["at_s"] == (facts["stamp_ns"] - START_NS) / 1e9


def test_a_first_stamp_that_cannot_be_true_neither_pads_nor_swallows_the_sound(tmp_path: Path) -> None:
    for leap_ns in (-10 * DAY_NS, 10 * DAY_NS):
        first = Message("health/camera", Health(stamp_ns=START_NS + leap_ns, node="camera"), b"", START_NS)
        file = write(tmp_path / f"{leap_ns}.mcap", [first, *room()[1:]])
        out = exported(file, tmp_path / f"{leap_ns}", "media", "--topics", "microphone/late")
        assert soundfile.info(out / "microphone-late.flac").frames == 2 * RATE_HZ // BLOCK * BLOCK
        begin = json.loads((out / "session.json").read_text())["files"]["microphone-late.flac"]
        assert begin["start_s"] == pytest.approx((3_900 * MS - leap_ns) / 1e9)
