"""The judge of a stream's timing, from stamps and arrivals, for cameras and sound."""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest

from perception.devices.device import CapturedBlock, CapturedFrame
from perception.devices.signal.blocks import BlockJudge
from perception.devices.signal.frames import FrameJudge
from perception.devices.signal.timing import DeviceJudge, StreamJudge, camera_rate_hz
from perception.messages import ConditionName
from perception.profile import CameraConfig
from perception.profile.signal import CameraSignal, MicrophoneSignal, StreamSignal
from perception.units import SECOND_NS

Times = npt.NDArray[np.float64]
FAULT_S: Final = 4.0
NOTICED_S: Final = 2.5
RATES_HZ: Final = (10.0, 30.0, 50.0, 100.0)


def regular(rate_hz: float, seconds: float = 10.0) -> Times:
    """Return stamps and arrivals in seconds, (items, 2): each item arrives 20 ms after its stamp."""
    stamps = np.arange(round(rate_hz * seconds)) / rate_hz
    return np.stack([stamps, stamps + 0.02], axis=1)


def conditions(times: Times, rate_hz: float | None) -> list[tuple[float, ConditionName, str]]:
    """Return arrival, condition and reason of each item."""
    judge, found = StreamJudge(StreamSignal(), rate_hz, 0), []
    for stamp_s, arrival_s in times:
        judge.update(round(stamp_s * SECOND_NS), round(arrival_s * SECOND_NS))
        found.append((float(arrival_s), judge.condition, judge.reason))
    return found


def from_fault(times: Times, changed: Times) -> Times:
    """Return `times` until the fault, then `changed`."""
    return np.concatenate([times[times[:, 0] < FAULT_S], changed[changed[:, 0] >= FAULT_S]])


def slow(rate_hz: float, rng: np.random.Generator) -> Times:
    return regular(rate_hz * 0.4)


def dropping(rate_hz: float, rng: np.random.Generator) -> Times:
    return regular(rate_hz)[rng.random(round(rate_hz * 10)) < 0.3]


def uneven(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz) + rng.uniform(-0.9, 0.9, (round(rate_hz * 10), 1)) / rate_hz
    return times[np.argsort(times[:, 0])]


def delayed_unevenly(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz)
    times[:, 1] = np.maximum.accumulate(times[:, 1] + rng.choice([0, 0.7], len(times), p=[0.85, 0.15]))
    return times


def ever_later(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz)
    times[:, 1] += np.maximum(times[:, 0] - FAULT_S, 0) * 0.2
    return times


def late(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz)
    times[:, 1] += np.where(times[:, 0] >= FAULT_S, 0.8, 0)
    return times


FAULTS: Final[dict[str, tuple[set[ConditionName], Callable[[float, np.random.Generator], Times]]]] = {
    "slow": ({"slow"}, slow),
    "most items dropped": ({"slow"}, dropping),
    "uneven stamps": ({"jittery"}, uneven),
    "uneven arrivals": ({"jittery", "lagging"}, delayed_unevenly),
    "ever later": ({"lagging"}, ever_later),
    "late at once": ({"lagging"}, late),
}


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_timing_is_named_within_two_and_a_half_seconds(name: str, rate_hz: float) -> None:
    wanted, fault = FAULTS[name]
    times = from_fault(regular(rate_hz), fault(rate_hz, np.random.default_rng(3)))
    found = conditions(times, rate_hz)
    assert {name for at_s, name, _ in found if 1.5 < at_s < FAULT_S} == {"ok"}
    named = [(name, reason) for at_s, name, reason in found if at_s < FAULT_S + NOTICED_S][-1]
    assert named[0] in wanted, named
    assert named[1]


def bursts(rate_hz: float, rng: np.random.Generator) -> Times:
    """Several blocks arrive at once, as sound servers deliver them."""
    times = regular(rate_hz)
    times[:, 1] = np.ceil(times[:, 1] / 0.1) * 0.1
    return times


def drifting(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz)
    times[:, 1] *= 1.0002
    return times


def shaken(rate_hz: float, rng: np.random.Generator) -> Times:
    times = regular(rate_hz)
    times[:, 0] += rng.normal(0, 0.1 / rate_hz, len(times))
    times[:, 1] += rng.exponential(0.02, len(times))
    return times


def some_dropped(rate_hz: float, rng: np.random.Generator) -> Times:
    return regular(rate_hz)[rng.random(round(rate_hz * 10)) > 0.05]


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("way", [bursts, drifting, shaken, some_dropped])
def test_what_real_devices_do_is_right(
    way: Callable[[float, np.random.Generator], Times], rate_hz: float
) -> None:
    found = conditions(way(rate_hz, np.random.default_rng(4)), rate_hz)
    assert {name for _, name, _ in found} == {"starting", "ok"}
    assert [name for at_s, name, _ in found if at_s > 1.5].count("starting") == 0


