"""Headers at the edges of their schema: no exception in what cuts, records, reads or exports them."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.bus import codec
from perception.errors import MalformedMessageError, PerceptionError
from perception.fusion.core import FusionCore
from perception.messages import MAX_TIME_NS, SAMPLE_BYTES, ClockTick, Header, Journal, Message, TextCommand
from perception.profile import FusionConfig
from perception.session import Session, edit, info, pace
from perception.session.convert import export_lerobot, export_media, export_webdataset
from perception.session.file.writer import SessionWriter
from perception.session.recompute.cutting import cut_as_arrived

NOW_NS = 1_800_000_000 * 10**9
EDGE = MAX_TIME_NS
TIMES = st.sampled_from([0, 1, -1, NOW_NS, EDGE, -EDGE, EDGE - 1, 1 - EDGE])
TIMES |= st.integers(NOW_NS, NOW_NS + 3 * 10**9)
ARRIVALS = st.integers(NOW_NS, NOW_NS + 3 * 10**9)
COUNTS = st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 2, 2**63 - 1])
POSITIONS = st.sampled_from([0, 1, 2**32, 2**53 + 1, 2**62 - 1, 2**62])
FIELDS = {"seq": COUNTS, "stamp_ns": TIMES, "sent_ns": TIMES, "source": st.sampled_from(["", "a#1"])}
SIDES = st.sampled_from([(1, 1), (16_384, 1), (1, 16_384)])
SOUND = {
    "sample_index": POSITIONS,
    "gap": POSITIONS,
    "samples": st.sampled_from([1, 160, 16_000]),
    "rate_hz": st.sampled_from([1000, 1001, 16_000, 767_999, 768_000]),
    "channels": st.sampled_from([1, 2]),
    "format": st.sampled_from(["s16", "f32"]),
}
FRAME = {"encoding": st.just("mono8"), "exposure_ns": st.none() | COUNTS}
LABEL = {"start_ns": TIMES, "end_ns": TIMES, "name": st.just("x")}


def payload_of(header: dict[str, Any]) -> bytes:
    if "width" in header:
        return bytes(header["width"] * header["height"])
    if "samples" in header:
        return bytes(header["samples"] * header["channels"] * SAMPLE_BYTES[header["format"]])
    return b""


def received(topic: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Message[Header]]:
    """Return messages as they come from the wire."""

    def message(header: dict[str, Any], received_ns: int) -> Message[Header]:
        parts = [topic.encode(), msgpack.packb(header), payload_of(header)]
        return codec.decode(parts if parts[2] else parts[:2], received_ns=received_ns)

    return st.builds(message, st.fixed_dictionaries(FIELDS | fields), ARRIVALS)


MESSAGES = st.lists(
    SIDES.flatmap(lambda size: received("camera/a", **FRAME, width=st.just(size[0]), height=st.just(size[1])))
    | received("microphone/a", **SOUND)
    | received("text/a", text=st.just("x"))
    | received("clock/a")
    | received("label/a", **LABEL),
    max_size=6,
)


def config(alignment: str) -> FusionConfig:
    inputs = {"c": {"topic": "camera/a"}, "m": {"topic": "microphone/a"}, "t": {"topic": "text/*"}}
    head = {"classes": ["a", "b"]}
    return FusionConfig.model_validate(
        {"inputs": inputs, "encoders": {}, "head": head, "alignment": alignment, "max_leap_ms": 1000}
    )


@given(MESSAGES, st.sampled_from(["low-latency", "reproducible"]))
@settings(deadline=None)
def test_a_fusion_core_takes_any_header_and_its_mark_can_be_recorded(
    messages: list[Message[Header]], alignment: str
) -> None:
    core = FusionCore(config(alignment))
    for message in messages:
        windows = core.push(message)
        assert [window.tick for window in windows] == sorted(window.tick for window in windows)
        parts = codec.encode("journal/a", Journal(stamp_ns=0, entries=(), before=core.mark()))
        assert isinstance(codec.decode(parts, received_ns=0).header, Journal)


USES: dict[str, Callable[[Session, Path], object]] = {
    "media": lambda session, out: list(export_media.write(session, out)),
    "webdataset": lambda session, out: list(export_webdataset.write(session, out)),
    "lerobot": lambda session, out: list(export_lerobot.write(session, out)),
    "repair": lambda session, out: edit.repair(session.path, out),
    "trim": lambda session, out: edit.trim(session.path, out, start_s=0.0, end_s=1.0),
    "info": lambda session, _: str(info.look(session.path)),
    "replay": lambda session, _: list(pace.schedule(session.messages())),
    "cut": lambda session, _: list(cut_as_arrived(session.messages(), config("low-latency"))),
}


@given(MESSAGES, st.sampled_from(sorted(USES)))
@settings(deadline=None, max_examples=40)
def test_a_session_holds_any_header_and_every_use_of_it_ends_with_a_result_or_a_reason(
    messages: list[Message[Header]], use: str
) -> None:
    with TemporaryDirectory() as folder:
        path, written = Path(folder) / "a.mcap", []
        with SessionWriter(path) as writer:
            for message in messages:
                writer.write(message)
                written.append((message.topic, message.header))
        with Session(path) as session:
            assert [(one.topic, one.header) for one in session.messages()] == written
            with suppress(PerceptionError):
                USES[use](session, Path(folder) / "out")


@pytest.mark.parametrize("stamp_ns", [EDGE + 1, -EDGE - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", ["stamp_ns", "sent_ns"])
def test_a_time_beyond_the_bound_is_refused_with_its_field(field: str, stamp_ns: int) -> None:
    header = msgpack.packb({"stamp_ns": 1} | {field: stamp_ns})
    with pytest.raises(MalformedMessageError, match=rf"clock/a: .*\$\.{field}"):
        codec.decode([b"clock/a", header], received_ns=0)


@pytest.mark.parametrize("field", ["sample_index", "gap"])
def test_a_position_beyond_the_bound_is_refused_with_its_field(field: str) -> None:
    header = {"stamp_ns": 1, "sample_index": 0, "samples": 1, "rate_hz": 16_000} | {field: 2**62 + 1}
    with pytest.raises(MalformedMessageError, match=rf"microphone/a: .*\$\.{field}"):
        codec.decode([b"microphone/a", msgpack.packb(header), bytes(2)], received_ns=0)


def test_a_session_refuses_a_header_that_no_reader_would_take(tmp_path: Path) -> None:
    """Headers are not checked where they are made."""
    with SessionWriter(tmp_path / "a.mcap") as writer:
        with pytest.raises(MalformedMessageError, match=r"text/a: .*\$\.stamp_ns"):
            writer.write(Message("text/a", TextCommand(stamp_ns=2**63, text="x")))
        writer.write(Message("clock/a", ClockTick(stamp_ns=5), received_ns=EDGE))
        with pytest.raises(MalformedMessageError, match="after the latest time"):
            writer.write(Message("clock/a", ClockTick(stamp_ns=6), received_ns=2**64 - 1))
    with Session(tmp_path / "a.mcap") as session:
        assert session.counts == {"clock/a": 1}
        assert len(list(session.messages())) == 1
