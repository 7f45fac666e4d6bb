"""Print how far the streaming log-mel is from the VGGish reference frames, and what it costs.

python tests/benchmarks/features_reference.py --data ../shared/data
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchaudio

from perception.features.audio import AudioFrontEnd
from perception.features.logmel import VGGISH, StreamingLogMel
from perception.features.resample import Resampler

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds vggish/")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    differences(arguments.data / "vggish" / "frontend-reference.npz")
    costs(arguments.rounds)
    front_end_costs(arguments.rounds)


def differences(path: Path) -> None:
    reference = np.load(path, allow_pickle=False)
    sounds = {
        "speech": (reference["speech_waveform_int16"] / np.float32(32768), reference["speech_logmel"]),
        "noise": (reference["noise_waveform"], reference["noise_logmel"]),
        "sine": (reference["sine_waveform"], reference["sine_logmel"]),
    }
    print("largest difference to the reference frames, float32 samples, by block size")
    for name, (waveform, expected) in sounds.items():
        samples = waveform.astype(np.float32)
        worst = {
            size: float(np.abs(streamed(samples, size) - expected).max())
            for size in (1, 2, 3, 7, 64, 159, 160, 161, 400, 512, 1000, 1600, 4095, 4096)
        }
        print(f"  {name:7s} {max(worst.values()):.2e} ({len(expected)} frames, {len(worst)} block sizes)")


def streamed(samples: Floats, block: int) -> Floats:
    stream = StreamingLogMel(history=VGGISH.count(samples.size))
    for at in range(0, samples.size, block):
        stream.push(at, samples[at : at + block])
    return stream.frames(0, stream.end)


def costs(rounds: int) -> None:
    rng = np.random.default_rng(1)
    block = rng.standard_normal(1600).astype(np.float32)
    hops = np.lib.stride_tricks.sliding_window_view(rng.standard_normal(1840), 400)[::160]
    padded = np.pad(hops, ((0, 0), (0, 112)))
    window = torch.from_numpy(rng.standard_normal(15_600).astype(np.float32))
    mel = torchaudio.transforms.MelSpectrogram(
        16000,
        n_fft=512,
        win_length=400,
        hop_length=160,
        n_mels=64,
        f_min=125,
        f_max=7500,
        power=1,
        center=False,
    )
    stream, resampler, index = StreamingLogMel(), Resampler(48000, 16000), [0, 0]
    device_block = rng.standard_normal(4800).astype(np.float32)

    def push() -> None:
        stream.push(index[0], block)
        index[0] += 1600

    def resample() -> None:
        resampler.push(index[1], device_block)
        index[1] += 4800

    median = interleaved(
        {
            "streaming log-mel, 100 ms": push,
            "numpy rfft of the same 10 hops, 400 -> 512": lambda: np.fft.rfft(hops, 512),
            "numpy rfft of the same 10 hops, padded before": lambda: np.fft.rfft(padded),
            "torchaudio MelSpectrogram + log, 0.975 s": lambda: torch.log(mel(window) + 0.01),
            "streaming resampling 48 -> 16 kHz, 100 ms": resample,
        },
        rounds,
    )
    ours = median["streaming log-mel, 100 ms"]
    print("\nmedian microseconds per call, one thread, interleaved")
    for name, microseconds in median.items():
        print(f"  {name:48s} {microseconds:8.1f}   x {microseconds / ours:6.2f}")


def front_end_costs(rounds: int) -> None:
    print("\naudio front end, one 0.975 s window every 100 ms: median microseconds per window")
    for rate_hz in (16000, 44100, 48000):
        front_end = AudioFrontEnd(rate_hz, 975_000_000)
        size = (975_000_000 + front_end.context_ns) * rate_hz // 10**9
        samples = np.random.default_rng(2).standard_normal(size + rounds * rate_hz).astype(np.float32)
        spent = []
        for end in range(size, samples.size, rate_hz // 10):
            begin = time.perf_counter()
            front_end.update(samples[end - size : end], end)
            spent.append((time.perf_counter() - begin) * 1e6)
        print(f"  {rate_hz:6d} Hz: first {spent[0]:7.0f}, then {statistics.median(spent[1:]):6.0f}")


def interleaved(calls: dict[str, Callable[[], object]], rounds: int, repeats: int = 100) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            spent[name].append((time.perf_counter() - begin) / repeats * 1e6)
    return {name: statistics.median(values) for name, values in spent.items()}


if __name__ == "__main__":
    main()
