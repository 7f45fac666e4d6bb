"""A perturbation as a value, and recordings with perturbations applied. `perturb` defines perturbations."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from perception.errors import SessionError
from perception.messages import Header, Message
from perception.session.file.zero import Zero
from perception.session.recompute.source import Recording
from perception.topics import kind_of

Messages = Iterable[Message[Header]]
Apply = Callable[[Messages], Iterator[Message[Header]]]
_INPUTS: Final = ("camera", "microphone", "text")
_OUTPUTS: Final = ("journal", "state", "head")


@dataclass(frozen=True)
class Perturbation:
    """One fault; call it with messages. Perturbations with equal arguments are equal."""

    name: str
    apply: Apply = field(compare=False, repr=False)
    topic: str | None = field(default=None, compare=False, repr=False)
    """The topic it changes; None if unknown."""
    modalities: tuple[str, ...] = field(default=_INPUTS, compare=False, repr=False)
    """The modalities that it can change."""
    span_s: tuple[float, float] = field(default=(-math.inf, math.inf), compare=False, repr=False)
    """Start and end of its effect, in seconds from the zero of the recording; the end is excluded."""

    def meets(self, topic: str) -> bool:
        """Return whether it changes a topic; True if its topic is unknown."""
        kind = kind_of(topic)
        return self.topic is None or (kind in self.modalities and topic_matches(topic, self.topic))

    def lasts(self, at_s: float) -> bool:
        """Return whether that second is in its span."""
        return self.span_s[0] <= at_s < self.span_s[1]

    def __call__(self, messages: Messages) -> Iterator[Message[Header]]:
        """Yield the perturbed messages in order of arrival; `messages` may be iterated twice."""
        return self.apply(messages)

    def __str__(self) -> str:
        return self.name


class Perturbed:
    """A recording with perturbations, applied at each iteration.

    States, journals and head statuses of the original recording are left out.
    """

    def __init__(self, messages: Messages, *perturbations: Perturbation, strict: bool = True) -> None:
        """Apply them in their order; `strict`: a perturbation that changes no topic is an error."""
        self._messages = messages
        self._perturbations = perturbations
        self._strict = strict

    @property
    def zero(self) -> Zero:
        """The time from which its seconds count: that of the original recording."""
        messages = self._messages
        if isinstance(messages, Perturbed | Recording):
            return messages.zero
        return Zero.of(next(iter(messages), None))

    def __iter__(self) -> Iterator[Message[Header]]:
        """Yield the messages; raise SessionError if a perturbation or its span matches none."""
        if self._strict:
            self._check()
            self._strict = False
        if self._perturbations:
            *before, last = self._perturbations
            return last(Perturbed(self._messages, *before, strict=False))
        return (one for one in self._messages if kind_of(one.topic) not in _OUTPUTS)

    def _check(self) -> None:
        """Raise SessionError for a perturbation that changes nothing."""
        inputs, unmet, outside = set[str](), list(self._perturbations), list(self._perturbations)
        ends_s = 0.0, 0.0
        for at_s, message in timed(self._messages):
            if not unmet and not outside:
                return
            ends_s = min(ends_s[0], at_s), max(ends_s[1], at_s)
            outside = [one for one in outside if not one.lasts(at_s)]
            if message.topic not in inputs and kind_of(message.topic) in _INPUTS:
                inputs.add(message.topic)
                unmet = [one for one in unmet if not one.meets(message.topic)]
        where = f"{self._messages.name}: " if isinstance(self._messages, Recording) else ""
        for one in unmet:
            there = ", ".join(sorted(inputs)) or "none"
            raise SessionError(f"{where}{one} changes nothing; inputs there are {there}")
        for one in outside:
            if not self._moved_into(one):
                span = f"{ends_s[0]:.3f} to {ends_s[1]:.3f} s"
                raise SessionError(f"{where}{one} changes nothing; the recording is from {span}")

    def _moved_into(self, one: Perturbation) -> bool:
        """Return whether earlier perturbations move a message into its span."""
        before = self._perturbations[: self._perturbations.index(one)]
        moved = Perturbed(self._messages, *before, strict=False)
        return bool(before) and any(one.lasts(at_s) for at_s, _ in timed(moved))


def topic_matches(topic: str, pattern: str) -> bool:
    """Return whether an input's topic matches; `camera` matches all topics of a modality, `*` all inputs."""
    kind = kind_of(topic)
    return kind in _INPUTS and (kind == pattern or fnmatchcase(topic, pattern))


def timed(messages: Messages) -> Iterator[tuple[float, Message[Header]]]:
    """Yield each message with its arrival in seconds from the zero of the recording."""
    zero = messages.zero if isinstance(messages, Perturbed | Recording) else None
    for message in messages:
        zero = zero or Zero.of(message)
        yield (message.received_ns - zero.log_ns) / 1e9, message
