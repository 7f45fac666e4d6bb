"""Plays a file to PulseAudio and keeps what the microphone hears: `python -m tests.hear WAV SECONDS`.

A process of its own, since PortAudio reads its surroundings once, when it is loaded.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from perception.devices.microphone import PortAudioMicrophone
from perception.profile import MicrophoneConfig


def main(wav: Path, seconds: float) -> None:
    """Listen, then play, then write `heard.npz` beside the file."""
    blocks, ages_ms = [], []
    with PortAudioMicrophone(MicrophoneConfig(source="pulse"), clock=time.monotonic_ns) as microphone:
        player, deadline = None, time.monotonic() + seconds + 5
        end = deadline
        while time.monotonic() < end:
            block = microphone.read(0.1)
            if block is None:
                continue
            blocks.append(block)
            ages_ms.append((time.monotonic_ns() - block.stamp_ns) / 1e6 - len(block.samples) / 16)
            if player is None:
                player = subprocess.Popen(("paplay", "--device=virtspk", str(wav)))
                end = time.monotonic() + seconds
    assert player is not None, "nothing was heard"
    player.wait(5)
    np.savez(
        wav.with_name("heard.npz"),
        samples=np.concatenate([block.samples[:, 0] for block in blocks]),
        indices=np.array([block.sample_index for block in blocks]),
        gaps=np.array([block.gap for block in blocks]),
        ages_ms=np.array(ages_ms),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
