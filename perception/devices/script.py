"""The script of the scripted devices: an endless sequence of segments with known ground truth.

Time is divided into chapters. Each is a shuffled list of classes that depends on seed and chapter number
only, so any time can be computed without the time before it, and a restarted node continues at the present.
No single modality distinguishes all classes: each cue also appears in other classes, without meaning.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np

from perception.profile import ScriptConfig

CLASSES: Final = ("idle", "visitor", "talking", "call", "clap", "marker", "command")
ASSETS: Final = Path(__file__).resolve().parent / "assets"
FACES: Final = 2
VOICES: Final = 8
ROOMS: Final = 3
MARKERS: Final = 50

# Number of segments of each class per chapter.
CLASS_COUNTS: Final = {"idle": 5, "visitor": 4, "talking": 4, "call": 4, "clap": 3, "marker": 3, "command": 4}
# A command is valid for 3 s (InputConfig.ttl_ms): its segment ends with it, and every other segment is at
# least as long, so no text is valid in a later segment.
COMMAND_NS: Final = 3_000_000_000
STEP_NS: Final = 153_000_000
_OTHERS: Final = sum(CLASS_COUNTS.values()) - CLASS_COUNTS["command"]
# The others last 3 s, 3 s + step, 3 s + 2 step ... (to 6.4 s), shuffled: all chapters have the same length.
CHAPTER_NS: Final = CLASS_COUNTS["command"] * COMMAND_NS + sum(
    COMMAND_NS + STEP_NS * k for k in range(_OTHERS)
)
CHAPTER_SEGMENTS: Final = sum(CLASS_COUNTS.values())

Voicing = Literal["none", "speech", "claps"]
Backdrop = Literal["quiet", "white", "hum", "murmur", "tune", "knocks"]
_BACKDROPS: Final[tuple[Backdrop, ...]] = ("quiet", "white", "hum", "murmur", "tune", "knocks")


@dataclass(frozen=True, slots=True)
class Person:
    """A photographed head above a drawn torso. Positions are fractions of the picture's width, height."""

    face: int
    x: float
    y: float
    size: float
    """Width of the face box over picture height."""
    mirrored: bool
    tilt_deg: float
    gain: float
    blur: float
    """Gaussian sigma in pixels of a 480-row picture."""
    sway: float
    clothes: tuple[int, int, int]
    side: int
    """Enters from the left (-1), below (0) or the right (1)."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card held into view: an ArUco marker, or a chequered pattern that means nothing (None)."""

    marker: int | None
    x: float
    y: float
    size: float
    angle_deg: float
    side: int


@dataclass(frozen=True, slots=True)
class MovingObject:
    """A plain object that crosses the view during its segment."""

    round: bool
    y: float
    size: float
    laps: float
    """Crossings per segment; negative from right to left."""
    colour: tuple[int, int, int]
    in_front: bool


@dataclass(frozen=True, slots=True)
class Sound:
    """The sound of a segment. Levels are RMS in dB of full scale; speech and claps are above the backdrop."""

    voicing: Voicing
    level_db: float
    voice: int
    offset: float
    """Start in the voice's recording, 0 to 1."""
    pitch: float
    """Playback speed."""
    claps_hz: float
    backdrop: Backdrop
    backdrop_db: float


@dataclass(frozen=True, slots=True)
class Segment:
    """One class, with its picture, sound and text, over `[start_ns, end_ns)` of script time."""

    index: int
    start_ns: int
    end_ns: int
    name: str
    room: int
    person: Person | None
    card: Card | None
    objects: tuple[MovingObject, ...]
    gain: float
    """Brightness of the light."""
    grain: float
    """Sensor noise, standard deviation in grey levels."""
    sound: Sound
    text: str
    """Sent at the segment's start; empty for none."""


