"""Plays a file to PulseAudio and stores what the microphone records: `python -m tests.hear WAV`.

A process of its own, since PortAudio reads its surroundings once, when it is loaded.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from perception.devices.microphone import PortAudioMicrophone
from perception.profile import MicrophoneConfig
from tests.waiting import LONG_S

AFTER_S: Final = 0.5
"""Played sound is not yet recorded for this time."""


def main(wav: Path) -> None:
    """Record, play, and after the end write `recorded.npz` beside the file."""
    blocks, ages_ms = [], []
    with PortAudioMicrophone(MicrophoneConfig(source="pulse"), clock=time.monotonic_ns) as microphone:
        player, end_s = None, time.monotonic() + LONG_S
        while time.monotonic() < end_s:
            block = microphone.read(0.1)
            if block is not None:
                blocks.append(block)
                ages_ms.append((time.monotonic_ns() - block.stamp_ns) / 1e6 - len(block.samples) / 16)
            if player is None and blocks:
                player = subprocess.Popen(("paplay", "--device=virtspk", str(wav)))
            if player is not None and player.poll() is not None:
                end_s = min(end_s, time.monotonic() + AFTER_S)
    assert player is not None, "nothing was recorded"
    np.savez(
        wav.with_name("recorded.npz"),
        samples=np.concatenate([block.samples[:, 0] for block in blocks]),
        indices=np.array([block.sample_index for block in blocks]),
        gaps=np.array([block.gap for block in blocks]),
        ages_ms=np.array(ages_ms),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
