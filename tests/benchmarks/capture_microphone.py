"""Plays speech again and again through PulseAudio into the microphone node: correlation, gaps, drift, memory.

python -m tests.benchmarks.capture_microphone --data ../shared/data [--seconds 30]
"""

import argparse
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from perception.bus.host import HostClock
from perception.devices.sound import Sound
from tests.benchmarks.capture_nodes import Run, block_ages_ms, percentiles, run_nodes
from tests.pulse import pulse_server

RATE_HZ = 16_000
Signal = npt.NDArray[np.float64]


def play(speech: Path, stop: threading.Event) -> None:
    """Play the file until told to stop."""
    while not stop.is_set():
        player = subprocess.Popen(("paplay", "--device=virtspk", str(speech)))
        while player.poll() is None and not stop.wait(0.05):
            pass
        player.terminate()
        player.wait()


def correlations(heard: Signal, speech: Signal) -> list[float]:
    """Return the normalised correlation of every whole playing of the speech that was heard.

    A playing starts anywhere between two samples, so the speech is tried at shifts of an eighth of one.
    """
    size = 1 << (len(heard) + len(speech)).bit_length()
    cycles = np.fft.rfftfreq(size)
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(speech, size))
    whole = len(heard) - len(speech) + 1
    shifts = [spectrum * np.exp(2j * np.pi * cycles * shift / 8) for shift in range(8)]
    products = np.max([np.fft.irfft(shifted, size)[:whole] for shifted in shifts], axis=0)
    power = np.cumsum(np.concatenate([[0.0], heard**2]))
    scores = products / (np.sqrt((power[len(speech) :] - power[: -len(speech)]) * np.sum(speech**2)) + 1e-9)
    found: list[float] = []
    while len(scores) and scores.max() > 0.5:
        best = int(scores.argmax())
        found.append(float(scores[best]))
        scores[max(best - len(speech) // 2, 0) : best + len(speech) // 2] = 0
    return found


def samples_of(run: Run) -> Signal:
    """Return all sound received, as one run."""
    return np.frombuffer(b"".join(bytes(block.payload) for block in run.blocks), "<i2").astype(np.float64)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    flac = options.data / "speech/jfk.flac"
    sound = Sound(str(flac), rate_hz=RATE_HZ, channels=1, sample_format="s16", loop=False, start=0)
    reference = np.concatenate(list(sound.blocks(512)))[:, 0].astype(np.float64)
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder, pulse_server(Path(folder)) as environment:
        os.environ |= environment
        speech, rate_hz = soundfile.read(flac)
        soundfile.write(Path(folder) / "speech.wav", speech.mean(axis=1), rate_hz)
        player = threading.Thread(target=play, args=(Path(folder) / "speech.wav", stop))
        profile = Path(folder) / "microphone.toml"
        profile.write_text('domain = "bench-microphone"\n[microphone.desk]\nsource = "pulse"\n')
        player.start()
        began_s = time.monotonic()
        run = run_nodes(
            profile,
            (("microphone", "desk"),),
            domain="bench-microphone",
            origin_ns=HostClock().now_ns(),
            seconds=options.seconds,
        )
        stop.set()
        player.join()
    heard = samples_of(run)
    stamps = np.array([block.header.stamp_ns for block in run.blocks], np.float64)
    indices = np.array([block.header.sample_index for block in run.blocks], np.float64)
    spacing = np.diff(stamps) / np.diff(indices) * RATE_HZ / 1e9 - 1
    print(
        f"heard {len(heard) / RATE_HZ:.2f} s in {time.monotonic() - began_s:.1f} s, gaps "
        f"{sum(block.header.gap > 0 for block in run.blocks)}, lost on the way {sum(run.lost.values())}"
    )
    print("correlation of each whole playing", [round(value, 4) for value in correlations(heard, reference)])
    print(f"age of a block's last sample, ms p50/p95/max {percentiles(block_ages_ms(run))}")
    print(f"stamp rate off nominal, ppm p50/p95/max {percentiles((np.abs(spacing) * 1e6).tolist())}")
    print(
        f"peak RSS MB {run.peak_rss_mb}, exit codes {run.exit_codes}, health {run.health['microphone-desk']}"
    )


if __name__ == "__main__":
    main()
