"""Sessions are inspected, cut, repaired and compared; damage affects only what it hit, and is reported."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import Writer
from msgspec import structs

from perception.bus import keys
from perception.errors import ProfileError, SessionError
from perception.messages import Header, Label, Message
from perception.retrieval.search import find_sessions
from perception.session import Session, SessionWriter, read, replay, verify
from perception.session.convert import export_media, export_webdataset
from perception.session.diff import diff
from perception.session.edit import repair, trim
from perception.session.info import info
from perception.session.labels import Span, from_messages, indices_at
from perception.training.sources import find_sources
from perception.units import SECOND_NS
from tests import streams

SECONDS = 3
ORIGIN_NS = 10**18
PROFILE = {"domain": "d"}


def scene() -> list[Message[Header]]:
    sources = [
        streams.camera_stream(SECONDS),
        streams.microphone_stream(SECONDS),
        streams.text_stream(SECONDS),
    ]
    return streams.arrivals(sources, lambda message: 0)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "s.mcap"
    write(path, scene())
    return path


def write(path: Path, messages: list[Message[Header]]) -> Path:
    with SessionWriter(path) as writer:
        writer.add_metadata("profile", PROFILE)
        for message in messages:
            writer.write(message)
    return path


def content(message: Message[Header]) -> tuple[str, Header, bytes, int]:
    return message.topic, message.header, bytes(message.payload), message.received_ns


def found_in(path: Path) -> list[tuple[str, Header, bytes, int]]:
    return [content(message) for message in read(path)]


def test_a_folder_holds_its_sessions_and_says_which_files_are_others(
    session: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "exported").mkdir()
    mine, other = tmp_path / "mine.mcap", tmp_path / "exported" / "bag.mcap"
    mine.write_bytes(session.read_bytes())
    with other.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channel = writer.register_channel("/chatter", "json", 0)
        writer.add_message(channel, log_time=1, publish_time=1, data=b"{}")
        writer.finish()  # type: ignore[no-untyped-call]
    assert find_sessions([tmp_path]) == [mine]
    assert [source.name for source in find_sources([tmp_path], streams.config())] == ["mine"]
    assert caplog.messages == 2 * [
        f"left out: {other}: an MCAP file, but no session; try: perception session import"
    ]
    with pytest.raises(SessionError, match="an MCAP file, but no session"):
        list(read(find_sessions([other])[0]))


def killed(session: Path, path: Path) -> Path:
    """A copy as a killed recorder leaves it: without index, its last chunk half written."""
    with session.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    last = max(summary.chunk_indexes, key=lambda chunk: chunk.chunk_start_offset)
    path.write_bytes(session.read_bytes()[: last.chunk_start_offset + last.chunk_length // 2])
    return path


def test_info_tells_topics_rates_metadata_and_whether_the_file_is_whole(session: Path) -> None:
    found = info(session)
    assert found.counts == {streams.CAMERA: 90, streams.MICROPHONE: 93, streams.TEXT: 1}
    assert (found.closed_properly, found.damage) == (True, [])
    text = "\n".join(found.lines())
    assert "camera/front" in text
    assert "profile: domain d" in text


def test_a_killed_recording_is_read_up_to_its_last_whole_chunk(session: Path, tmp_path: Path) -> None:
    path = killed(session, tmp_path / "k.mcap")
    whole, left = found_in(session), found_in(path)
    assert set(left) < set(whole)
    assert whole[-1][3] - left[-1][3] < SECOND_NS
    found = info(path)
    assert not found.closed_properly
    assert "repair" in "\n".join(found.lines())
    assert found.metadata == {"profile": PROFILE}


def test_damage_of_messages_is_found_when_they_are_read_and_info_says_that_it_did_not(
    session: Path, tmp_path: Path
) -> None:
    data = bytearray(session.read_bytes())
    data[len(data) // 2] ^= 1
    (path := tmp_path / "d.mcap").write_bytes(data)
    for whole_or_not in (session, path):
        assert not info(whole_or_not).checked
        assert (
            "from its index only; cat, repair and verify read the messages" in info(whole_or_not).lines()[-1]
        )
    with Session(path) as damaged:
        assert len(list(damaged.messages())) < len(found_in(session))
        (said,) = damaged.damage
        assert "damaged chunk at byte" in said
    assert repair(path, tmp_path / "r.mcap").damage == [said]
    cut_off = info(killed(session, tmp_path / "k.mcap"))
    assert cut_off.checked
    assert not any("from its index only" in line for line in cut_off.lines())


def test_info_tells_a_file_that_is_being_recorded_from_one_whose_recorder_was_killed(
    session: Path, tmp_path: Path
) -> None:
    with SessionWriter(path := tmp_path / "r.mcap") as writer:
        writer.write(scene()[0])
        writer.flush()
        found = info(path)
        assert (found.closed_properly, found.being_recorded) == (False, True)
        assert found.lines()[1] == "still being recorded: this is what has been written so far"
    assert not info(path).being_recorded
    found = info(killed(session, tmp_path / "k.mcap"))
    assert not found.being_recorded
    assert "killed?" in found.lines()[1]


def test_a_recording_whose_profile_fuses_nothing_is_named(session: Path) -> None:
    said = rf"^{session}, metadata 'profile': the profile has no \[fusion\] table"
    with pytest.raises(ProfileError, match=said):
        verify(session)
    with pytest.raises(ProfileError, match=said):
        next(iter(replay(session)))


def test_paths_may_be_text(session: Path, tmp_path: Path) -> None:
    text = str(tmp_path / "w.mcap")
    with SessionWriter(text) as writer:
        writer.write(scene()[0])
    assert info(text).counts == {streams.CAMERA: 1}
    assert [one.topic for one in read(text)] == [streams.CAMERA]
    assert trim(str(session), str(tmp_path / "t.mcap"), [streams.TEXT]).messages == 1
    assert repair(text, str(tmp_path / "r.mcap")).messages == 1
    assert find_sessions([str(tmp_path)]) == [tmp_path / f"{name}.mcap" for name in "rtw"]
    with Session(str(session)) as opened:
        list(export_media.write(opened, str(tmp_path / "media")))
        list(export_webdataset.write(opened, str(tmp_path / "web"), rate_hz=10))
    assert keys.load(str(keys.new_keys(str(tmp_path / "keys")))).public
    assert (tmp_path / "media").is_dir()


def test_repair_gives_a_whole_file_of_what_is_left(session: Path, tmp_path: Path) -> None:
    path = killed(session, tmp_path / "k.mcap")
    copied = repair(path, tmp_path / "r.mcap")
    assert any("cut off" in text for text in copied.damage)
    assert found_in(tmp_path / "r.mcap") == found_in(path)
    assert copied.messages == len(found_in(path))
    found = info(tmp_path / "r.mcap")
    assert (found.closed_properly, found.damage, found.metadata) == (True, [], {"profile": PROFILE})
    with (tmp_path / "r.mcap").open("rb") as file:
        assert len(list(make_reader(file, validate_crcs=True).iter_messages())) == copied.messages


def test_repair_of_a_whole_file_changes_nothing_in_it(session: Path, tmp_path: Path) -> None:
    assert repair(session, tmp_path / "r.mcap").damage == []
    assert found_in(tmp_path / "r.mcap") == found_in(session)


def test_trim_takes_times_and_topics(session: Path, tmp_path: Path) -> None:
    trim(session, tmp_path / "t.mcap", [streams.CAMERA, streams.TEXT], start_s=0.2, end_s=-1.0)
    whole = found_in(session)
    start_ns, end_ns = whole[0][3] + 200_000_000, whole[-1][3] - SECOND_NS
    assert found_in(tmp_path / "t.mcap") == [
        one for one in whole if start_ns <= one[3] < end_ns and one[0] != streams.MICROPHONE
    ]


def label(
    start_s: float, end_s: float, name: str, published_s: float, track: str = "truth"
) -> Message[Header]:
    start_ns, end_ns, told_ns = (
        ORIGIN_NS + round(at_s * SECOND_NS) for at_s in (start_s, end_s, published_s)
    )
    header = Label(stamp_ns=start_ns, start_ns=start_ns, end_ns=end_ns, name=name, track=track)
    return Message("label/truth", header, b"", told_ns)


def labelled(tmp_path: Path, *labels: Message[Header]) -> Path:
    """A session whose seconds count from ORIGIN_NS."""
    frames = [
        structs.replace(streams.frame(number, at_ns), received_ns=at_ns)
        for number in range(40)
        for at_ns in [ORIGIN_NS + number * SECOND_NS // 4]
    ]
    return write(tmp_path / "s.mcap", sorted([*frames, *labels], key=lambda one: one.received_ns))


def spans_of(messages: Iterable[Message[Header]]) -> list[Span]:
    return from_messages(one.header for one in messages if isinstance(one.header, Label))


def test_trim_keeps_the_labels_that_overlap_whenever_they_were_published(tmp_path: Path) -> None:
    path = labelled(
        tmp_path,
        label(1, 6, "span", published_s=1),
        label(2, 1e9, "from here on", published_s=2, track="mode"),
        label(0, 3, "over", published_s=0.1),
        label(3.5, 4.5, "published later", published_s=4.6),
        label(5, 5.5, "published ahead", published_s=2.5),
        label(2.5, 9, "inside", published_s=5.1),
        label(5.9, 8, "published after", published_s=8.1),
        label(6.5, 8, "not yet", published_s=8.2),
    )
    trim(path, tmp_path / "t.mcap", start_s=4.0, end_s=6.0)
    with Session(tmp_path / "t.mcap") as part:
        zero_ns = part.zero.stamp_ns
        spans = sorted(
            from_messages(one.header for one in part.messages(["label/*"]) if isinstance(one.header, Label))
        )
        received = [one.received_ns for one in part.messages()]
        assert part.damage == []
    assert zero_ns == ORIGIN_NS + 4 * SECOND_NS
    assert received == sorted(set(received))
    begin_s = [round((one.start_ns - zero_ns) / 1e9, 6) for one in spans]
    assert dict(zip([one.name for one in spans], begin_s, strict=True)) == {
        "span": 0,
        "from here on": 0,
        "inside": 0,
        "published later": 0,
        "published ahead": 1,
        "published after": 1.9,
    }
    whole = spans_of(read(path))
    times = np.arange(zero_ns, zero_ns + 2 * SECOND_NS, SECOND_NS // 10)
    for track in ("truth", "mode"):
        names = sorted({one.name for one in whole})
        assert (
            indices_at(spans, times, names, track).tolist() == indices_at(whole, times, names, track).tolist()
        )


@pytest.mark.parametrize(("topics", "kept"), [(["label/*"], 1), (["camera/*"], 0), (["*"], 1)])
def test_trim_takes_labels_in_force_of_the_topics_asked_for(
    tmp_path: Path, topics: list[str], kept: int
) -> None:
    path = labelled(tmp_path, label(1, 6, "span", published_s=1))
    trim(path, tmp_path / "t.mcap", topics, start_s=3.0)
    assert sum(isinstance(one.header, Label) for one in read(tmp_path / "t.mcap")) == kept


def test_trim_to_nothing_says_so_and_leaves_no_file(session: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SessionError, match=f"nothing to write under --topics camera/other; it holds {streams.CAMERA}"
    ):
        trim(session, tmp_path / "t.mcap", ["camera/other"])
    assert not (tmp_path / "t.mcap").exists()


def test_a_session_differs_from_itself_in_nothing(session: Path) -> None:
    with Session(session) as one, Session(session) as other:
        assert list(diff(one, other, measured=True)) == []


def test_diff_names_topic_seq_and_field(session: Path, tmp_path: Path) -> None:
    changed = scene()
    place = next(n for n, message in enumerate(changed) if message.topic == streams.CAMERA)
    header = structs.replace(changed[place].header, exposure_ns=5, sent_ns=9)
    changed[place] = Message(streams.CAMERA, header, b"\0\1")
    del changed[-1]
    write(tmp_path / "c.mcap", changed)
    with Session(session) as one, Session(tmp_path / "c.mcap") as other:
        lines = [str(found) for found in diff(one, other)]
    assert lines == [
        f"{streams.CAMERA} seq 0: exposure_ns: expected None, actual 5",
        f"{streams.MICROPHONE} seq 92: only in {session}",
    ]


def test_metadata_that_was_changed_is_not_believed(session: Path, tmp_path: Path) -> None:
    data = killed(session, tmp_path / "k.mcap").read_bytes()
    for name, changed in ((b"profile", b"profilf"), (b'"domain"', b'"demain"'), (b'"d"', b'"e"')):
        (tmp_path / "c.mcap").write_bytes(data.replace(name, changed, 1))
        with Session(tmp_path / "c.mcap") as damaged:
            assert damaged.metadata == {}
            assert any("metadata" in text for text in damaged.damage)


def test_a_last_chunk_that_claims_to_be_longer_than_the_file_ends_the_reading(
    session: Path, tmp_path: Path
) -> None:
    data = bytearray(killed(session, tmp_path / "k.mcap").read_bytes())
    with session.open("rb") as file:
        summary = make_reader(file).get_summary()
    assert summary is not None
    whole = [
        chunk for chunk in summary.chunk_indexes if chunk.chunk_start_offset + chunk.chunk_length < len(data)
    ]
    last = max(whole, key=lambda chunk: chunk.chunk_start_offset)
    del data[last.chunk_start_offset + last.chunk_length :]
    data[last.chunk_start_offset + 3] += 1
    (tmp_path / "c.mcap").write_bytes(data)
    check(tmp_path / "c.mcap", found_in(session))


def test_damage_in_the_middle_costs_its_chunk_and_what_follows_is_found_again(
    session: Path, tmp_path: Path
) -> None:
    data = bytearray(killed(session, tmp_path / "k.mcap").read_bytes())
    before = len(found_in(tmp_path / "k.mcap"))
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    (tmp_path / "c.mcap").write_bytes(data)
    check(tmp_path / "c.mcap", found_in(session))
    assert before / 2 < len(found_in(tmp_path / "c.mcap")) < before


def test_cut_anywhere_a_file_never_gives_what_was_not_written(session: Path, tmp_path: Path) -> None:
    data, known, path = session.read_bytes(), found_in(session), tmp_path / "d.mcap"
    for size in range(1, len(data), 997):
        path.write_bytes(data[:size])
        check(path, known)


@pytest.mark.parametrize("closed", [True, False])
def test_flipped_anywhere_a_file_never_gives_what_was_not_written(
    session: Path, tmp_path: Path, closed: bool
) -> None:
    source = session if closed else killed(session, tmp_path / "k.mcap")
    data, known, path = source.read_bytes(), found_in(source), tmp_path / "d.mcap"
    rng = random.Random(1)
    for _ in range(150):
        copy = bytearray(data)
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)
        path.write_bytes(copy)
        check(path, known)


def check(path: Path, known: list[tuple[str, Header, bytes, int]]) -> None:
    """Whatever is read was written, in order; what is missing is reported; metadata is right or absent."""
    try:
        with Session(path) as session:
            found = [content(message) for message in session.messages()]
            reported = session.damage or not session.closed_properly
            assert session.metadata in ({}, {"profile": PROFILE})
    except SessionError:
        return
    assert found == known or reported
    remaining = iter(known)
    assert all(one in remaining for one in found), "changed, invented or out of order"
