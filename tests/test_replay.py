"""Replaying in process: from where a core stood, without journals, by several workers."""

from collections.abc import Sequence

import pytest
from msgspec import msgpack, structs

from perception.fusion.core import FusionCore
from perception.fusion.window import Window
from perception.messages import CoreMark, Header, Message
from perception.profile import FusionConfig
from perception.session import replay
from perception.session.recompute.cutting import cut_as_arrived
from perception.units import SECOND_NS
from tests.streams import MS, START_NS, Stream, of, run, scripted_room
from tests.streams import config as streams_config
from tests.test_fusion_core import content, in_order
from tests.test_verify import PROFILE, fusion


@pytest.fixture(scope="module")
def recording() -> Stream:
    return scripted_room()


# --- a core goes on where another stood ---


@pytest.mark.parametrize("at", [1, 40, 133, 250])
def test_a_core_resumed_from_a_mark_cuts_the_same_windows(at: int) -> None:
    stream = in_order(8.0)
    first, second = FusionCore(streams_config()), FusionCore(streams_config())
    run(first, stream[:at])
    mark = first.mark()
    by_seq = {(one.topic, one.header.seq): one for one in stream}
    travelled = msgpack.decode(msgpack.encode(mark), type=CoreMark)
    second.resume(travelled, lambda item: by_seq[item.topic, item.seq])
    assert second.mark() == mark
    went_on = [[window for one in stream[at:] for window in core.push(one)] for core in (first, second)]
    assert [window.tick for window in went_on[0]] == [window.tick for window in went_on[1]]

    def beyond_sound(windows: list[Window]) -> list[tuple[object, ...]]:
        known_ns = stream[at].header.stamp_ns + 1_200 * MS
        return [content(window) for window in windows if window.end_ns > known_ns]

    assert beyond_sound(went_on[0]) == beyond_sound(went_on[1])
    assert len(beyond_sound(went_on[0])) >= 10


def test_a_mark_fits_only_a_core_that_is_configured_alike() -> None:
    mark = FusionCore(streams_config()).mark()
    with pytest.raises(ValueError, match="another configuration"):
        FusionCore(streams_config(hop_ms=50.0)).resume(mark, lambda item: pytest.fail("nothing was held"))


# --- without journals ---


def test_without_journals_all_windows_are_concluded_to_the_last_data(recording: Stream) -> None:
    states = list(replay(recording, PROFILE))
    assert [state.tick for state in states] == list(range(states[0].tick, states[0].tick + 39))
    assert [state.seq for state in states] == list(range(39))
    assert states[-1].modalities["camera"].presence == "present"


def test_the_number_of_workers_changes_nothing(recording: Stream) -> None:
    one, three = (list(replay(recording, PROFILE, workers=count)) for count in (1, 3))
    assert one == three


def ticks(stream: Sequence[Message[Header]], config: FusionConfig, on_clock: bool) -> list[int]:
    return [cut.window.tick for cut in cut_as_arrived(stream, config, on_clock=on_clock)]


def test_time_goes_on_by_arrivals_while_nothing_that_is_fused_arrives(recording: Stream) -> None:
    last_ns = START_NS + 3 * SECOND_NS
    silent = [*recording[:40], structs.replace(of(recording, "label/truth")[0], received_ns=last_ns)]
    live, alone = (ticks(silent, fusion(), on_clock) for on_clock in (True, False))
    assert live[: len(alone)] == alone
    assert live[-1] == (last_ns - 1 - 60 * MS) // (100 * MS)
    assert live == list(range(live[0], live[-1] + 1))
