"""Search in recorded sessions: by words, by a picture, by a sound.

Texts are compared by their words; torch is loaded only where a model embeds frames, sounds or texts.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from perception.errors import ProfileError, SessionError, WeightsError
from perception.io.home import expanded
from perception.io.progress import progress
from perception.models.lexical import lexical_similarity, shares_word
from perception.retrieval.ranking import Scores, best
from perception.retrieval.streams import KINDS, Step, Stream, has, text_streams
from perception.session.file.reader import sessions_in
from perception.units.arrays import Image

if TYPE_CHECKING:
    from perception.retrieval.index import Embedder
    from perception.session.labels import Span

LEXICAL: Final = "lexical"
"""In place of a model: texts are compared by their words."""
DEFAULT_MODELS: Final = {
    "frames": "openai/clip-vit-base-patch32",
    "sounds": "laion/clap-htsat-unfused",
    "commands": LEXICAL,
    "states": LEXICAL,
}
MODELLED: Final = ("frames", "sounds", "commands")
"""Kinds that a model can embed."""
FLOORS: Final = {"openai/clip-vit-base-patch32": 0.2, "laion/clap-htsat-unfused": 0.1, LEXICAL: 0.3}
"""By model, the cosine under which a result is unrelated to a text query: CLIP gives about 0.3 to pictures
that match, 0.15 to others. Other models have other scales, and no default."""
_QUERY_S: Final = 60
Vector = npt.NDArray[np.float32]
Show = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Query:
    """A query: one of text, picture and sound."""

    text: str = ""
    picture: Image | None = None
    sound: tuple[npt.NDArray[np.float32], int] | None = None
    """(samples,) mono, and the rate in Hz."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that such a query can search."""
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
    """Seconds from the zero of the session, as in labels and `perception session`."""
    score: float
    """Cosine; comparable within one kind and model only."""
    text: str
    note: str = ""
    """About the text: what inferred it, its score, its duration."""

    def __str__(self) -> str:
        note = f"({self.note})" if self.note else ""
        parts = (f"{self.score:6.3f}", f"{clock(self.at_s):>11}", self.path, self.topic, self.text, note)
        return "  ".join(map(str, parts)).rstrip()


