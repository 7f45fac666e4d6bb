"""Datasets: windows and features of a session are the bytes a live head was given, computed once."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.errors import SessionError
from perception.fusion.build import build_engine, use_threads
from perception.fusion.core import FusionCore
from perception.messages import Header, Label, Message, TextCommand
from perception.models.registry import KINDS
from perception.profile import (
    CameraConfig,
    EncoderConfig,
    FusionConfig,
    HeadConfig,
    InputConfig,
    MicrophoneConfig,
    ScriptConfig,
)
from perception.session.edit import repair, trim
from perception.session.file.writer import SessionWriter
from perception.session.labels import Span, from_messages
from perception.training import encoding
from perception.training.dataset import build
from perception.training.examples import Examples
from perception.training.media import media_sources
from perception.training.sources import SessionSource
from perception.training.splits import folds, holdout
from tests import tiny_models

CAMERA = CameraConfig(source="scripted", width=160, height=120, rate_hz=10)
MICROPHONE = MicrophoneConfig(source="scripted")
ENCODERS = {
    "faces": EncoderConfig(input="camera", kind="faces"),
    "markers": EncoderConfig(input="camera", kind="aruco"),
    "motion": EncoderConfig(input="camera", kind="motion"),
    "resnet": EncoderConfig(input="camera", kind="torchvision", weights="random"),
    "picture": EncoderConfig(input="camera", kind="cnn-image", weights="random"),
    "sound": EncoderConfig(input="microphone", kind="cnn-sound", weights="random"),
    "level": EncoderConfig(input="microphone", kind="level"),
    "mfcc": EncoderConfig(input="microphone", kind="mfcc"),
    "voice": EncoderConfig(input="microphone", kind="silero"),
    "vggish": EncoderConfig(input="microphone", kind="vggish", weights="random"),
    "intent": EncoderConfig(
        input="text", kind="tfidf", options={"intents": {"come": ["come here"], "stop": ["stop now"]}}
    ),
}
TINY = {
    "transformers-vision": ("camera", tiny_models.vit),
    "transformers-audio": ("microphone", tiny_models.ast),
    "transformers-text": ("text", tiny_models.bert),
}
CHEAP = {name: ENCODERS[name] for name in ("motion", "level", "intent")}


def config(encoders: dict[str, EncoderConfig]) -> FusionConfig:
    return FusionConfig(
        device="cpu",
        hop_ms=200,
        inputs={
            "camera": InputConfig(topic="camera/front"),
            "microphone": InputConfig(topic="microphone/main"),
            "text": InputConfig(topic="text/*"),
        },
        encoders=encoders,
        head=HeadConfig(classes=CLASSES),
    )


def script(seconds: float, seed: int = 3) -> list[Message[Header]]:
    return list(messages(ScriptConfig(seed=seed), CAMERA, MICROPHONE, seconds, origin_ns=10**18))


def record(path: Path, stream: list[Message[Header]]) -> SessionSource:
    with SessionWriter(path) as writer:
        for message in stream:
            writer.write(message)
    return SessionSource(path)


@dataclass(frozen=True)
class Playing:
    """A source of messages in memory."""

    stream: tuple[Message[Header], ...]
    name: str = "played"

    def fingerprint(self) -> str:
        return self.name

    def origin(self) -> str:
        return self.name

    def messages(self) -> Iterator[Message[Header]]:
        return iter(self.stream)

    def recording(self) -> list[Message[Header]]:
        return list(self.stream)

    def spans(self) -> list[Span]:
        return from_messages(m.header for m in self.stream if isinstance(m.header, Label))


def test_dataset_features_are_the_live_bytes_for_every_encoder(tmp_path: Path) -> None:
    stream = script(2.2)
    command = TextCommand(stamp_ns=stream[40].header.stamp_ns + 1, text="come here", source="say#1")
    stream.insert(41, Message("text/say", command, received_ns=stream[40].received_ns))
    source = record(tmp_path / "a.mcap", stream)
    tiny = {}
    for kind, (item, write) in TINY.items():
        write(tmp_path / kind)
        tiny[kind] = EncoderConfig(input=item, kind=kind, weights=str(tmp_path / kind))
    encoders = ENCODERS | tiny
    assert {encoder.kind for encoder in encoders.values()} == set(KINDS), "every kind there is"
    fusion = config(encoders)
    use_threads(fusion.threads)  # as a node does
    core, engine = FusionCore(fusion), build_engine(fusion, clock=lambda: 0)
    live = {}
    for message in stream:
        for window in core.push(message):
            live[window.end_ns] = engine.tensors(window, engine.encode(window))
    stored = encoding.encode(source, fusion)
    row_of = {end_ns: row for row, end_ns in enumerate(stored["ends_ns"].tolist())}
    assert live
    assert live.keys() <= row_of.keys()
    for end_ns, (features, present, ages_s, suspect) in live.items():
        row = row_of[end_ns]
        assert torch.equal(stored["present"][row], present[0])
        assert torch.equal(stored["ages_s"][row], ages_s[0])
        assert torch.equal(stored["suspect"][row], suspect[0])
        for name in encoders:
            kept = stored[f"feature.{name}"][row]
            expected = features[name][0] if name in features else torch.zeros_like(kept)
            assert kept.numpy().tobytes() == expected.numpy().tobytes(), name
    assert stored["present"].any(dim=0).all()


def test_features_are_computed_once_and_again_only_when_something_decisive_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [Playing(tuple(script(4.0, seed)), f"play {seed}") for seed in (3, 4)]
    cache = tmp_path / "cache"
    first = build(sources, config(CHEAP), cache, classes=CLASSES)
    files = sorted(cache.iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    again = build(sources, config(CHEAP), cache, classes=CLASSES)
    assert sorted(cache.iterdir()) == files
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert torch.equal(first.labels, again.labels)
    files[0].unlink()  # interrupted: only what is missing is made again
    build(sources, config(CHEAP), cache, classes=CLASSES)
    assert files[1].stat().st_mtime_ns == stamps[1]
    other_head = config(CHEAP).model_copy(update={"head": HeadConfig(weights="random", classes=("x", "y"))})
    build(sources, other_head, cache, classes=CLASSES)
    assert sorted(cache.iterdir()) == files
    build(sources, config(CHEAP).model_copy(update={"lateness_ms": 90.0}), cache, classes=CLASSES)
    assert len(list(cache.iterdir())) == 4


def test_damaged_features_are_named(tmp_path: Path) -> None:
    source = Playing(tuple(script(4.0)))
    build([source], config(CHEAP), tmp_path / "cache", classes=CLASSES)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"no tensors")
    with pytest.raises(SessionError, match=f"features of played are damaged; remove {file.name}"):
        build([source], config(CHEAP), tmp_path / "cache", classes=CLASSES)


def test_labels_come_from_the_recording_or_from_a_file_beside_it(tmp_path: Path) -> None:
    source = record(tmp_path / "a.mcap", script(4.0))
    recorded = source.spans()
    assert {span.name for span in recorded} <= set(CLASSES)
    (tmp_path / "a.labels.txt").write_text("0.5\t1.5\tleft\n2.0\t3.0\tright\n")
    assert [span.name for span in source.spans()] == ["left", "right"]
    examples = build([source], config(CHEAP), tmp_path / "cache")
    assert examples.classes == ("left", "right")
    assert examples.labels.bincount().tolist() == [5, 5]


def test_without_labels_there_are_no_examples_and_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no sources"):
        build([], config(CHEAP), tmp_path)
    stream = tuple(m for m in script(2.0) if not isinstance(m.header, Label))
    with pytest.raises(SessionError, match="0 classes"):
        build([Playing(stream)], config(CHEAP), tmp_path)


@dataclass(frozen=True)
class Film(Playing):
    """A source whose messages are made one by one."""

    made: list[Message[Header]] = field(default_factory=list)

    def recording(self) -> Iterator[Message[Header]]:  # type: ignore[override]
        for message in self.stream:
            self.made.append(message)
            yield message


def test_messages_of_a_film_are_not_held_in_memory() -> None:
    film = Film(tuple(script(6.0)))
    played = encoding.windows(film, config(CHEAP))
    next(played)
    assert len(film.made) < len(film.stream) / 2
    ends_ns = [window.end_ns for window in encoding.windows(Playing(film.stream), config(CHEAP))]
    assert [window.end_ns for window in played] == ends_ns[1:]


def test_a_copy_of_a_session_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = record(tmp_path / "a.mcap", script(4.0))
    (tmp_path / "copy.mcap").write_bytes(source.path.read_bytes())
    copies = [source, SessionSource(tmp_path / "copy.mcap"), source]
    once = build([source], config(CHEAP), tmp_path / "cache", classes=CLASSES)
    assert len(build(copies, config(CHEAP), tmp_path / "cache", classes=CLASSES)) == len(once)
    assert "copy: left out, a copy of a source before it" in caplog.text
    (tmp_path / "copy.labels.txt").write_text(f"0\t9\t{CLASSES[0]}\n")
    relabelled = build(copies[:2], config(CHEAP), tmp_path / "cache", classes=CLASSES)
    assert len(relabelled) > len(once)


def test_a_session_and_what_was_made_of_it_stay_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, other = (record(tmp_path / f"{seed}.mcap", script(5.0, seed)) for seed in (3, 4))
    trim(whole.path, tmp_path / "part.mcap", start_s=1.0)
    trim(tmp_path / "part.mcap", tmp_path / "part of it.mcap", start_s=0.5)
    repair(whole.path, tmp_path / "repaired.mcap")
    made = [SessionSource(tmp_path / f"{name}.mcap") for name in ("part", "part of it", "repaired")]
    data = build([whole, other, *made], config(CHEAP), tmp_path / "cache", classes=CLASSES)
    for one, rest in [holdout(data, 0.5, 0), *folds(data, 2, 0)]:
        assert {len(set(side.sources.tolist())) for side in (one, rest)} == {1, 4}
    assert "3, part, part of it, repaired: of one recording, kept in one part of every split" in caplog.text
    with pytest.raises(SessionError, match="1 labelled sessions cannot be split"):
        holdout(build([whole, *made], config(CHEAP), tmp_path / "cache", classes=CLASSES), 0.5, 0)


def test_a_split_leaves_something_on_both_sides() -> None:
    data = Examples.of({"a": torch.zeros(3, 1)}, torch.arange(3), ("x", "y", "z"))
    rest, taken = holdout(data, 0.99, 0)
    assert (len(rest), len(taken)) == (1, 2)


def test_sources_stay_together_in_every_split() -> None:
    sources = torch.arange(10).repeat_interleave(7)
    data = Examples.of({"a": torch.randn(70, 2)}, torch.arange(70) % 2, ("x", "y"), sources)
    for left, right in [holdout(data, 0.3, 0), *folds(data, 5, 0)]:
        assert len(left) + len(right) == 70
        assert not set(left.sources.tolist()) & set(right.sources.tolist())
    with pytest.raises(SessionError, match="windows of one session are too similar"):
        holdout(data.rows(data.sources == 1), 0.3, 0)


def test_a_folder_of_ordinary_media_is_a_data_set_labelled_by_its_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, frequency_hz in (("low", 200), ("high", 3000)):
        (tmp_path / "media" / name).mkdir(parents=True)
        for number, seconds in enumerate((0.4, 1.5)):
            t = np.arange(round(22_050 * seconds)) / 22_050
            sound = 0.3 * np.sin(2 * np.pi * frequency_hz * t) + 0.01 * rng.standard_normal(t.size)
            soundfile.write(tmp_path / "media" / name / f"{number}.wav", sound, 22_050)
    fusion = config({"mfcc": ENCODERS["mfcc"]})
    sources = media_sources(tmp_path / "media", fusion)
    assert [source.name for source in sources] == ["high/0.wav", "high/1.wav", "low/0.wav", "low/1.wav"]
    examples = build(sources, fusion, tmp_path / "cache")
    assert examples.classes == ("high", "low")
    present = examples.rows(examples.present[:, 0]).read()
    assert set(present.sources.tolist()) == {0, 1, 2, 3}
    means = [present.features["mfcc"][present.labels == label].mean(dim=0) for label in (0, 1)]
    assert (means[0] - means[1]).norm() > 1


def test_labelled_windows_with_nothing_present_are_left_out_counted_and_still_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, frequency_hz in (("high", 3000), ("low", 200)):
        (tmp_path / "media" / name).mkdir(parents=True)
        t = np.arange(22_050 * 3) / 22_050
        soundfile.write(
            tmp_path / "media" / name / "a.wav", 0.3 * np.sin(2 * np.pi * frequency_hz * t), 22_050
        )
    fusion = config({"mfcc": ENCODERS["mfcc"]})
    sources = media_sources(tmp_path / "media", fusion)
    raw = encoding.encode(sources[0], fusion)
    empty = 2 * int((~raw["present"].any(dim=1)).sum())
    assert empty, "while the first sound fills its window"
    examples = build(sources, fusion, tmp_path / "cache")
    assert examples.present.any(dim=1).all()
    total = 2 * len(raw["ends_ns"])
    assert len(examples) == total - empty
    assert examples.empty == (empty // 2, empty // 2)
    assert f"{empty} of {total} labelled windows left out: nothing is present in them" in caplog.text
    remembered = build(sources, fusion, tmp_path / "cache", context=True)
    assert (len(remembered), len(remembered.labelled)) == (total, total - empty)
