"""Valid headers with extreme values, and floods of them: no process ends, memory and reports stay bounded."""

import msgpack
import pytest

from perception.bus import codec
from perception.bus.mailbox import Mailbox
from perception.errors import MalformedMessageError
from perception.fusion.core import RULES, FusionCore
from perception.fusion.ledger import Ledger
from perception.messages import MAX_COUNT, Header, Health, InputHealth, Journal, Message
from perception.torture.zmtp import frame, greet, publisher
from tests.bus import Bus, assert_exact, text
from tests.streams import CAMERA, MICROPHONE, START_NS, clock_tick, config
from tests.waiting import LONG_S

LONGEST = "n" * 264
"""Longest publisher id."""


def received(topic: str, payload: bytes = b"", **header: object) -> Message[Header]:
    """Return a message as it comes from the wire."""
    parts = [topic.encode(), msgpack.packb({"stamp_ns": START_NS, **header})]
    return codec.decode([*parts, payload] if payload else parts, received_ns=START_NS)


def report(box: Mailbox) -> dict[str, InputHealth]:
    """Return the counts as a reader of the health receives them."""
    health = Health(stamp_ns=1, node="x", inputs=box.health(START_NS))
    back = codec.decode(codec.encode("health/x", health), received_ns=1).header
    assert isinstance(back, Health)
    assert back.inputs == health.inputs
    return back.inputs


@pytest.mark.parametrize("seq", [2**32 + 2, 2**62, MAX_COUNT])
def test_a_seq_far_ahead_is_refused_alone(seq: int) -> None:
    box = Mailbox()
    for number in (0, seq, 1):
        box.put(received("text/a", seq=number, source="a#1", text="x"))
    counts = report(box)["text/a"]
    assert (counts.lost, counts.queued, counts.dropped) == (0, 2, {"seq ahead": 1})
    assert_exact(counts)


def test_losses_of_many_publishers_are_a_number_that_a_report_can_hold() -> None:
    box = Mailbox()
    for publisher_number in range(20):
        for step in range(3):
            seq = step * 2**32
            box.put(received("text/a", seq=seq, source=f"{publisher_number}", text="x"))
    box._accounts["text/a"].lost = MAX_COUNT - 1
    box.put(received("text/a", seq=3 * 2**32, source="19", text="x"))
    assert report(box)["text/a"].lost == MAX_COUNT


@pytest.mark.parametrize(
    ("topic", "key", "most"),
    [
        ("text/a", "source", 264),
        ("text/a", "language", 256),
        ("label/a", "name", 4096),
        ("label/a", "track", 4096),
    ],
)
def test_a_long_string_in_a_header_is_refused_with_its_key(topic: str, key: str, most: int) -> None:
    fields = {"text": "x"} if topic == "text/a" else {"start_ns": 1, "end_ns": 2, "name": "x"}
    assert received(topic, **fields | {key: "s" * most})
    with pytest.raises(MalformedMessageError, match=rf"length.*\$\.{key}"):
        received(topic, **fields | {key: "s" * 200_000})


def test_a_jpeg_larger_than_its_pixels_is_refused() -> None:
    fields = {"width": 640, "height": 480, "encoding": "jpeg"}
    assert received(CAMERA, bytes(640 * 480 * 3), **fields)
    with pytest.raises(MalformedMessageError, match="640 x 480 pixels take at most"):
        received(CAMERA, bytes(10 << 20), **fields)


@pytest.mark.parametrize("topics", [1024, 5000])
def test_a_flood_of_topics_leaves_a_report_that_can_be_published(topics: int) -> None:
    box = Mailbox()
    for number in range(topics):
        topic = f"text/{number:059d}"
        for seq in (0, 5, 5, 3, 9):
            box.put(received(topic, seq=seq, source=LONGEST, text="x"))
        for reason in ("malformed", "overwritten", "not allowed"):
            box.refuse(topic, reason)
    box.put(received("text/mine", seq=0, source="me", text="x"))
    for _ in range(20):
        box.put(received("text/mine", seq=0, source="me", text="x"))
    counts = report(box)
    assert len(counts) <= 257
    assert counts["text/mine"].received == 21
    assert sum(one.received for one in counts.values()) == topics * 8 + 21
    assert sum(one.queued for one in counts.values()) == len(box)
    for one in counts.values():
        assert_exact(one)


