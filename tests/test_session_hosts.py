"""A session whose messages come from several hosts: what is recorded where it may, verify gives the same."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from msgspec import structs

from perception.messages import FusedState, Header, Label, Message, TextCommand, as_published, corrected
from perception.profile import Profile
from perception.session.file.reader import Session
from perception.session.file.writer import SessionWriter
from perception.session.recompute.verify import verify
from tests.live import LiveRun
from tests.streams import CAMERA, START_NS
from tests.test_verify import SPEED, fusion, scripted

SECOND = 1_000_000_000
AHEAD = 30 * SECOND


def elsewhere(message: Message[Header]) -> Message[Header]:
    """A message of a host whose clock is 30 s ahead and 100 ppm fast, as it was published there."""
    ahead_ns = AHEAD + round((message.header.stamp_ns - START_NS) * 1e-4)
    return structs.replace(
        message, header=structs.replace(corrected(message.header, ahead_ns), correction_ns=0)
    )


def estimated(seed: int, offset_ns: int) -> Callable[[Message[Header]], Message[Header]]:
    """What a receiving process does: its own estimate, a little different for each message."""
    rng = random.Random(seed)

    def receive(message: Message[Header]) -> Message[Header]:
        by_ns = offset_ns + rng.randrange(-50_000, 50_000)
        return structs.replace(message, header=corrected(message.header, by_ns))

    return receive


def published(messages: Iterable[Message[Header]]) -> list[Message[Header]]:
    return [structs.replace(one, header=as_published(one.header)) for one in messages]


@pytest.fixture(scope="module")
def live() -> list[Message[Header]]:
    """The camera is on another host than the fusion."""
    from_afar = estimated(1, -AHEAD)
    arrivals = [from_afar(elsewhere(one)) if one.topic == CAMERA else one for one in scripted(4.0)]
    return LiveRun(fusion(), "far", speed=SPEED).run(arrivals)


def states_of(messages: Iterable[Message[Header]]) -> list[FusedState]:
    return [one.header for one in messages if isinstance(one.header, FusedState)]


def test_a_recorder_beside_the_fusion_may_estimate_another_offset(live: list[Message[Header]]) -> None:
    own = estimated(2, -AHEAD)
    recorded = [
        own(structs.replace(one, header=as_published(one.header))) if one.topic == CAMERA else one
        for one in live
    ]
    corrections = {one.header.correction_ns for one in recorded if one.topic == CAMERA}
    assert not corrections & {one.header.correction_ns for one in live if one.topic == CAMERA}
    verdict = verify(recorded, Profile(fusion=fusion()))
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(live))), str(verdict.first)


def test_the_recorder_may_be_on_any_host(live: list[Message[Header]], tmp_path: Path) -> None:
    """On a third one, an hour off: all messages are of other hosts, the fusion's too."""
    own = estimated(3, 3600 * SECOND)
    with SessionWriter(tmp_path / "far.mcap") as writer:
        for message in published(live):
            writer.write(own(message))
    with Session(tmp_path / "far.mcap") as session:
        stamps = {one.header.stamp_ns - one.header.correction_ns for one in session.messages([CAMERA])}
    assert stamps == {one.header.stamp_ns for one in published(live) if one.topic == CAMERA}
    verdict = verify(tmp_path / "far.mcap", Profile(fusion=fusion()))
    assert (verdict.exit_code, verdict.equal) == (0, len(states_of(live))), str(verdict.first)


@pytest.mark.parametrize("began_s", [1.2, 2.9])
def test_a_recording_may_begin_anywhere(live: list[Message[Header]], began_s: float) -> None:
    own = estimated(4, -AHEAD)
    later = [one for one in live if one.received_ns >= START_NS + round(began_s * 1e9)]
    recorded = [
        own(structs.replace(one, header=as_published(one.header))) if one.topic == CAMERA else one
        for one in later
    ]
    verdict = verify(recorded, Profile(fusion=fusion()))
    assert (verdict.exit_code, verdict.different) == (0, 0), str(verdict.first)
    assert verdict.equal > 0


def test_the_windows_are_those_of_one_clock(live: list[Message[Header]]) -> None:
    ages = [state.modalities["camera"].age_ms for state in states_of(live)]
    assert all(age is not None and 0 <= age <= 500 for age in ages[2:])


def test_a_correction_moves_all_times_and_is_undone_exactly() -> None:
    label = Label(stamp_ns=5, sent_ns=6, start_ns=5, end_ns=9, name="clap")
    moved = corrected(corrected(label, 100), -30)
    assert (moved.stamp_ns, moved.sent_ns, moved.start_ns, moved.end_ns, moved.correction_ns) == (
        *(75, 76, 75, 79, 70),
    )
    assert as_published(moved) == label
    assert as_published(label) is label
    assert corrected(TextCommand(stamp_ns=1, text="go"), 1).stamp_ns == 2
