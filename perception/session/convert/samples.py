"""A session cut into samples for training: at every tick what was seen, heard and said, and what is known.

The windows are cut by the fusion core itself, so that they are those that a model meets live.
"""

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from perception.errors import SessionError
from perception.fusion.window import AudioSlice, CameraSlice, TextSlice, Window
from perception.messages import FusedState, Header, Label, Message
from perception.profile import FusionConfig, HeadConfig, InputConfig
from perception.session.convert.media_tracks import image
from perception.session.file.reader import Session, available, matches
from perception.session.recompute.arrivals import STREAM_KINDS
from perception.session.recompute.cutting import account, cut_as_arrived
from perception.units import Counts
from perception.units.arrays import Image

_LATENESS_MS: Final = 1000.0
_MAX_AGE_MS: Final = 500.0
_SHORTEST_MS: Final = 975.0
"""An audio window is never shorter than its encoders' front end."""
_KEPT_NS: Final = 10_000_000_000
"""States and labels older than this, counted from the newest, are forgotten."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One tick of a session."""

    window: Window
    state: FusedState | None
    """What a live fusion had concluded by then, if one was recorded."""
    labels: tuple[Label, ...]
    """Annotations in force at the window's end."""

    def frame(self, topic: str) -> Message[Header] | None:
        """Return the frame of a camera that was newest then."""
        data = self.window.inputs[topic].data
        return data.frame if isinstance(data, CameraSlice) else None

    def picture(self, topic: str) -> Image | None:
        """Return that frame as (height, width, 3) BGR."""
        data = self.window.inputs[topic].data
        return image(data.frame) if isinstance(data, CameraSlice) else None

    def sound(self, topic: str) -> AudioSlice | None:
        """Return the sound that ends with the window."""
        data = self.window.inputs[topic].data
        return data if isinstance(data, AudioSlice) else None

    @property
    def text(self) -> str:
        """What was said or typed last, empty if that is no longer in force."""
        slices = (item.data for item in self.window.inputs.values())
        commands = [data.command.header for data in slices if isinstance(data, TextSlice)]
        return max(commands, key=lambda command: command.stamp_ns).text if commands else ""


def inputs_of(session: Session, topics: Sequence[str], prefix: str) -> list[str]:
    """Return the session's topics under one prefix that match."""
    return [topic for topic in session.counts if topic.startswith(f"{prefix}/") and matches(topic, topics)]


class Moments:
    """A session tick by tick, in bounded memory, to be gone through once."""

    def __init__(
        self,
        session: Session,
        topics: Sequence[str],
        *,
        rate_hz: float,
        sound_ms: float,
        counts: Counts | None = None,
    ) -> None:
        """Cut a session.

        Args:
            session: to be cut.
            topics: names or patterns of its inputs; each is an input of that name.
            rate_hz: ticks per second.
            sound_ms: length of the sound that comes with each; it may be longer, then its end counts.
            counts: takes what does not enter the windows.

        Raises:
            SessionError: no camera, microphone or text is among them.
        """
        self._session = session
        self._names = [topic for prefix in STREAM_KINDS for topic in inputs_of(session, topics, prefix)]
        if not self._names:
            there = available(session, topics)
            raise SessionError(f"{session.path}: no camera, microphone or text to cut into samples{there}")
        self._hop_ms = 1000 / rate_hz
        self._sound_ms = max(sound_ms, _SHORTEST_MS)
        self._used = False
        """Whether any window held something."""
        self._counts: Counts = defaultdict(Counter) if counts is None else counts

    def __iter__(self) -> Iterator[Moment]:
        # a frame is shown for one tick at least, however rare ticks are
        ages = {"max_age_ms": max(_MAX_AGE_MS, self._hop_ms), "length_ms": self._sound_ms}
        config = FusionConfig(
            hop_ms=self._hop_ms,
            lateness_ms=_LATENESS_MS,
            alignment="reproducible",
            inputs={name: InputConfig(topic=name, **ages) for name in self._names},
            encoders={},
            head=HeadConfig(weights="random"),
        )
        known = _Known()
        messages = self._session.messages([*self._names, "state/*", "label/*"])
        for cut in cut_as_arrived(known.watch(messages), config, self._counts):
            self._used |= any(item.presence != "absent" for item in cut.window.inputs.values())
            yield known.at(cut.window)

    @property
    def nothing(self) -> str:
        """Why no window held anything, once all are gone through; empty if one did."""
        reasons = account(self._counts) or [f"shorter than a tick of {self._hop_ms:g} ms, or nothing whole"]
        return "" if self._used else f"nothing of {', '.join(self._names)}: {'; '.join(reasons)}"

    def said(self) -> list[str]:
        """Return in lines what did not enter the windows; SessionError if nothing did."""
        if self.nothing:
            raise SessionError(f"{self._session.path}: {self.nothing}")
        return account(self._counts)


class _Known:
    """The newest states and labels of a stream that is being read."""

    def __init__(self) -> None:
        self._states: list[tuple[int, int, FusedState]] = []
        self._labels: list[Label] = []

    def watch(self, messages: Iterator[Message[Header]]) -> Iterator[Message[Header]]:
        for number, message in enumerate(messages):
            header = message.header
            if isinstance(header, FusedState):
                insort(self._states, (header.stamp_ns, number, header))
            elif isinstance(header, Label):
                self._labels.append(header)
            yield message

    def at(self, window: Window) -> Moment:
        end_ns = window.end_ns
        self._states = [one for one in self._states if one[0] > end_ns - _KEPT_NS]
        self._labels = [one for one in self._labels if one.end_ns > end_ns - _KEPT_NS]
        before = [state for stamp_ns, _, state in self._states if stamp_ns <= end_ns]
        labels = tuple(one for one in self._labels if one.start_ns <= end_ns < one.end_ns)
        return Moment(window, before[-1] if before else None, labels)
