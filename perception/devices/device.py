"""The interface of every capture device: open, read with a time limit, report, close."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from perception.units.arrays import RawSamples


class Lent(Protocol):
    """Memory of a publisher; write to it before it is published, not after."""

    data: memoryview


Lend = Callable[[int], Lent]
"""Returns memory for the given number of bytes."""


def no_file(path: str | Path) -> str:
    """Return why `path` is not a regular file."""
    if not os.path.exists(path):
        return "no such file"
    return "is a folder" if os.path.isdir(path) else "is a pipe or a device, not a file that can be played"


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A camera image and the time of its exposure."""

    image: npt.NDArray[np.uint8]
    """(height, width, 3) BGR or (height, width) grey, owned by the receiver."""
    stamp_ns: int
    """Host time."""
    exposure_ns: int | None = None
    raw: bool = False
    """Whether the pixels come from the sensor without lossy coding."""
    lent: object = None
    """What `Lend` returned if `image` is stored there in its published form."""


@dataclass(frozen=True, slots=True)
class CapturedBlock:
    """Consecutive samples and the host time of the first."""

    samples: RawSamples
    """(samples, channels)."""
    stamp_ns: int
    sample_index: int
    gap: int = 0
    """Samples lost just before this block."""


@dataclass(frozen=True, slots=True)
class CapturedText:
    """One line of text."""

    text: str
    stamp_ns: int


@dataclass(frozen=True, slots=True)
class CapturedLabel:
    """Known ground truth over `[start_ns, end_ns)`."""

    name: str
    start_ns: int
    end_ns: int


@dataclass(slots=True)
class DeviceReport:
    """A device's part of `Health`: counts that only increase, and facts of the open device."""

    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str | float] = field(default_factory=dict)
    status: Literal["ok", "degraded", "lost"] = "ok"
    reason: str = ""


Captured = TypeVar("Captured", covariant=True)


class Device(Protocol[Captured]):
    """A source of captured data. The constructor opens it and raises DeviceError.

    One thread calls all methods. A device may have threads of its own; `close` joins them.
    """

    def read(self, timeout_s: float) -> Captured | None:
        """Return the next item, None after `timeout_s`; EOFError at the end of a file."""

    def report(self) -> DeviceReport:
        """Return the counts and facts so far."""

    def close(self) -> None:
        """Release the device and join its threads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
