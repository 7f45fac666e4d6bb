"""The judgement of `tests.benchmarks.overload` on known states and samples."""

import random

from tests.benchmarks.overload import Observed, Reader, p99, slope_is_zero, verdict
from tests.test_torture import state


def test_a_memory_that_grows_is_told_from_one_that_varies() -> None:
    chance = random.Random(1)
    noise = [(second, 600 + chance.gauss(0, 2)) for second in range(900)]
    assert slope_is_zero(noise)[0]
    assert not slope_is_zero([(second, mib + second * 0.01) for second, mib in noise])[0]
    assert slope_is_zero([(second, 600.0) for second in range(900)])[0]


def test_every_tick_is_published_or_shed() -> None:
    reader = Reader()
    for tick, seq, shed in ((10, 0, 0), (12, 1, 1), (13, 2, 0), (16, 3, 2)):
        reader.add(state(tick, seq=seq, shed=shed, modalities=parts(tick, "present")).state, 100.0, tick / 10)
    assert (reader.seen.uncounted, reader.seen.shed, reader.seen.wrong_presence) == (0, 3, 0)
    reader.add(state(18, seq=4, shed=0, modalities=parts(18, "present")).state, 100.0, 1.8)
    assert reader.seen.uncounted == 1


def parts(seq: int, presence: str) -> dict[str, object]:
    from perception.messages import ModalityState

    camera = ModalityState(topic="camera/front", presence=presence, seqs=(seq, seq))  # type: ignore[arg-type]
    return {"camera": camera, "text": ModalityState(topic="text/*", presence="absent")}


def test_presence_is_true_to_the_last_state_of_this_reader() -> None:
    for seq, presence, wrong in ((7, "held", 0), (7, "present", 1), (8, "present", 0), (8, "held", 1)):
        reader = Reader()
        reader.add(state(1, seq=0, modalities=parts(7, "present")).state, 100.0, 0.1)
        reader.add(state(2, seq=1, modalities=parts(seq, presence)).state, 100.0, 0.2)
        assert reader.seen.wrong_presence == wrong


def test_what_does_not_hold_is_named() -> None:
    seen = Observed(
        ages=[(float(s), 100.0) for s in range(300)], memory=[(float(s), 5.0) for s in range(300)]
    )
    seen.states = 300
    assert verdict(seen, None)["failures"] == []
    seen.ages = [(float(s), 100.0 + s) for s in range(300)]
    seen.memory = [(float(s), 5.0 + s) for s in range(300)]
    seen.uncounted = seen.wrong_presence = 1
    assert len(verdict(seen, None)["failures"]) == 4  # type: ignore[arg-type]
    assert p99([1.0] * 98 + [5.0, 6.0]) == 6.0
