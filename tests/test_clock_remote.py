"""`perception.clock.remote` over simulated links: queues on one way, loss, drift, steps, suspended hosts."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import quantiles

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.clock.remote import Correction, Estimate, Probe, RemoteClock

MS = 1_000_000
SECOND = 1_000 * MS
OFFSET = 30 * SECOND
Queue = Callable[[float, random.Random], float]
"""Delay in ns of a packet that is sent at this second, beyond the delay of an idle link."""


def idle(_: float, rng: random.Random) -> float:
    return rng.expovariate(1 / 20_000)


def images(at_s: float, rng: random.Random) -> float:
    """8 Mbit/s, 90 % full: an image of 36 kB every 40 ms, jittered as a camera's."""
    return max(0.0, 36 * MS - (at_s * 1e9 + rng.uniform(0, 2 * MS)) % (40 * MS)) + idle(at_s, rng)


@dataclass
class Link:
    """Two hosts and the way between them; `local` runs from 0, the other clock is ahead and drifts."""

    there: Queue = idle
    back: Queue = idle
    drift_ppm: float = 100.0
    loss: float = 0.0
    seed: int = 1
    steps: list[tuple[float, int]] = field(default_factory=list)
    """(Second, by how much the other clock is set then)."""

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def remote_ns(self, local_ns: float) -> int:
        stepped = sum(by for at_s, by in self.steps if local_ns >= at_s * 1e9)
        return round(local_ns * (1 + self.drift_ppm * 1e-6)) + OFFSET + stepped

    def burst(self, at_s: float, count: int = 8) -> list[Probe]:
        found = []
        for number in range(count):
            sent = round((at_s + number * 0.015 + self.rng.uniform(0, 0.01)) * 1e9)
            arrives = sent + 40_000 + self.there(sent / 1e9, self.rng)
            answered = arrives + self.rng.uniform(5_000, 30_000)
            back = answered + 40_000 + self.back(answered / 1e9, self.rng)
            if self.rng.random() >= self.loss:
                found.append(Probe(sent, self.remote_ns(arrives), self.remote_ns(answered), round(back)))
        return found

    def run(self, clock: RemoteClock, seconds: int, start: int = 0) -> Iterator[tuple[float, Estimate]]:
        """Yield the estimate after each burst, one a second, or at once where a step is suspected."""
        at_s, end_s = float(start), start + seconds
        while at_s < end_s:
            clock.add(self.burst(at_s))
            at_s += 0.3
            if clock.estimate is not None:
                yield at_s, clock.estimate
            at_s += 0.0 if clock.suspect else 0.7

    def error_ns(self, at_s: float, estimate: Estimate) -> int:
        local = round(at_s * 1e9)
        return estimate.to_remote_ns(local) - self.remote_ns(local)


LINKS = {
    "idle": Link(),
    "full on the way back": Link(back=images),
    "full on the way there": Link(there=images),
    "full and lossy": Link(back=images, loss=0.3),
    "slow clock": Link(drift_ppm=-100.0),
}


@pytest.mark.parametrize("name", LINKS)
def test_offset_and_drift_are_found_on_any_link(name: str) -> None:
    link = LINKS[name]
    estimates = list(link.run(RemoteClock(), 180))
    errors = [abs(link.error_ns(at_s, estimate)) for at_s, estimate in estimates if at_s > 60]
    assert quantiles(errors, n=20)[-1] < 0.05 * MS
    assert max(errors) < 0.2 * MS
    known = next(estimate for at_s, estimate in estimates if at_s > 60)
    assert abs(known.drift_ppm - link.drift_ppm) < 1.0
    assert estimates[-1][1].steps == 0


@settings(max_examples=25, deadline=None)
@given(
    drift_ppm=st.floats(-200, 200),
    loss=st.floats(0, 0.6),
    there=st.sampled_from((idle, images)),
    back=st.sampled_from((idle, images)),
    seed=st.integers(0, 10_000),
)
def test_the_truth_is_within_the_bound_at_all_times(
    drift_ppm: float, loss: float, there: Queue, back: Queue, seed: int
) -> None:
    link = Link(there, back, drift_ppm, loss, seed)
    for at_s, estimate in link.run(RemoteClock(), 90):
        assert abs(link.error_ns(at_s, estimate)) <= estimate.bound_at(round(at_s * 1e9))
        assert estimate.steps == 0


