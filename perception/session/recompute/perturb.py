"""Faults of inputs as functions over recorded messages.

Each perturbation changes what a real fault would change: a delay moves arrivals, not stamps; a drift moves
the stamps of a sample counter; noise is added to the samples. All are deterministic.
"""

import heapq
import math
import random
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from string import ascii_lowercase
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import structs

from perception.features.window import raw_samples
from perception.messages import AudioBlock, CameraFrame, Header, Message, TextCommand
from perception.session.recompute.perturbation import Messages, timed, topic_matches
from perception.session.recompute.perturbation import Perturbation as Perturbation
from perception.session.recompute.perturbation import Perturbed as Perturbed
from perception.units.arrays import SAMPLE_TYPES

_SOUND: Final = ("microphone",)
_TEXT: Final = ("text",)
_SIGNALS: Final = ("camera", "microphone")
_FULL_SCALE: Final = {"s16": 32768.0, "f32": 1.0}


def without(topic: str, from_s: float = 0.0, to_s: float = math.inf) -> Perturbation:
    """Lose a stream, permanently or for a time.

    Args:
        topic: such as `camera/front`, or `camera` for all of a modality.
        from_s: seconds from the zero of the recording.
        to_s: likewise.
    """

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        for elapsed_s, message in timed(messages):
            if not (_matches(message, topic) and from_s <= elapsed_s < to_s):
                yield message

    name = f"without({topic!r}, from_s={from_s}, to_s={to_s})"
    return Perturbation(name, apply, topic, span_s=(from_s, to_s))


def delay(topic: str, ms: float) -> Perturbation:
    """Delay the arrivals of a stream; its stamps stay."""
    late_ns = round(ms * 1e6)
    if late_ns < 0:
        raise ValueError(f"delay: {ms} ms; nothing arrives before it is sent")

    def later(message: Message[Header]) -> Message[Header]:
        return (
            structs.replace(message, received_ns=message.received_ns + late_ns)
            if _matches(message, topic)
            else message
        )

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        return _in_order(messages, later, lambda arrival_ns: arrival_ns)

    return Perturbation(f"delay({topic!r}, ms={ms})", apply, topic)


def drop(rate: float, seed: int, topic: str = "*") -> Perturbation:
    """Lose single messages at random, with their numbers."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        # one generator per topic, so that the losses of one do not depend on the others
        dice: defaultdict[str, random.Random] = defaultdict(random.Random)
        for message in messages:
            if message.topic not in dice:
                dice[message.topic].seed(f"{seed} {message.topic}")
            if not (_matches(message, topic) and dice[message.topic].random() < rate):
                yield message

    return Perturbation(f"drop(rate={rate}, seed={seed}, topic={topic!r})", apply, topic)


def drift(ppm: float, topic: str = "microphone") -> Perturbation:
    """Speed up the sample clock of a microphone, or slow it down if negative; the samples stay."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        first_ns: dict[str, int] = {}

        def moved(topic: str, at_ns: int) -> int:
            origin_ns = first_ns[topic]
            return origin_ns + round((at_ns - origin_ns) / (1 + ppm * 1e-6))

        def drifted(message: Message[Header]) -> Message[Header]:
            if not (_matches(message, topic) and isinstance(message.header, AudioBlock)):
                return message
            stamp_ns = message.header.stamp_ns
            first_ns.setdefault(message.topic, stamp_ns)
            shift_ns = moved(message.topic, stamp_ns) - stamp_ns
            header = structs.replace(message.header, stamp_ns=stamp_ns + shift_ns)
            return structs.replace(message, header=header, received_ns=message.received_ns + shift_ns)

        def earliest(arrival_ns: int) -> int:
            return min([arrival_ns, *(moved(name, arrival_ns) for name in first_ns)])

        return _in_order(messages, drifted, earliest)

    return Perturbation(f"drift(ppm={ppm}, topic={topic!r})", apply, topic, _SOUND)


def noise(snr_db: float, seed: int = 0, topic: str = "microphone") -> Perturbation:
    """Add white noise, `snr_db` below the mean power of the whole recording; the sound may clip."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        deviations = {
            name: math.sqrt(power) * 10 ** (-snr_db / 20) for name, power in _powers(messages, topic).items()
        }
        for message in messages:
            if isinstance(message.header, AudioBlock) and message.topic in deviations:
                yield _with_noise(message, message.header, deviations[message.topic], seed)
            else:
                yield message

    return Perturbation(f"noise(snr_db={snr_db}, seed={seed}, topic={topic!r})", apply, topic, _SOUND)


def gain(db: float, topic: str = "microphone") -> Perturbation:
    """Make the sound louder, or softer if negative; the sound may clip."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        for message in messages:
            if isinstance(message.header, AudioBlock) and _matches(message, topic):
                samples = _samples(message, message.header) * 10 ** (db / 20)
                yield _with_samples(message, message.header, samples)
            else:
                yield message

    return Perturbation(f"gain(db={db}, topic={topic!r})", apply, topic, _SOUND)


def shift(ms: float, topic: str = "microphone") -> Perturbation:
    """Move a stream later, or earlier if negative: both its stamps and its arrivals."""
    shift_ns = round(ms * 1e6)

    def moved(message: Message[Header]) -> Message[Header]:
        if not _matches(message, topic):
            return message
        header = structs.replace(message.header, stamp_ns=message.header.stamp_ns + shift_ns)
        return structs.replace(message, header=header, received_ns=message.received_ns + shift_ns)

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        return _in_order(messages, moved, lambda arrival_ns: arrival_ns + min(shift_ns, 0))

    return Perturbation(f"shift(ms={ms}, topic={topic!r})", apply, topic)


