"""Films with lost transport packets, as over Wi-Fi."""

import random
import threading
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from perception.devices.video import FileSource
from perception.profile import CameraConfig
from tests.media import write_coded

SIZE: Final = {"width": 160, "height": 120}
FRAMES: Final = 120
_PACKET: Final = 188


def film(path: Path, codec: str) -> Path:
    """Write a panning, textured film with a key frame every second."""
    wide = np.random.default_rng(3).integers(0, 255, (120, 1000, 3), np.uint8)
    parameters = {"x265-params": "log-level=none:keyint=25:bframes=0"}
    options = parameters if codec == "libx265" else {"bf": "0", "preset": "veryfast", "g": "25"}
    pictures = [np.ascontiguousarray(wide[:, 5 * number :][:, :160]) for number in range(FRAMES)]
    return write_coded(path, codec, pictures, rate_hz=25, options=options, form="mpegts")


def lossy(path: Path, target: Path, share: float = 0.004, seed: int = 1) -> Path:
    """Write a copy that lacks a share of its transport packets."""
    data, chance = path.read_bytes(), random.Random(seed)
    packets = [data[at : at + _PACKET] for at in range(0, len(data), _PACKET)]
    # The first and the last pictures stay undamaged: a late reader receives those.
    lost = range(len(packets) // 4, 3 * len(packets) // 4)
    kept = [one for number, one in enumerate(packets) if number not in lost or chance.random() > share]
    assert len(kept) < len(packets)
    target.write_bytes(b"".join(kept))
    return target


def played(path: Path) -> tuple[list[npt.NDArray[np.int64]], int]:
    """Return the pictures of a camera on this file, and its counts of damage."""
    now_ns = [0]
    config = CameraConfig.model_validate({"source": str(path)} | SIZE)
    source = FileSource(str(path), config, clock=lambda: now_ns[0], origin_ns=0, stop=threading.Event())
    now_ns[0] = 1 << 60
    shown: list[npt.NDArray[np.int64]] = []
    try:
        while True:
            frame = source.read()
            assert frame is not None
            shown.append(frame.image.astype(np.int64))
    except EOFError:
        return shown, source.corrupt
    finally:
        source.close()


def pictures_of(path: Path) -> list[npt.NDArray[np.int64]]:
    """Return every picture of an undamaged film."""
    shown, corrupt = played(path)
    assert (len(shown), corrupt) == (FRAMES, 0)
    return shown