@pytest.mark.parametrize("rate_hz", [0.2, 1.0, 3.0])
def test_a_stream_of_few_items_is_judged_over_more_time(rate_hz: float) -> None:
    found = conditions(regular(rate_hz, 40 / rate_hz), rate_hz)
    assert [name for _, name, _ in found] == ["starting"] * 7 + ["ok"] * 33


def test_a_rate_that_nobody_set_is_the_fastest_of_the_stream() -> None:
    assert {name for _, name, _ in conditions(regular(5.0), None)} == {"starting", "ok"}
    found = conditions(from_fault(regular(30.0), regular(10.0)), None)
    assert found[-1][1] == "slow"
    assert "instead of 30" in found[-1][2]


def test_a_fault_that_comes_and_goes_is_over_after_a_second_without_it() -> None:
    times = from_fault(regular(50.0), uneven(50.0, np.random.default_rng(3)))
    good = regular(50.0, 20.0)
    found = conditions(np.concatenate([times, good[good[:, 0] > 10.0]]), 50.0)
    names = [name for at_s, name, _ in found if at_s > 1.5]
    changes = [name for name, before in zip(names[1:], names, strict=False) if name != before]
    assert changes == ["jittery", "ok"]
    assert 11.0 < next(at_s for at_s, name, _ in found if at_s > 10.0 and name == "ok") < 13.0


def test_a_stream_is_lost_within_a_second_and_starts_again() -> None:
    judge = StreamJudge(StreamSignal(), 30.0, 0)
    for stamp_s, arrival_s in regular(30.0, 3.0):
        judge.update(round(stamp_s * SECOND_NS), round(arrival_s * SECOND_NS))
    judge.idle(round(3.8 * SECOND_NS))
    before = judge.condition
    judge.idle(round(3.95 * SECOND_NS))
    assert (before, judge.condition, judge.reason) == ("ok", "lost", "the device delivers nothing")
    judge.idle(5 * SECOND_NS, "camera 0: no such device")
    assert (str(judge.condition), judge.reason) == ("reconnecting", "camera 0: no such device")
    judge.update(6 * SECOND_NS, 6 * SECOND_NS)
    assert str(judge.condition) == "starting"


def test_a_device_has_time_for_its_first_item_and_a_slow_one_for_each() -> None:
    judge = StreamJudge(StreamSignal(), 0.5, 0)
    judge.idle(2 * SECOND_NS)
    before = judge.condition
    judge.idle(4 * SECOND_NS)
    assert (before, judge.condition) == ("starting", "lost")
    judge.update(5 * SECOND_NS, 5 * SECOND_NS)
    judge.idle(12 * SECOND_NS)
    before = judge.condition
    judge.idle(14 * SECOND_NS)
    assert (before, judge.condition) == ("starting", "lost")


def test_of_signal_and_timing_the_more_serious_is_named() -> None:
    timing = StreamJudge(CameraSignal(), 30.0, 0)
    judge = DeviceJudge(FrameJudge(CameraSignal()), timing)
    black = np.zeros((48, 64, 3), np.uint8)
    for number in range(100):
        at_ns = number * SECOND_NS // 30
        judge.update(CapturedFrame(black, at_ns), at_ns)
    assert (judge.condition, judge.gone) == ("black", False)
    assert {"brightness", "stream_hz"} <= judge.facts.keys()
    judge.idle(10 * SECOND_NS)
    assert (judge.condition, judge.gone) == ("lost", True)


def blocks(seconds: float, form: type[np.generic]) -> Iterable[CapturedBlock]:
    rng = np.random.default_rng(1)
    for at in range(0, round(seconds * 16_000), 512):
        sound = rng.normal(0, 100, (512, 1)).astype(form)
        yield CapturedBlock(sound, at * 62_500, at)


def test_sound_with_nan_is_left_out() -> None:
    judge = BlockJudge(MicrophoneSignal(), 16_000)
    broken = np.full((512, 1), np.nan, np.float32)
    for block in blocks(4.0, np.float32):
        judge.update(block)
        judge.update(CapturedBlock(broken, block.stamp_ns, block.sample_index))
    assert judge.facts["level_dbfs"] == pytest.approx(40.0, abs=0.5)


@pytest.mark.parametrize(
    ("settings", "facts", "wanted"),
    [
        ({}, {}, None),
        ({}, {"rate_hz": 15.0}, 15.0),
        ({"rate_hz": 10}, {"rate_hz": 30.0}, 10.0),
        ({"rate_hz": 10}, {"rate_hz": 0.0}, 10.0),
    ],
)
def test_the_nominal_rate_of_a_camera(
    settings: dict[str, float], facts: dict[str, str | float], wanted: float | None
) -> None:
    config = CameraConfig.model_validate({"source": "0"} | settings)
    assert camera_rate_hz(config, facts) == wanted