def clock(seconds: float) -> str:
    """Return seconds as hours:minutes:seconds, with a sign before the zero of a session."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(abs(hundredths), 6000)
    return f"{'-' if hundredths < 0 else ''}{minutes // 60}:{minutes % 60:02d}:{rest / 100:05.2f}"


def picture_query(file: Path) -> Query:
    """Return the query for frames like a picture file; DeviceError if it cannot be decoded."""
    from perception.devices.pictures import read_picture

    return Query(picture=read_picture(file))


def sound_query(file: Path) -> Query:
    """Return the query for sounds like an audio file or the sound of a video; DeviceError if it has none.

    Of a longer file the last `_QUERY_S` seconds are kept: the models take the end of what they are given.
    """
    from perception.devices.sound import Sound, kind_of_sound

    # at the rate of the file: the model resamples it exactly as the sound of a session
    rate_hz, _ = kind_of_sound(str(file))
    sound = Sound(str(file), rate_hz=rate_hz, channels=1, sample_format="f32", loop=False, start=0)
    seconds = deque(sound.blocks(rate_hz), maxlen=_QUERY_S)
    return Query(sound=(np.concatenate(seconds)[:, 0].astype(np.float32), rate_hz))


class SearchIndex:
    """All items of one kind in some sessions, with the model that embeds them."""

    def __init__(self, kind: str, model: str, embedder: "Embedder | None", found: Sequence[Stream]) -> None:
        self.kind = kind
        self.model = model
        self._embedder = embedder
        self._streams = found
        self.stamps_ns = np.concatenate([np.zeros(0, np.int64), *(stream.stamps_ns for stream in found)])
        self.groups = np.repeat(np.arange(len(found)), [len(stream) for stream in found])
        """(n,) the stream of each item."""

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def __str__(self) -> str:
        return f"{self.kind} ({self.model})"

    def scores(self, query: Query) -> Scores:
        """Return the similarity of each item to the query, (n,) cosines."""
        if not self._streams:
            return np.zeros(0, np.float32)
        if self._embedder is None:
            texts = [text for one in self._streams for text in one.texts]
            confidence = np.concatenate(
                [np.ones(len(one)) if one.confidence is None else one.confidence for one in self._streams]
            )
            alike = lexical_similarity(query.text, texts) * shares_word(query.text, texts)
            scores: Scores = (alike * confidence).astype(np.float32)
            return scores
        vector = self._vector(query, self._embedder)
        return np.concatenate([one.vectors @ vector for one in self._streams if one.vectors is not None])

    def relevant(self, spans: "Mapping[Path, Sequence[Span]]") -> npt.NDArray[np.bool_]:
        """Return which items are in one of the spans of their session, (n,)."""
        found = np.zeros(len(self), bool)
        for group, stream in enumerate(self._streams):
            for span in spans.get(stream.path, ()):
                inside = (self.stamps_ns >= span.start_ns) & (self.stamps_ns < span.end_ns)
                found |= inside & (self.groups == group)
        return found

    def without(self, prefix: str) -> "SearchIndex":
        """Return the index without the topics of a prefix."""
        rest = [stream for stream in self._streams if not stream.topic.startswith(prefix)]
        return SearchIndex(self.kind, self.model, self._embedder, rest)

    def hits(self, scores: Scores, rows: Sequence[int]) -> list[Hit]:
        """Return the items of some rows as results."""
        return [self._hit(row, float(scores[row])) for row in rows]

    def _hit(self, row: int, score: float) -> Hit:
        group = int(self.groups[row])
        stream, at = self._streams[group], row - int(np.searchsorted(self.groups, group))
        stamp_ns, received_ns = int(stream.stamps_ns[at]), int(stream.received_ns[at])
        at_s = (stamp_ns - stream.start_ns) / 1e9
        text, note = (stream.texts[at], stream.notes[at]) if stream.texts else ("", "")
        return Hit(stream.path, stream.topic, stamp_ns, received_ns, at_s, score, text, note)

    @staticmethod
    def _vector(query: Query, embedder: "Embedder") -> Vector:
        from perception.models.embedders import PictureEmbedder, SoundEmbedder

        if query.picture is not None and isinstance(embedder, PictureEmbedder):
            vectors = embedder.pictures([query.picture])
        elif query.sound is not None and isinstance(embedder, SoundEmbedder):
            vectors = embedder.sound(*query.sound)
        else:
            vectors = embedder.texts([query.text])
        vector: Vector = vectors[0]
        return vector


def find_sessions(paths: Sequence[Path | str]) -> list[Path]:
    """Return session files, and all those in folders; SessionError if there are none."""
    given = map(Path, paths)
    files = [file for path in given for file in (sessions_in(path) if path.is_dir() else [path])]
    if not files:
        raise SessionError(f"{', '.join(map(str, paths))}: no sessions (*.mcap) there")
    return files


def open_indexes(
    sessions: Sequence[Path],
    kinds: Sequence[str],
    models: Mapping[str, str],
    step: Step,
    *,
    device: str = "auto",
    folder: Path | None = None,
    defaults: Mapping[str, str] = DEFAULT_MODELS,
    show: Show,
) -> list[SearchIndex]:
    """Return an index per kind; embed what is not yet in the index files of the sessions.

    A kind whose default model is not on this machine is left out, with a message: default models are not
    downloaded. A kind that is the only one, or that has a model in `models`, is not left out.

    Args:
        sessions: files.
        kinds: some of KINDS.
        models: by kind, a folder or a name on the Hub; for commands also LEXICAL.
        step: how often frames and sounds are embedded.
        device: of the models, as in a profile.
        folder: of the index; default: beside each session.
        defaults: models of the kinds that are not in `models`.
        show: prints a message.

    Raises:
        SessionError: the sessions have such topics, but nothing in them can be found; and see `streams`.
        WeightsError: see the embedders.
    """
    indexes: list[SearchIndex] = []
    left_out: dict[str, None] = {}
    found_any = False
    for kind in kinds:
        model = models.get(kind, defaults[kind])
        holding = [path for path in sessions if has(path, kind)]
        required = kind in models or len(kinds) == 1
        if holding and not required and not _is_here(model):
            show(f"{kind}: left out, {model} is not on this machine; fetch it by --model {kind}={model}")
            continue
        embedder = _embedder(kind, model, device) if holding and model != LEXICAL else None
        found = _streams(holding, kind, embedder, step, folder, show)
        found_any |= bool(found)
        left_out |= dict.fromkeys(f"{one.path}: {line}" for one in found for line in one.left_out)
        indexes.append(SearchIndex(kind, model, embedder, [stream for stream in found if len(stream)]))
    if found_any and not any(map(len, indexes)):
        names, of = ", ".join(map(str, sessions)), ", ".join(index.kind for index in indexes)
        raise SessionError(f"{names}: no {of} to search in: {'; '.join(left_out) or 'shorter than a step'}")
    for line in left_out:
        show(line)
    return indexes


def _is_here(model: str) -> bool:
    """Return whether a model can be loaded without a network."""
    if model == LEXICAL or expanded(model).is_dir():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:  # not a valid name on the Hub
        return False


def _embedder(kind: str, model: str, device: str) -> "Embedder":
    from perception.fusion.build import pick_device
    from perception.models import embedders

    classes: dict[str, Callable[..., Embedder]] = {
        "frames": embedders.PictureEmbedder,
        "sounds": embedders.SoundEmbedder,
        "commands": embedders.SentenceEmbedder,
    }
    try:
        return classes[kind](model, device=pick_device(device))
    except WeightsError as error:
        raise WeightsError(f"{error}; here by --model {kind}=FOLDER") from error


def _streams(
    sessions: Sequence[Path],
    kind: str,
    embedder: "Embedder | None",
    step: Step,
    folder: Path | None,
    show: Show,
) -> list[Stream]:
    if embedder is None:
        return [stream for path in sessions for stream in text_streams(path, kind)]
    from perception.retrieval.index import streams

    found: list[Stream] = []
    embedded = 0
    with progress(f"embedding {kind}") as advance:

        def on_item() -> None:
            nonlocal embedded
            embedded += 1
            advance()

        for path in sessions:
            advance(0, path.name)
            found += streams(path, kind, embedder, step, folder, on_item)
    if embedded:
        show(f"{kind}: {embedded} embedded")
    return found


def floor_of(index: SearchIndex, query: Query) -> float | None:
    """Return the score under which results are left out; None where there is no default."""
    return FLOORS.get(index.model) if query.text else None


def search(
    index: SearchIndex, query: Query, *, top: int, apart_s: float, floor: float | None = None
) -> list[Hit]:
    """Return the best results, best first; of neighbours within `apart_s` only the best.

    An item with a cosine of exactly 0, or less than `floor`, is not a result.
    """
    scores = index.scores(query)
    hits = index.hits(scores, _best(index, scores, top, apart_s))
    return [hit for hit in hits if hit.score and (floor is None or hit.score >= floor)]


def chosen(given: Sequence[str]) -> dict[str, str]:
    """Return models by kind from texts KIND=MODEL; ProfileError if a text has another form."""
    models = {kind: model for kind, _, model in (text.partition("=") for text in given)}
    if wrong := [
        text for text in given if text.partition("=")[0] not in MODELLED or not text.partition("=")[2]
    ]:
        raise ProfileError(f"{wrong[0]}: expected KIND=MODEL, KIND one of {', '.join(MODELLED)}")
    return models


def _best(index: SearchIndex, scores: Scores, top: int, apart_s: float) -> list[int]:
    return best(scores, index.stamps_ns, index.groups, top, round(apart_s * 1e9))