def typos(rate: float, seed: int = 0, drops: float = 0.0, topic: str = "text") -> Perturbation:
    """Misspell text: replace, swap or lose letters with probability `rate`, and lose words with `drops`."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        for message in messages:
            if isinstance(message.header, TextCommand) and _matches(message, topic):
                # seeded by the stamp, so that other texts do not change it
                rng = random.Random(f"{seed} {message.topic} {message.header.stamp_ns}")
                text = typed_badly(message.header.text, rng, rate, drops)
                yield structs.replace(message, header=structs.replace(message.header, text=text))
            else:
                yield message

    return Perturbation(
        f"typos(rate={rate}, seed={seed}, drops={drops}, topic={topic!r})", apply, topic, _TEXT
    )


def freeze(topic: str = "camera", from_s: float = 0.0, to_s: float = math.inf) -> Perturbation:
    """Repeat the last data of a device; its stamps and counters go on."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        last: dict[str, Message[Header]] = {}
        for elapsed_s, message in timed(messages):
            if _matches(message, topic) and from_s <= elapsed_s < to_s:
                yield _repeat(last.setdefault(message.topic, message), message)
            else:
                yield message

    name = f"freeze({topic!r}, from_s={from_s}, to_s={to_s})"
    return Perturbation(name, apply, topic, _SIGNALS, (from_s, to_s))


def stamp_leap(topic: str, ms: float, at_s: float = 0.0, count: int = 1) -> Perturbation:
    """Move the stamps of `count` consecutive messages ahead, or back if negative."""

    def apply(messages: Messages) -> Iterator[Message[Header]]:
        leapt: dict[str, int] = defaultdict(int)
        for elapsed_s, message in timed(messages):
            if _matches(message, topic) and elapsed_s >= at_s and leapt[message.topic] < count:
                leapt[message.topic] += 1
                stamp_ns = message.header.stamp_ns + round(ms * 1e6)
                header = structs.replace(message.header, stamp_ns=stamp_ns)
                yield structs.replace(message, header=header)
            else:
                yield message

    name = f"stamp_leap({topic!r}, ms={ms}, at_s={at_s}, count={count})"
    return Perturbation(name, apply, topic, span_s=(at_s, math.inf))


def _matches(message: Message[Header], pattern: str) -> bool:
    return topic_matches(message.topic, pattern)


def _in_order(
    messages: Messages,
    change: Callable[[Message[Header]], Message[Header]],
    earliest: Callable[[int], int],
) -> Iterator[Message[Header]]:
    """Change messages and sort them by arrival again.

    `earliest` returns the earliest changed arrival of all messages whose arrival was at or after a time.
    """
    heap: list[tuple[int, int, Message[Header]]] = []
    for number, message in enumerate(messages):
        changed = change(message)
        heapq.heappush(heap, (changed.received_ns, number, changed))
        limit_ns = earliest(message.received_ns)
        while heap and heap[0][0] <= limit_ns:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def _samples(message: Message[Header], header: AudioBlock) -> npt.NDArray[np.float64]:
    """Return all samples, channels interleaved, in [-1, 1]."""
    raw = raw_samples(header, message.payload)
    return raw.reshape(-1).astype(np.float64) / _FULL_SCALE[header.format]


def _powers(messages: Messages, topic: str) -> dict[str, float]:
    """Return the mean power of every matching microphone."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for message in messages:
        if isinstance(message.header, AudioBlock) and _matches(message, topic):
            samples = _samples(message, message.header)
            sums[message.topic][0] += float(np.square(samples).sum())
            sums[message.topic][1] += samples.size
    return {name: energy / max(count, 1) for name, (energy, count) in sums.items()}


def _with_noise(message: Message[Header], header: AudioBlock, deviation: float, seed: int) -> Message[Header]:
    # seeded by the sample index: the noise of a block does not depend on other blocks
    rng = np.random.default_rng([seed, zlib.crc32(message.topic.encode()), header.sample_index])
    samples = _samples(message, header)
    return _with_samples(message, header, samples + deviation * rng.standard_normal(samples.size))


def _with_samples(
    message: Message[Header], header: AudioBlock, samples: npt.NDArray[np.float64]
) -> Message[Header]:
    scaled = samples * _FULL_SCALE[header.format]
    if header.format == "s16":
        scaled = np.rint(scaled).clip(-32768, 32767)
    return structs.replace(message, payload=scaled.astype(SAMPLE_TYPES[header.format]).tobytes())


def typed_badly(text: str, rng: random.Random, typos: float, drops: float) -> str:
    """Return a text with letters replaced, swapped or lost, and words lost, with these probabilities."""
    words = [word for word in text.split() if rng.random() >= drops] or text.split()[:1]
    return " ".join("".join(_typo(word, rng, typos)) for word in words)


def _typo(word: str, rng: random.Random, p: float) -> list[str]:
    letters = list(word)
    for at in range(len(letters)):
        if rng.random() >= p:
            continue
        kind = rng.choice(("replace", "swap", "lose"))
        if kind == "swap" and at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        else:
            letters[at] = rng.choice(ascii_lowercase) if kind == "replace" else ""
    return letters


def _repeat(last: Message[Header], message: Message[Header]) -> Message[Header]:
    """Return `message` with the data of `last`, unchanged if the sizes of two blocks differ."""
    content: dict[str, Any] = {}
    if isinstance(last.header, CameraFrame):
        content = {name: getattr(last.header, name) for name in ("width", "height", "encoding")}
    elif isinstance(last.header, AudioBlock) and len(last.payload) != len(message.payload):
        return message
    header = structs.replace(message.header, **content)
    return structs.replace(message, header=header, payload=last.payload)
