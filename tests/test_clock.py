"""`perception.clock.samples` over minutes of simulated callbacks, without sleeping."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest

from perception.clock.samples import LossDetector, SampleClock, device_to_host_ns

RATE_HZ = 16_000
BLOCK = 512
START_NS = 1_790_000_000_000_000_000
MS = 1_000_000


@dataclass(frozen=True)
class Callback:
    """One simulated block: the true time of its first sample, and what the device reports."""

    sample_index: int
    true_ns: int
    adc_ns: int


def callbacks(
    seconds: float,
    *,
    drift_ppm: float = 0.0,
    late_ms: float = 5.0,
    wall_steps: tuple[tuple[float, float], ...] = (),
    seed: int = 1,
) -> Iterator[Callback]:
    """Simulate a device whose clock is the wall clock and whose callbacks come late.

    A wall step (at second, by seconds) falls between the ADC time and the callback's look at the clock
    when it hits a block, which is the worst case.
    """
    rng = random.Random(seed)
    real_rate_hz = RATE_HZ * (1 + drift_ppm * 1e-6)
    for index in range(0, int(seconds * RATE_HZ), BLOCK):
        true_ns = START_NS + round(index / real_rate_hz * 1e9)
        late_s = min(rng.expovariate(1e3 / late_ms), 0.02) if late_ms else 0.0
        adc_s = (true_ns - START_NS) / 1e9 + late_s
        now_s = adc_s + BLOCK / RATE_HZ
        host_ns = START_NS + round(now_s * 1e9)
        adc_wall_s = adc_s + sum(by for at, by in wall_steps if adc_s >= at)
        now_wall_s = now_s + sum(by for at, by in wall_steps if now_s >= at)
        yield Callback(index, true_ns, device_to_host_ns(adc_wall_s, now_wall_s, host_ns))


def errors_ms(clock: SampleClock, run: Iterator[Callback], settle: int = 8) -> list[float]:
    """Feed a run to the clock; return stamp minus truth of every block after the settling ones."""
    errors = []
    for number, callback in enumerate(run):
        clock.observe(callback.sample_index, callback.adc_ns)
        if number >= settle:
            errors.append((clock.stamp_ns(callback.sample_index) - callback.true_ns) / MS)
    return errors


def test_ten_minutes_of_drift_jitter_and_wall_clock_steps_leave_under_5_ms() -> None:
    began = time.process_time()
    clock = SampleClock(RATE_HZ)
    steps = ((60.0, 30.0), (200.01, -30.0), (200.5, -30.0), (430.0, 30.0))
    run = callbacks(600, drift_ppm=100, late_ms=8, wall_steps=steps)
    errors = errors_ms(clock, run)
    print(f"error ms: worst {max(map(abs, errors)):.2f}, after 30 s {max(map(abs, errors[940:])):.2f}")
    assert max(map(abs, errors)) <= 5
    assert max(map(abs, errors[940:])) <= 1.5
    assert clock.drift_ppm == pytest.approx(100, abs=5)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("drift_ppm", [-300.0, 0.0, 300.0])
def test_drift_is_measured_with_its_sign(drift_ppm: float) -> None:
    clock = SampleClock(RATE_HZ)
    errors = errors_ms(clock, callbacks(120, drift_ppm=drift_ppm))
    assert clock.drift_ppm == pytest.approx(drift_ppm, abs=10)
    assert max(map(abs, errors)) <= 5


def test_stamps_strictly_increase_and_never_step() -> None:
    clock = SampleClock(RATE_HZ)
    stamps = []
    for callback in callbacks(60, drift_ppm=100, late_ms=8):
        clock.observe(callback.sample_index, callback.adc_ns)
        stamps += [clock.stamp_ns(callback.sample_index + offset) for offset in range(0, BLOCK, 64)]
    nominal_ns = 64 / RATE_HZ * 1e9
    assert all(abs((later - earlier) / nominal_ns - 1) < 0.021 for earlier, later in pairwise(stamps))


def test_a_few_wild_observations_move_nothing() -> None:
    rng = random.Random(2)
    clock = SampleClock(RATE_HZ)
    wild = (
        Callback(callback.sample_index, callback.true_ns, callback.adc_ns + rng.choice((-1, 1)) * 10**10)
        if rng.random() < 0.03 and callback.sample_index > RATE_HZ
        else callback
        for callback in callbacks(60, late_ms=3)
    )
    assert max(map(abs, errors_ms(clock, wild))) <= 2


def test_a_lasting_step_is_followed_without_a_jump() -> None:
    step_at = 10 * RATE_HZ
    stepped = (
        Callback(c.sample_index, c.true_ns, c.adc_ns - 50 * MS * (c.sample_index > step_at))
        for c in callbacks(40, late_ms=0)
    )
    errors = errors_ms(SampleClock(RATE_HZ), stepped, settle=0)
    assert abs(errors[step_at // BLOCK]) < 1
    assert abs(errors[-1] + 50) < 1
    assert max(abs(later - earlier) for earlier, later in pairwise(errors)) < 1


def test_opening_the_device_anew_restarts_the_fit_and_stamps_go_on_increasing() -> None:
    clock = SampleClock(RATE_HZ)
    for callback in callbacks(20, late_ms=0):
        clock.observe(callback.sample_index, callback.adc_ns)
        last_ns = clock.stamp_ns(callback.sample_index)
    clock.restart()
    index = callback.sample_index + BLOCK
    clock.observe(index, last_ns - 5 * MS)
    assert clock.stamp_ns(index) > last_ns
    clock.restart()
    clock.observe(index + BLOCK, last_ns + 10**10)
    assert clock.stamp_ns(index + BLOCK) == last_ns + 10**10


def test_the_first_stamp_waits_for_no_history() -> None:
    clock = SampleClock(RATE_HZ)
    clock.observe(4096, START_NS)
    assert clock.stamp_ns(4096) == START_NS
    assert clock.stamp_ns(4096 + RATE_HZ) == START_NS + 10**9
    assert clock.drift_ppm == 0


def test_a_stepped_device_clock_maps_to_the_same_host_time() -> None:
    assert device_to_host_ns(99.75, 100.0, START_NS) == START_NS - 250 * MS
    assert device_to_host_ns(69.75, 70.0, START_NS) == START_NS - 250 * MS


def test_a_late_callback_is_no_loss() -> None:
    detector = LossDetector(RATE_HZ)
    lateness_ms = [2, 40, 90, 3, 0, 60, 60, 60, 60, 1, 2] * 5
    assert [detector.lost(late * MS, overflow=False) for late in lateness_ms] == [0] * len(lateness_ms)


def test_lasting_lateness_is_a_loss_of_that_many_samples() -> None:
    detector = LossDetector(RATE_HZ)
    lost = [
        detector.lost(late * MS, overflow=False) for late in (0, 1, 100, 104, 103, 102, 100, 101, 108, 102)
    ]
    assert lost == [0] * 9 + [1600]


def test_a_reported_overflow_is_believed_at_once() -> None:
    detector = LossDetector(RATE_HZ)
    assert detector.lost(32 * MS, overflow=True) == 512
    assert detector.lost(-1 * MS, overflow=True) == 1
