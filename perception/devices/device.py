"""What every capture device looks like to its node: open, read with a time limit, close."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from perception.units.arrays import RawSamples


class Lent(Protocol):
    """Memory of who publishes, to be written to until it is published."""

    data: memoryview


Lend = Callable[[int], Lent]
"""Returns memory of so many bytes."""


def no_file(path: str | Path) -> str:
    """Return what stands in the place of a regular file, which can be read from anywhere in it."""
    if not os.path.exists(path):
        return "no such file"
    return "is a folder" if os.path.isdir(path) else "is a pipe or a device, no file that can be played"


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A camera image and the moment its light arrived."""

    image: npt.NDArray[np.uint8]
    """(height, width, 3) BGR or (height, width) grey, owned by the receiver."""
    stamp_ns: int
    exposure_ns: int | None = None
    raw: bool = False
    """Whether the pixels are as a sensor gave them, with no lossy coding in between."""
    lent: object = None
    """What `Lend` returned, if `image` lies there, as it is to be published."""


@dataclass(frozen=True, slots=True)
class CapturedBlock:
    """Consecutive samples and the moment of the first."""

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
    """The device's own account for `Health`: counts that only grow, and what it really delivers."""

    counts: dict[str, int] = field(default_factory=dict)
    facts: dict[str, str | float] = field(default_factory=dict)
    status: Literal["ok", "degraded", "lost"] = "ok"
    reason: str = ""


Captured = TypeVar("Captured", covariant=True)


class Device(Protocol[Captured]):
    """A source of captured data. Opening happens in the constructor and raises DeviceError."""

    def read(self, timeout_s: float) -> Captured | None:
        """Return the next item, None if none came in time; EOFError at the end of a file."""

    def report(self) -> DeviceReport:
        """Return counts and facts so far."""

    def close(self) -> None:
        """Release the device and join its threads."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
