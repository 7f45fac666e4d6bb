"""Judges hours of recorded sound, with faults and without: what is named, how soon, how often wrongly.

python -m tests.benchmarks.sound_conditions --data ../shared/data [--trials 50] [--rates 8000 16000 44100]

Faults: each trial plays 3 s of recordings as they are, then with a fault, at a random rate, format, number of
channels and block length. Right is the condition that is named 2.5 s after the fault began. Recordings are
taken where they are loud, since a pause shows no fault of loud sound.

Alarms: every recording is played once, as it is and at -30 dB. Counted apart is what the
recording itself is: `silent` where no sample of two seconds is above one LSB of 16 bit, `clipped` where
samples are at full scale. A computed test tone is left out.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedBlock
from perception.devices.signal.blocks import BlockJudge
from perception.devices.sound import Sound, kind_of_sound
from perception.errors import DeviceError
from perception.profile.signal import MicrophoneSignal
from perception.units import SECOND_NS
from tests.sound_faults import FAULTS, NEED_TWO, Floats, as_format, resampled

RATES_HZ: Final = (8000, 16_000, 44_100, 48_000)
CLEAN_S: Final = 3.0
NOTICED_S: Final = 2.5
BLOCKS_S: Final = (0.01, 0.02, 0.032, 0.1)
FORMATS: Final = (("f32", 1.0), ("s16", 1.0), ("f32", 10**-1.5), ("s16", 10**-1.5))
SYNTHETIC: Final = ("av-720p.mp4",)
"""Its sound is a computed triangle wave."""


@dataclass(frozen=True)
class Recordings:
    """Files of one folder and kind, one after the other."""

    name: str
    rate_hz: int
    parts: list[Floats]


def recordings(data: Path) -> list[Recordings]:
    """Return all sound below `data`, at the rates and channels of the files."""
    found: dict[tuple[str, int, int], list[Floats]] = defaultdict(list)
    folders = [data / name for name in ("esc10", "fsdd", "grid", "orders", "speech", "video")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.*") if path.is_file()):
        if path.name in SYNTHETIC:
            continue
        try:
            rate_hz, channels = kind_of_sound(str(path))
            sound = Sound(
                str(path), rate_hz=rate_hz, channels=channels, sample_format="f32", loop=False, start=0
            )
            part = np.concatenate(list(sound.blocks(rate_hz)))
        except (DeviceError, ValueError):
            continue
        name = path.relative_to(data).parts[0]
        found[name, rate_hz, channels].append(np.asarray(part, np.float32))
    return [Recordings(name, rate_hz, parts) for (name, rate_hz, _), parts in found.items()]


def played(
    samples: npt.NDArray[np.int16] | Floats, rate_hz: int, block_s: float
) -> Iterator[tuple[float, BlockJudge]]:
    """Yield the end of each block in seconds and the judge after it."""
    judge, size = BlockJudge(MicrophoneSignal(), rate_hz), round(block_s * rate_hz)
    for at in range(0, len(samples) - size + 1, size):
        judge.update(CapturedBlock(samples[at : at + size], at * SECOND_NS // rate_hz, at))
        yield (at + size) / rate_hz, judge


def excerpt(found: list[Recordings], rng: np.random.Generator, lowest_hz: int) -> tuple[Floats, int]:
    """Return 8 s at a random rate that the recording has; the last 5 s are its loudest."""
    usable = [one for one in found if one.rate_hz >= lowest_hz]
    one = usable[rng.integers(len(usable))]
    parts: list[Floats] = []
    while sum(map(len, parts)) < 20 * one.rate_hz:
        parts.append(one.parts[rng.integers(len(one.parts))])
    sound = np.concatenate(parts)[: 20 * one.rate_hz]
    rates = [rate_hz for rate_hz in RATES_HZ if lowest_hz <= rate_hz <= 1.1 * one.rate_hz]
    rate_hz = int(rng.choice(rates))
    sound = resampled(sound, one.rate_hz, rate_hz)
    loudness = [
        float(np.median([np.std(hop) for hop in np.array_split(sound[at : at + 5 * rate_hz], 10)]))
        for at in range(3 * rate_hz, len(sound) - 5 * rate_hz, rate_hz)
    ]
    start = int(np.argmax(loudness)) * rate_hz
    return sound[start : start + 8 * rate_hz], rate_hz


def trial(found: list[Recordings], name: str, seed: int) -> tuple[str, float | None]:
    """Return what is named 2.5 s after the fault began, and after how many seconds it was named rightly."""
    wanted, fault = FAULTS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    sound, rate_hz = excerpt(found, rng, 16_000 if name.startswith("8 kHz") else 8000)
    channels = 2 if name in NEED_TWO else int(rng.integers(1, 3))
    sound = np.repeat(sound[:, :1], channels, axis=1) if sound.shape[1] < channels else sound[:, :channels]
    form, block_s = str(rng.choice(["s16", "f32"])), float(rng.choice(BLOCKS_S))
    begin = round(CLEAN_S * rate_hz)
    whole = np.concatenate([sound[:begin], fault(sound[begin:], rate_hz, rng)])
    named, after_s = "", None
    for end_s, judge in played(as_format(whole, form), rate_hz, block_s):
        if end_s > CLEAN_S + NOTICED_S:
            break
        named = judge.condition
        if end_s > CLEAN_S and named == wanted and after_s is None:
            after_s = end_s - CLEAN_S
    return named, after_s


def faults(found: list[Recordings], trials: int) -> None:
    """Print the table of faults."""
    right = 0
    print(f"{'fault':26}{'named':44}{'seconds p50':>12}{'max':>6}")
    for name, (wanted, _) in FAULTS.items():
        results = [trial(found, name, seed) for seed in range(trials)]
        named = Counter(result[0] for result in results)
        right += named[wanted]
        seconds = sorted(after_s for _, after_s in results if after_s is not None) or [float("nan")]
        table = ", ".join(f"{condition} {times}" for condition, times in named.most_common())
        print(f"{name:26}{table:44}{seconds[len(seconds) // 2]:12.2f}{seconds[-1]:6.2f}")
    print(f"right: {right} of {trials * len(FAULTS)}")


def itself(condition: str, newest: npt.NDArray[np.int16] | Floats) -> bool:
    """Return whether the recording itself is so."""
    peak = float(np.abs(newest.astype(np.float32)).max()) * (1 if newest.dtype == np.int16 else 32768)
    return (condition == "silent" and peak <= 1.5) or (condition == "clipped" and peak >= 32767)


def alarms(found: list[Recordings], rates_hz: list[int], formats: Sequence[tuple[str, float]]) -> None:
    """Print what is named in recordings that have no fault, and the time that judging takes."""
    seconds = used_s = 0.0
    blocks, wrong, true = 0, Counter[str](), Counter[str]()
    for one in found:
        for rate_hz in {one.rate_hz, *(rate_hz for rate_hz in rates_hz if rate_hz <= one.rate_hz)}:
            joined = np.concatenate([resampled(part, one.rate_hz, rate_hz) for part in one.parts])
            for form, gain in formats:
                samples = as_format(np.clip(joined * np.float32(gain), -1, 1), form)
                before, started = "ok", time.process_time()
                for end_s, judge in played(samples, rate_hz, 0.02):
                    if judge.condition not in ("ok", before):
                        end = round(end_s * rate_hz)
                        newest = samples[max(end - 2 * rate_hz, 0) : end]
                        (true if itself(judge.condition, newest) else wrong)[judge.condition] += 1
                        if not itself(judge.condition, newest):
                            print(
                                f"  {one.name} {rate_hz} Hz {form} x{gain:.2f} {end_s:.1f} s: {judge.reason}"
                            )
                    before = judge.condition
                    blocks += 1
                used_s += time.process_time() - started
                seconds += len(samples) / rate_hz
    print(f"{seconds / 3600:.2f} h without a fault: alarms {sum(wrong.values())} {dict(wrong)}")
    print(f"  true of the recording itself: {dict(true)}")
    print(f"  {used_s / blocks * 1e6:.0f} us a block of 20 ms, all rates and channels together")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=50, help="trials of each fault")
    parser.add_argument("--all", action="store_true", help="alarms: each level as s16 and as f32")
    parser.add_argument("--rates", type=int, nargs="*", default=[], help="rates beside that of each file")
    chosen = parser.parse_args()
    found = recordings(chosen.data)
    hours = sum(len(part) / one.rate_hz for one in found for part in one.parts) / 3600
    print(f"{hours:.2f} h of recordings: " + ", ".join(f"{one.name} {one.rate_hz} Hz" for one in found))
    if chosen.trials:
        faults([one for one in found if max(np.abs(part).max() for part in one.parts) > 0.01], chosen.trials)
    alarms(found, chosen.rates, FORMATS if chosen.all else FORMATS[1:3])


if __name__ == "__main__":
    main()