class Script:
    """The segments for one (seed, noise); every result is a pure function of these and the arguments."""

    def __init__(self, config: ScriptConfig) -> None:
        self.config = config
        self._chapter = lru_cache(maxsize=4)(self._write_chapter)
        self._phrases = tomllib.loads((ASSETS / "phrases.toml").read_text(encoding="utf-8"))

    def at(self, t_ns: int) -> Segment:
        """Return the segment at `t_ns` nanoseconds of script time; ValueError if negative."""
        if t_ns < 0:
            raise ValueError(f"the script begins at 0, not at {t_ns} ns")
        chapter = self._chapter(t_ns // CHAPTER_NS)
        return next(segment for segment in chapter if t_ns < segment.end_ns)

    def segment(self, index: int) -> Segment:
        """Return the segment of that number; ValueError if negative."""
        if index < 0:
            raise ValueError(f"the script begins with segment 0, not {index}")
        chapter, place = divmod(index, CHAPTER_SEGMENTS)
        return self._chapter(chapter)[place]

    def segments(self, start_ns: int, end_ns: int) -> Iterator[Segment]:
        """Yield the segments that overlap `[start_ns, end_ns)`, in order."""
        index = self.at(start_ns).index
        while (segment := self.segment(index)).start_ns < end_ns:
            yield segment
            index += 1

    def random(self, *key: int) -> np.random.Generator:
        """Return a generator that depends on the seed and `key` only."""
        # SeedSequence requires non-negative words; a seed may be any integer.
        return np.random.default_rng([self.config.seed % (1 << 64), *key])

    def _write_chapter(self, number: int) -> tuple[Segment, ...]:
        rng = self.random(0, number)
        names = rng.permutation([name for name, times in CLASS_COUNTS.items() for _ in range(times)])
        lengths = iter(rng.permutation(_OTHERS))
        room = int(rng.integers(ROOMS))
        start = number * CHAPTER_NS
        segments: list[Segment] = []
        for place, name in enumerate(map(str, names)):
            extra = 0 if name == "command" else int(next(lengths)) * STEP_NS
            end = start + COMMAND_NS + extra
            before = segments[-1].person if segments else None
            index = number * CHAPTER_SEGMENTS + place
            segments.append(self._write(rng, index, (start, end), name, room, before))
            start = end
        return tuple(segments)

    def _write(
        self,
        rng: np.random.Generator,
        index: int,
        span: tuple[int, int],
        name: str,
        room: int,
        before: Person | None,
    ) -> Segment:
        noise = self.config.noise
        person = None
        if rng.random() < {"idle": 0, "call": 0, "clap": 0.5, "marker": 0.5}.get(name, 1):
            # The person of the previous segment often stays.
            person = before if before and rng.random() < 0.6 else _person(rng, noise)
        card = None
        if name == "marker" or rng.random() < 0.12 * min(noise, 1):
            card = _card(rng, noise, name == "marker", person)
        return Segment(
            index=index,
            start_ns=span[0],
            end_ns=span[1],
            name=name,
            room=room,
            person=person,
            card=card,
            objects=tuple(_object(rng, noise) for _ in range(min(rng.poisson(0.6 * noise), 4))),
            gain=float(np.clip(1 + rng.uniform(-0.5, 0.25) * noise, 0.25, 1.5)),
            grain=float(rng.uniform(1, 9) * noise),
            sound=_sound(rng, noise, name),
            text=self._text(rng, name),
        )

    def _text(self, rng: np.random.Generator, name: str) -> str:
        # A command with a person in view is addressed to the robot; elsewhere it is a distractor.
        command = {"command": 1.0, "idle": 0.2, "call": 0.25}.get(name, 0.0)
        small_talk = {"command": 0.0, "idle": 0.25, "call": 0.2, "clap": 0.25, "marker": 0.25}.get(name, 0.35)
        draw = rng.random()
        if draw >= command + small_talk:
            return ""
        phrases = self._phrases
        if draw >= command:
            text = str(rng.choice(phrases["small_talk"]))
        else:
            text = "".join(str(rng.choice(phrases[part])) for part in ("courtesies", "commands", "endings"))
        return _mistyped(rng, text) if rng.random() < 0.15 * self.config.noise else text


def _person(rng: np.random.Generator, noise: float) -> Person:
    return Person(
        face=int(rng.integers(FACES)),
        x=float(rng.uniform(0.25, 0.75)),
        y=float(rng.uniform(0.3, 0.5)),
        size=float(rng.uniform(0.18, 0.4)),
        mirrored=bool(rng.random() < 0.5),
        tilt_deg=float(rng.normal(0, 5) * noise),
        gain=float(np.clip(1 + rng.normal(0, 0.25) * noise, 0.4, 1.6)),
        blur=float(abs(rng.normal(0, 1.5)) * noise),
        sway=float(rng.uniform(0.005, 0.02)),
        clothes=_colour(rng),
        side=int(rng.integers(-1, 2)),
    )


def _card(rng: np.random.Generator, noise: float, marker: bool, person: Person | None) -> Card:
    # Held beside the face, not over it.
    right = person.x < 0.5 if person else rng.random() < 0.5
    return Card(
        marker=int(rng.integers(MARKERS)) if marker else None,
        x=float(rng.uniform(0.8, 0.87) if right else rng.uniform(0.13, 0.2)),
        y=float(rng.uniform(0.3, 0.75)),
        size=float(rng.uniform(0.16, 0.3)),
        angle_deg=float(rng.normal(0, 12) * noise),
        side=1 if right else -1,
    )


def _object(rng: np.random.Generator, noise: float) -> MovingObject:
    return MovingObject(
        round=bool(rng.random() < 0.5),
        y=float(rng.uniform(0.2, 0.9)),
        size=float(rng.uniform(0.05, 0.16)),
        laps=float(rng.choice([-1, 1]) * rng.uniform(0.6, 2.0)),
        colour=_colour(rng),
        in_front=bool(rng.random() < 0.2 * noise),
    )


def _sound(rng: np.random.Generator, noise: float, name: str) -> Sound:
    voicing: Voicing = "none"
    if name == "clap":
        voicing = "claps"
    elif name in ("talking", "call") or (name in ("marker", "command") and rng.random() < 0.4):
        voicing = "speech"
    backdrop = _BACKDROPS[int(rng.integers(len(_BACKDROPS)))]
    # 20 log10(noise) makes the disturbance's amplitude follow `noise`.
    loudness = 20 * float(np.log10(noise)) if noise else -np.inf
    return Sound(
        voicing=voicing,
        level_db=float(rng.uniform(-30, -16)),
        voice=int(rng.integers(VOICES)),
        offset=float(rng.random()),
        pitch=float(rng.uniform(0.94, 1.06)),
        claps_hz=float(rng.uniform(3, 6) if rng.random() < 0.6 else rng.uniform(10, 20)),
        backdrop=backdrop,
        backdrop_db=float(rng.uniform(-60, -36)) + loudness,
    )


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    blue, green, red = (int(value) for value in rng.integers(20, 230, 3))
    return blue, green, red


def _mistyped(rng: np.random.Generator, text: str) -> str:
    place = int(rng.integers(1, len(text) - 1))
    if rng.random() < 0.5:
        return text[:place] + text[place + 1 :]
    return text[: place - 1] + text[place] + text[place - 1] + text[place + 1 :]
