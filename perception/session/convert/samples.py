"""Cut a session into samples for training: inputs, labels and state at every tick.

The fusion core cuts the windows, so that they equal those of a live fusion.
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
"""Shortest audio window that the front ends of encoders accept."""
_KEPT_NS: Final = 10_000_000_000
"""States and labels older than this are dropped."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One tick of a session: window, state and labels."""

    window: Window
    state: FusedState | None
    """The latest recorded state by then, if there is one."""
    labels: tuple[Label, ...]
    """Labels whose span contains the end of the window."""

    def frame(self, topic: str) -> Message[Header] | None:
        """Return the newest frame of a camera."""
        data = self.window.inputs[topic].data
        return data.frame if isinstance(data, CameraSlice) else None

    def picture(self, topic: str) -> Image | None:
        """Return the newest frame as (height, width, 3) BGR."""
        data = self.window.inputs[topic].data
        return image(data.frame) if isinstance(data, CameraSlice) else None

    def sound(self, topic: str) -> AudioSlice | None:
        """Return the sound of a microphone up to the end of the window."""
        data = self.window.inputs[topic].data
        return data if isinstance(data, AudioSlice) else None

    @property
    def text(self) -> str:
        """The latest text command, empty if it is older than the window allows."""
        slices = (item.data for item in self.window.inputs.values())
        commands = [data.command.header for data in slices if isinstance(data, TextSlice)]
        return max(commands, key=lambda command: command.stamp_ns).text if commands else ""


def inputs_of(session: Session, topics: Sequence[str], prefix: str) -> list[str]:
    """Return the topics of the session with this prefix that match `topics`."""
    return [topic for topic in session.counts if topic.startswith(f"{prefix}/") and matches(topic, topics)]


class Samples:
    """Iterates once over the samples of a session, in bounded memory."""

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
            session: to cut.
            topics: names or patterns of the inputs; each topic is an input of that name.
            rate_hz: ticks per second.
            sound_ms: least length of the sound of a sample; if it is longer, use its end.
            counts: receives the counts of messages that are in no window.

        Raises:
            SessionError: no camera, microphone or text matches.
        """
        self._session = session
        self._names = [topic for prefix in STREAM_KINDS for topic in inputs_of(session, topics, prefix)]
        if not self._names:
            there = available(session, topics)
            raise SessionError(f"{session.path}: no camera, microphone or text to cut into samples{there}")
        self._hop_ms = 1000 / rate_hz
        self._sound_ms = max(sound_ms, _SHORTEST_MS)
        self._used = False
        """Whether an input was present in any window."""
        self._counts: Counts = defaultdict(Counter) if counts is None else counts

    def __iter__(self) -> Iterator[Sample]:
        # a frame stays valid for at least one tick
        ages = {"max_age_ms": max(_MAX_AGE_MS, self._hop_ms), "length_ms": self._sound_ms}
        used = {"absent_when": (), "suspect_when": ()}  # data of any condition is exported
        config = FusionConfig(
            hop_ms=self._hop_ms,
            lateness_ms=_LATENESS_MS,
            alignment="reproducible",
            inputs={name: InputConfig.model_validate({"topic": name} | ages | used) for name in self._names},
            encoders={},
            head=HeadConfig(weights="random"),
        )
        annotations = _Annotations()
        messages = self._session.messages([*self._names, "state/*", "label/*"])
        for cut in cut_as_arrived(annotations.watch(messages), config, self._counts):
            self._used |= any(item.presence != "absent" for item in cut.window.inputs.values())
            yield annotations.at(cut.window)

    @property
    def empty_reason(self) -> str:
        """Why no window had an input, after the iteration; empty if one had."""
        reasons = account(self._counts) or [
            f"shorter than a tick of {self._hop_ms:g} ms, or no intact message"
        ]
        return "" if self._used else f"nothing of {', '.join(self._names)}: {'; '.join(reasons)}"

    def notes(self) -> list[str]:
        """Return lines about messages in no window; SessionError if no window had an input."""
        if self.empty_reason:
            raise SessionError(f"{self._session.path}: {self.empty_reason}")
        return account(self._counts)


class _Annotations:
    """Keeps the newest states and labels of a session that is being read."""

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

    def at(self, window: Window) -> Sample:
        end_ns = window.end_ns
        self._states = [one for one in self._states if one[0] > end_ns - _KEPT_NS]
        self._labels = [one for one in self._labels if one.end_ns > end_ns - _KEPT_NS]
        before = [state for stamp_ns, _, state in self._states if stamp_ns <= end_ns]
        labels = tuple(one for one in self._labels if one.start_ns <= end_ns < one.end_ns)
        return Sample(window, before[-1] if before else None, labels)
