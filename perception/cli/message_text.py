"""Messages as text: one line each for people or as JSON, and the rate of a topic. Pure."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import mean, pstdev
from typing import Final

from msgspec import NODEFAULT, structs, to_builtins

from perception.messages import FusedState, Header, Message, ModalityState
from perception.units import SECOND_NS
from perception.units.bounded import MAX_NAMES, Recent

_EVERY_NS: Final = SECOND_NS
_MAX_VALUE_CHARS: Final = 120


def as_json(message: Message[Header], at_s: float | None = None) -> str:
    """Return the message as one JSON object, with the size of its payload; `at_s`: seconds in its session."""
    header = to_builtins(message.header)
    at = {} if at_s is None else {"at_s": at_s}
    return json.dumps({"topic": message.topic, **at, "header": header, "payload_bytes": len(message.payload)})


def as_line(message: Message[Header], now_ns: int, at_s: float | None = None) -> str:
    """Return the message in one line for people, its age measured at `now_ns`; `at_s` as of `as_json`."""
    header = message.header
    at = "" if at_s is None else f"at {at_s:.3f} s  "
    start = f"{message.topic} #{header.seq}  {at}age {(now_ns - header.stamp_ns) / 1e6:.1f} ms  "
    if isinstance(header, FusedState):
        inputs = " ".join(f"{name}={_standing(one)}" for name, one in header.modalities.items())
        return f"{start}{header.fused.label} {header.fused.confidence:.3f}  {inputs}"
    words = " ".join(f"{key}={_short(value)}" for key, value in _specific(header))
    return f"{start}{words}{f'  {len(message.payload)} B' if len(message.payload) else ''}"


def _standing(modality: ModalityState) -> str:
    """Return presence and, in brackets, the condition of a signal that is not ok."""
    bad = modality.condition not in ("", "ok")
    return f"{modality.presence}({modality.condition})" if bad else modality.presence


def _specific(header: Header) -> Iterator[tuple[str, object]]:
    """Yield name and value of each field that is neither in every header nor at its default."""
    for declared in structs.fields(header):
        value = getattr(header, declared.name)
        made = declared.default_factory
        default = declared.default if made is NODEFAULT else made()
        if declared.name not in Header.__struct_fields__ and value != default:
            yield declared.name, to_builtins(value)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 1]}…"


@dataclass(slots=True)
class _Second:
    begun_ns: int
    first_seq: int
    sizes: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    intervals_ms: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))
    last_ns: int = 0


class Rates:
    """Measures the rate of each topic, second by second, by the clock of its publisher."""

    def __init__(self) -> None:
        self._seconds: Recent[str, _Second] = Recent()

    def add(self, message: Message[Header]) -> Iterator[str]:
        """Add one message; yield a line when it completes a second of its topic."""
        header = message.header
        second = self._seconds.get(message.topic)
        if second is None or header.seq <= second.first_seq:
            before = self._seconds.forgotten
            self._seconds[message.topic] = _Second(header.sent_ns, header.seq, last_ns=header.sent_ns)
            if not before and self._seconds.forgotten:
                yield f"more than {MAX_NAMES} topics: only the newest are measured"
            return
        second.intervals_ms.append((header.sent_ns - second.last_ns) / 1e6)
        second.sizes.append(len(message.payload))
        second.last_ns = header.sent_ns
        if header.sent_ns - second.begun_ns >= _EVERY_NS:
            yield _line(message.topic, second, header.seq)
            self._seconds[message.topic] = _Second(header.sent_ns, header.seq, last_ns=header.sent_ns)


def _line(topic: str, second: _Second, seq: int) -> str:
    sent = seq - second.first_seq
    intervals = second.intervals_ms
    missed = sent - len(intervals)
    return (
        f"{topic}  {sent * 1e9 / (second.last_ns - second.begun_ns):.2f} Hz  "
        f"interval ms mean {mean(intervals):.1f} min {min(intervals):.1f} max {max(intervals):.1f} "
        f"std {pstdev(intervals):.1f}  {mean(second.sizes) / 1e3:.1f} kB"
        f"{f'  {missed} missed here' if missed else ''}"
    )
