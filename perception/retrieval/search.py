"""Search in recorded sessions: by words, by a picture, by a sound."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress

from perception.devices.media import Sound, open_container
from perception.errors import DeviceError, ProfileError, SessionError, WeightsError
from perception.fusion.build import pick_device
from perception.models.embedders import (
    PictureEmbedder,
    SentenceEmbedder,
    SoundEmbedder,
    Vectors,
    lexical_similarity,
)
from perception.models.images import Image
from perception.retrieval import APART_S
from perception.retrieval.index import KINDS, Embedder, Step, Stream, streams, topics
from perception.retrieval.ranking import RECALL_AT, Scores, Worth, best, mean, worth
from perception.training.dataset import SessionSource
from perception.training.labels import Span

DEFAULT_MODELS: Final = {
    "frames": "openai/clip-vit-base-patch32",
    "sounds": "laion/clap-htsat-unfused",
    "commands": "sentence-transformers/all-MiniLM-L6-v2",
}
EMBEDDERS: Final[dict[str, Callable[..., Embedder]]] = {
    "frames": PictureEmbedder,
    "sounds": SoundEmbedder,
    "commands": SentenceEmbedder,
}
LEXICAL: Final = "lexical"
"""Instead of a sentence model: texts are compared by their words."""
Say = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for: one of these."""

    text: str = ""
    picture: Image | None = None
    sound: tuple[npt.NDArray[np.float32], int] | None = None
    """(samples,) mono, and their rate in Hz."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Where such a query can look."""
        if self.picture is not None:
            return ("frames",)
        return ("sounds",) if self.sound is not None else tuple(KINDS)


@dataclass(frozen=True, slots=True)
class Hit:
    """One result."""

    path: Path
    topic: str
    stamp_ns: int
    received_ns: int
    at_s: float
    """Seconds from the zero of the session, as labels and `perception session` count them."""
    score: float
    """Cosine. Comparable within one kind and model only."""
    text: str

    def __str__(self) -> str:
        return f"{self.score:6.3f}  {clock(self.at_s):>11}  {self.path}  {self.topic}  {self.text}".rstrip()


def clock(seconds: float) -> str:
    """Return seconds as hours:minutes:seconds."""
    hundredths = max(round(seconds * 100), 0)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 100:05.2f}"


def picture_query(file: Path) -> Query:
    """Look for what resembles a picture file; DeviceError if it is none."""
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise DeviceError(f"{file}: no picture that can be decoded")
    return Query(picture=np.asarray(image, np.uint8))


def sound_query(file: Path) -> Query:
    """Look for what resembles an audio file or a video's sound; DeviceError if it has none."""
    with open_container(str(file)) as container:
        rates_hz = [stream.rate for stream in container.streams.audio]
    if not rates_hz:
        raise DeviceError(f"{file}: has no sound")
    # at the file's own rate, so that it comes to the model by the same way as the sound of a session
    sound = Sound(str(file), rate_hz=rates_hz[0], channels=1, sample_format="f32", loop=False, start=0)
    return Query(
        sound=(np.concatenate(list(sound.blocks(rates_hz[0])))[:, 0].astype(np.float32), rates_hz[0])
    )