@pytest.mark.parametrize(
    ("by", "back"),
    [
        *((by, idle) for by in (5 * MS, -3 * MS)),
        # a queue of 36 ms explains a smaller step
        *(
            (by, back)
            for by in (-OFFSET, 3600 * SECOND, -50 * 365 * 86_400 * SECOND)
            for back in (idle, images)
        ),
    ],
)
def test_a_step_is_found_within_four_seconds(by: int, back: Queue) -> None:
    link = Link(back=back, steps=[(70.4, by)])
    clock = RemoteClock()
    estimates = list(link.run(clock, 100))
    found_s = next(at_s for at_s, estimate in estimates if estimate.steps)
    assert found_s - 70.4 <= 4.0
    after = [(at_s, estimate) for at_s, estimate in estimates if at_s >= found_s]
    assert max(abs(link.error_ns(at_s, estimate)) for at_s, estimate in after) < 1 * MS
    assert {estimate.steps for _, estimate in after} == {1}
    # the crystal is the same: its drift is known from before
    assert all(abs(estimate.drift_ppm - link.drift_ppm) < 5.0 for _, estimate in after)


def test_a_silence_of_minutes_is_no_step_and_a_host_that_slept_is_one() -> None:
    """Without answers the line is extended; a host whose clock stopped meanwhile has stepped."""
    link = Link()
    clock = RemoteClock()
    list(link.run(clock, 70))
    *_, (at_s, after) = link.run(clock, 10, start=300)
    assert after.steps == 0
    assert abs(link.error_ns(at_s, after)) <= 0.2 * MS
    link.steps.append((320.0, -20 * SECOND))
    *_, (at_s, after) = link.run(clock, 4, start=340)
    assert after.steps == 1
    assert abs(link.error_ns(at_s, after)) <= 0.2 * MS


def test_a_lone_burst_of_a_host_that_hung_moves_nothing() -> None:
    link = Link()
    clock = RemoteClock()
    list(link.run(clock, 70))
    good = clock.estimate
    hung = [probe._replace(received_ns=probe.received_ns - SECOND) for probe in link.burst(71.0)]
    clock.add([probe._replace(answered_ns=probe.answered_ns - SECOND) for probe in hung])
    assert clock.suspect
    assert clock.estimate is good
    *_, (_, after) = link.run(clock, 3, start=72)
    assert after.steps == 0
    assert not clock.suspect


@pytest.mark.parametrize(
    "burst",
    [
        [],
        [Probe(100, 5, 9, 90)],
        [Probe(0, 0, 1_000, 10)],
        [Probe(-50 * SECOND, 0, 0, -49 * SECOND)],
    ],
    ids=["no answer", "back before it was sent", "longer there than away", "older than the newest"],
)
def test_answers_that_cannot_be_change_nothing(burst: list[Probe]) -> None:
    clock = RemoteClock()
    clock.add([Probe(10 * SECOND, 40 * SECOND, 40 * SECOND, 10 * SECOND + 100)])
    before = clock.estimate
    clock.add(burst)
    assert clock.estimate == before
    assert RemoteClock().estimate is None


# --- stamps of the other host ---


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), back=st.sampled_from((idle, images)), drift_ppm=st.floats(-200, 200))
def test_stamps_keep_their_order_and_are_right(seed: int, back: Queue, drift_ppm: float) -> None:
    link = Link(back=back, drift_ppm=drift_ppm, seed=seed)
    correction, rng = Correction(), random.Random(seed)
    assert correction.to_local_ns(OFFSET) is None
    mapped, stamp = [], 0
    for at_s, estimate in link.run(RemoteClock(), 80):
        correction.update(estimate)
        # up to now, some of them 100 ns apart, some late
        now = link.remote_ns(at_s * 1e9)
        for back_ns in sorted(
            (rng.choice((100 * number, rng.randrange(2 * SECOND))) for number in range(20)), reverse=True
        ):
            stamp = max(stamp + 1, now - back_ns)
            local = correction.to_local_ns(stamp)
            assert local is not None
            mapped.append(local)
            if at_s > 60:
                true = (stamp - OFFSET) / (1 + drift_ppm * 1e-6)
                assert abs(local - true) < 0.3 * MS
    assert all(one <= other for one, other in pairwise(mapped))


def test_after_a_step_stamps_are_right_at_once() -> None:
    link = Link(steps=[(70.4, 3600 * SECOND)])
    clock, correction = RemoteClock(), Correction()
    for at_s, estimate in link.run(clock, 80):
        correction.update(estimate)
        if estimate.steps:
            local = correction.to_local_ns(link.remote_ns(at_s * 1e9))
            assert local is not None
            assert abs(local - at_s * 1e9) < 1 * MS
    assert clock.estimate is not None
    assert clock.estimate.steps == 1
