"""The windows that the fusion core cuts out of the streams, one per tick."""

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from perception.messages import CameraFrame, Message, Presence, TextCommand
from perception.units import SECOND_NS

DEAD_AFTER_NS: Final = SECOND_NS
"""A stream whose newest data is older than this is reported dead rather than late."""


class RefusedError(ValueError):
    """Raised for a message that must not enter the windows; its text is the reason that is counted."""


class CameraSlice(msgspec.Struct, frozen=True):
    """The newest frame at or before the window's end, and the newest at least one hop before that."""

    frame: Message[CameraFrame]
    previous: Message[CameraFrame] | None


class AudioSlice(msgspec.Struct, frozen=True):
    """The samples that end exactly at the window's end."""

    samples: npt.NDArray[np.float32]
    """(n,) mono in [-1, 1], covering sample indices [end_index - n, end_index)."""
    end_index: int
    rate_hz: int
    missing: int
    """How many of them were lost and are zeros."""
    exact: bool = False
    """Whether they are resampled by exact filters at any rate, as in sessions recorded by rules 0."""


class TextSlice(msgspec.Struct, frozen=True):
    """The command in force."""

    command: Message[TextCommand]


Slice = CameraSlice | AudioSlice | TextSlice


class WindowInput(msgspec.Struct, frozen=True):
    """One modality of a window."""

    topic: str
    presence: Presence
    reason: str = ""
    """Why it is not present, or present with a gap; empty else."""
    age_ns: int | None = None
    """Window end minus the newest data used."""
    seqs: tuple[int, int] | None = None
    """First and last message used."""
    data: Slice | None = None
    """None exactly when absent."""
    received_ns: int | None = None
    """Arrival of the newest message used: measured, so it decides nothing."""
    happened_ns: int | None = None
    """Event time of the newest data used."""
    condition: str = ""
    """Of the signal: that of the frame, the most serious of the sound; empty if nobody judged it."""
    suspect: bool = False
    """Whether it is used in spite of its condition."""


class Window(msgspec.Struct, frozen=True):
    """All inputs at the end of tick `tick`, on the grid `end_ns = tick * hop_ns`."""

    tick: int
    end_ns: int
    inputs: dict[str, WindowInput]
