"""Print how far the streaming log-mel is from the VGGish reference frames.

python tests/benchmarks/features_reference.py --data ../shared/data
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perception.features.logmel import VGGISH, StreamingLogMel

Floats = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds vggish/")
    arguments = parser.parse_args()
    differences(arguments.data / "vggish" / "frontend-reference.npz")


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


if __name__ == "__main__":
    main()