class Shelf:
    """All things of one kind in some sessions, with what embeds them."""

    def __init__(self, kind: str, model: str, embedder: Embedder | None, found: Sequence[Stream]) -> None:
        self.kind = kind
        self.model = model
        self._embedder = embedder
        self._streams = found
        self.stamps_ns = np.concatenate([np.zeros(0, np.int64), *(stream.stamps_ns for stream in found)])
        self.groups = np.repeat(np.arange(len(found)), [len(stream) for stream in found])
        """(n,) which stream each is of."""

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __str__(self) -> str:
        return f"{self.kind} ({self.model})"

    def scores(self, query: Query) -> Scores:
        """Return how much each thing resembles the query, (n,) cosines."""
        if not self._streams:
            return np.zeros(0, np.float32)
        if self._embedder is None:
            return lexical_similarity(query.text, [text for one in self._streams for text in one.texts])
        vector = self._vector(query, self._embedder)
        return np.concatenate([one.vectors @ vector for one in self._streams if one.vectors is not None])

    def relevant(self, spans: Mapping[Path, Sequence[Span]]) -> npt.NDArray[np.bool_]:
        """Return which things lie in one of the spans of their session, (n,)."""
        found = np.zeros(len(self), bool)
        for group, stream in enumerate(self._streams):
            for span in spans.get(stream.path, ()):
                inside = (self.stamps_ns >= span.start_ns) & (self.stamps_ns < span.end_ns)
                found |= inside & (self.groups == group)
        return found

    def without(self, prefix: str) -> "Shelf":
        """Return the same without the topics of a prefix."""
        rest = [stream for stream in self._streams if not stream.topic.startswith(prefix)]
        return Shelf(self.kind, self.model, self._embedder, rest)

    def hits(self, scores: Scores, indices: Sequence[int]) -> list[Hit]:
        """Return the things of some indices as results."""
        return [self._hit(index, float(scores[index])) for index in indices]

    def _hit(self, index: int, score: float) -> Hit:
        group = int(self.groups[index])
        stream, at = self._streams[group], index - int(np.searchsorted(self.groups, group))
        stamp_ns, received_ns = int(stream.stamps_ns[at]), int(stream.received_ns[at])
        at_s = (stamp_ns - stream.start_ns) / 1e9
        text = stream.texts[at] if stream.texts else ""
        return Hit(stream.path, stream.topic, stamp_ns, received_ns, at_s, score, text)

    @staticmethod
    def _vector(query: Query, embedder: Embedder) -> Vectors:
        if query.picture is not None and isinstance(embedder, PictureEmbedder):
            vectors = embedder.pictures([query.picture])
        elif query.sound is not None and isinstance(embedder, SoundEmbedder):
            vectors = embedder.sound(*query.sound)
        else:
            vectors = embedder.texts([query.text])
        vector: Vectors = vectors[0]
        return vector


def find_sessions(paths: Sequence[Path]) -> list[Path]:
    """Return session files, and all in folders; SessionError if there are none."""
    files = [file for path in paths for file in (sorted(path.rglob("*.mcap")) if path.is_dir() else [path])]
    if not files:
        raise SessionError(f"{', '.join(map(str, paths))}: no sessions (*.mcap) there")
    return files


def open_shelves(
    sessions: Sequence[Path],
    kinds: Sequence[str],
    models: Mapping[str, str],
    step: Step,
    *,
    device: torch.device,
    folder: Path | None = None,
    defaults: Mapping[str, str] = DEFAULT_MODELS,
    say: Say,
) -> list[Shelf]:
    """Open sessions for search, embedding what is not in their indices yet.

    A default model that is not to be had is no error where there is something else to search: commands
    are compared by their words then, another kind is left out, and either is said.

    Args:
        sessions: files.
        kinds: of KINDS.
        models: by kind, a folder or a name on the Hub; of commands also LEXICAL.
        step: what of continuous streams goes into the index.
        device: of the models.
        folder: of the index; default: beside each session.
        defaults: models of the kinds that `models` leaves out.
        say: told what happens.

    Raises:
        SessionError: the sessions have such topics, but nothing of them can be found; and see `streams`.
        WeightsError: see the embedders.
    """
    shelves: list[Shelf] = []
    lost: list[str] = []
    held = False
    for kind in kinds:
        model = models.get(kind, defaults[kind])
        holding = [path for path in sessions if topics(path, kind)]
        try:
            embedder = EMBEDDERS[kind](model, device=device) if holding and model != LEXICAL else None
        except WeightsError as error:
            if kind in models or (len(kinds) == 1 and kind != "commands"):
                raise WeightsError(f"{error}; here by --model {kind}=FOLDER") from error
            say(f"{kind}: {'compared by words' if kind == 'commands' else 'left out'}: {error}")
            if kind != "commands":
                continue
            model, embedder = LEXICAL, None
        found = _streams(holding, kind, embedder, step, folder, say)
        held |= bool(found)
        lost += [f"{one.path}: {line}" for one in found for line in one.lost]
        shelves.append(Shelf(kind, model, embedder, [stream for stream in found if len(stream)]))
    if held and not any(map(len, shelves)):
        names, of = ", ".join(map(str, sessions)), ", ".join(shelf.kind for shelf in shelves)
        raise SessionError(f"{names}: no {of} to search in: {'; '.join(lost) or 'shorter than a step'}")
    for line in lost:
        say(line)
    return shelves