def test_what_waits_on_all_topics_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers count: a command has no payload, but 4096 characters of text."""
    monkeypatch.setattr("perception.bus.mailbox._MAX_BYTES", 1_000_000)
    box = Mailbox()
    for number in range(1000):
        box.put(received(f"text/{number}", seq=0, source=LONGEST, text="x" * 4096))
    assert 200 < len(box) < 1_000_000 / 4096
    while box.take():
        pass
    box.put(received("text/0", seq=1, source=LONGEST, text="x"))
    assert len(box) == 1
    assert sum(one.dropped.get("overflow", 0) for one in box.health(0).values()) > 700


def test_a_flood_with_the_longest_ids_leaves_journals_that_can_be_published() -> None:
    inputs = {f"c{k}": {"topic": f"camera/{k:057d}"} for k in range(8)}
    inputs |= {"microphone": {"topic": MICROPHONE}, "text": {"topic": "text/*"}}
    encoders = {"level": {"input": "microphone", "kind": "level"}}
    ledger = Ledger(
        FusionCore(config(inputs=inputs, encoders=encoders)), state_topic="state/fused", state_source="f"
    )
    ledger.push(clock_tick(START_NS))
    entries, journals = 0, 0
    for number in range(300):
        for camera in range(8):
            fields = {"width": 1, "height": 1, "encoding": "mono8", "seq": number, "source": LONGEST}
            stamp_ns = START_NS + number + 1
            ledger.push(received(f"camera/{camera:057d}", b"1", **fields | {"stamp_ns": stamp_ns}))
            if ledger.full:
                journal = ledger.journal(START_NS)
                assert journal is not None
                codec.encode("journal/fusion", journal)
                entries, journals = entries + len(journal.entries), journals + 1
    assert journals > 2
    last = ledger.journal(START_NS, last=True)
    assert isinstance(last, Journal)
    parts = codec.encode("journal/fusion", last)
    assert codec.decode(parts, received_ns=1).header == last
    assert entries + len(last.entries) == 1 + 300 * 8


def test_a_publisher_that_counts_from_two_to_the_62_does_not_end_the_reader(bus: Bus) -> None:
    with (
        publisher() as (endpoint, listener),
        bus.subscriber("text/evil", connect={"text/evil": endpoint}) as reader,
        bus.publisher("health/x") as out,
    ):
        outsider, _ = listener.accept()
        with outsider:
            greet(outsider, b"PUB")
            for source in ("a", "b", "c"):
                for seq in (0, 2**62, 2**63 - 1):
                    header = {"stamp_ns": 1, "seq": seq, "source": source, "text": source}
                    outsider.sendall(frame(b"text/evil", more=True) + frame(msgpack.packb(header)))
                assert text(reader.receive(LONG_S)) == source
            outsider.sendall(frame(b"text/evil", more=True) + frame(msgpack.packb({**header, "seq": 1})))
            assert text(reader.receive(LONG_S)) == "c"
        out.send(Health(stamp_ns=1, node="x", inputs=reader.health()))


@pytest.mark.parametrize(("rules", "kept"), [(RULES, 3), (1, 20)])
def test_frames_that_wait_for_a_window_have_a_bound_in_bytes(
    monkeypatch: pytest.MonkeyPatch, rules: int, kept: int
) -> None:
    """Old recordings are cut by their own rules."""
    monkeypatch.setattr("perception.fusion.core.MAX_FRAME_BYTES", 350)
    core = FusionCore(config(), rules=rules)
    core.push(clock_tick(START_NS))
    fields = {"width": 10, "height": 10, "encoding": "mono8", "source": "c#1"}
    for seq in range(20):
        core.push(received(CAMERA, bytes(100), **fields | {"seq": seq, "stamp_ns": START_NS + seq + 1}))
    held = core.mark().inputs["camera"].held
    assert [item.seq for item in held] == list(range(20 - kept, 20))
    assert core.counts[CAMERA]["dropped"] == 20 - kept