def _streams(
    sessions: Sequence[Path], kind: str, embedder: Embedder | None, step: Step, folder: Path | None, say: Say
) -> list[Stream]:
    found: list[Stream] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(kind, total=None)
        for path in sessions:
            progress.update(bar, description=f"{path.name}: {kind}")
            found += streams(path, kind, embedder, step, folder, lambda: progress.advance(bar))
        embedded, took_s = int(progress.tasks[0].completed), progress.tasks[0].elapsed
    if embedded:
        say(f"{kind}: {embedded} embedded in {took_s:.1f} s")
    return found


def search(shelf: Shelf, query: Query, *, top: int, apart_s: float) -> list[Hit]:
    """Return the best results, best first; of neighbours within `apart_s` only the best.

    What has nothing in common with the query, a cosine of exactly 0, is none.
    """
    scores = shelf.scores(query)
    return [hit for hit in shelf.hits(scores, _best(shelf, scores, top, apart_s)) if hit.score]


def evaluate(shelf: Shelf, spans: Mapping[Path, Sequence[Span]], *, apart_s: float) -> dict[str, Worth]:
    """Judge the rankings for the classes that labels name, by class.

    The query is the name of the class; what lies in a span of it is relevant. Recorded labels themselves
    are not among what is ranked.
    """
    judged = {}
    shelf = shelf.without("label/")
    for name in sorted({span.name for each in spans.values() for span in each}):
        own = {path: [span for span in each if span.name == name] for path, each in spans.items()}
        relevant = shelf.relevant(own)
        if relevant.any():
            scores = shelf.scores(Query(name.replace("_", " ")))
            judged[name] = worth(scores, relevant, _best(shelf, scores, max(RECALL_AT), apart_s))
    return judged


def labelled(sessions: Sequence[Path], track: str) -> dict[Path, list[Span]]:
    """Return the labels of one track by session; SessionError if there are none."""
    spans = {path: [one for one in SessionSource(path).spans() if one.track == track] for path in sessions}
    if not any(spans.values()):
        raise SessionError(f"no labels of track '{track}' in these sessions or beside them")
    return spans


def judge(paths: Sequence[Path], track: str, models: Mapping[str, str], *, say: Say) -> dict[str, Any]:
    """Return what search in sessions by these models is worth for the classes of a track, as plain data."""
    sessions = find_sessions(paths)
    spans = labelled(sessions, track)
    shelves = open_shelves(sessions, tuple(models), models, Step(), device=pick_device("auto"), say=say)
    return as_json([(shelf, evaluate(shelf, spans, apart_s=APART_S)) for shelf in shelves])


def chosen(given: Sequence[str]) -> dict[str, str]:
    """Return models by kind from texts KIND=MODEL; ProfileError if one is none."""
    models = {kind: model for kind, _, model in (text.partition("=") for text in given)}
    if wrong := [text for text in given if text.partition("=")[0] not in KINDS or not text.partition("=")[2]]:
        raise ProfileError(f"{wrong[0]}: expected KIND=MODEL, KIND one of {', '.join(KINDS)}")
    return models


def as_json(found: Sequence[tuple[Shelf, Mapping[str, Worth]]]) -> dict[str, Any]:
    """Return what rankings are worth as plain data, by kind."""
    return {
        shelf.kind: {
            "model": shelf.model,
            "mean": mean(judged),
            "queries": {name: asdict(one) for name, one in judged.items()},
        }
        for shelf, judged in found
    }


def _best(shelf: Shelf, scores: Scores, top: int, apart_s: float) -> list[int]:
    return best(scores, shelf.stamps_ns, shelf.groups, top, round(apart_s * 1e9))
