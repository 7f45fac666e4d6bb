"""Perturbed copies of sessions: cut and encoded as their originals are, and only ever learned from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from perception.devices.script import CLASSES
from perception.devices.scripted import messages
from perception.messages import Message, TextCommand
from perception.profile import (
    CameraConfig,
    EncoderConfig,
    FusionConfig,
    HeadConfig,
    InputConfig,
    MicrophoneConfig,
    ScriptConfig,
)
from perception.session.file.writer import SessionWriter
from perception.training import heads
from perception.training.copies import CopyPlan, copied, joined
from perception.training.dataset import build
from perception.training.examples import Examples
from perception.training.fit_config import TrainingConfig
from perception.training.heads import Split
from perception.training.media import MediaSource
from perception.training.plan import TrainPlan
from perception.training.sources import SessionSource
from tests.media import write_wav

FUSION = FusionConfig(
    device="cpu",
    hop_ms=200,
    inputs={
        "camera": InputConfig(topic="camera/front"),
        "microphone": InputConfig(topic="microphone/main"),
        "text": InputConfig(topic="text/*"),
    },
    encoders={
        "motion": EncoderConfig(input="camera", kind="motion"),
        "level": EncoderConfig(input="microphone", kind="level"),
        "intent": EncoderConfig(
            input="text", kind="tfidf", options={"intents": {"come": ["come here"], "stop": ["stop now"]}}
        ),
    },
    head=HeadConfig(classes=CLASSES),
)
MOTION, LEVEL = (sorted(FUSION.encoders).index(name) for name in ("motion", "level"))
EVERYTHING = CopyPlan(
    seed=1,
    noise_snr_db=0.0,
    gain_db=-6.0,
    shift_ms=80.0,
    typos=0.3,
    word_drops=0.1,
    lost={"camera": 0.2},
    late_ms={"text": 100},
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[SessionSource]:
    """Six sessions; all have the same name, as files in several folders may."""
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=10)
    found = []
    for seed in range(1, 7):
        path = tmp_path_factory.mktemp("session") / "play.mcap"
        with SessionWriter(path) as writer:
            script = messages(
                ScriptConfig(seed=seed), camera, MicrophoneConfig(source="scripted"), 6.0, origin_ns=10**18
            )
            for number, message in enumerate(script):
                writer.write(message)
                if number == 40:
                    command = TextCommand(stamp_ns=message.header.stamp_ns, source="say#1", text="come here")
                    writer.write(Message("text/say", command, received_ns=message.received_ns))
        found.append(SessionSource(path))
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def examples(sources: Sequence[SessionSource], cache: Path, plan: CopyPlan | None = None) -> Examples:
    """Return all windows of the sources, or of their copies."""
    chosen = sources if plan is None else copied(sources, plan)
    return build(chosen, FUSION, cache, classes=CLASSES, context=True).read()


def rows(part: Examples) -> set[tuple[int, int]]:
    return set(zip(part.sources.tolist(), part.ends_ns.tolist(), strict=True))


def changed(first: Examples, second: Examples) -> set[str]:
    """Name the branches that two cuts of the same windows differ in."""
    assert torch.equal(first.ends_ns, second.ends_ns)
    first, second = first.read(), second.read()
    return {name for name in first.branches if not torch.equal(first.features[name], second.features[name])}


@pytest.mark.parametrize(
    ("plan", "branch"),
    [
        (CopyPlan(noise_snr_db=0.0), "level"),
        (CopyPlan(gain_db=-6.0), "level"),
        (CopyPlan(typos=0.5), "intent"),
        (CopyPlan(word_drops=0.9), "intent"),
        (CopyPlan(lost={"camera": 0.5}), "motion"),
    ],
)
def test_a_copy_differs_where_it_is_perturbed_and_only_there(
    sources: list[SessionSource], cache: Path, plan: CopyPlan, branch: str
) -> None:
    original, copy = examples(sources[:2], cache), examples(sources[:2], cache, plan)
    assert changed(original, copy) == {branch}
    empty = ~copy.present.any(dim=1)  # such a window has no label in the copy
    assert torch.equal(original.labels.masked_fill(empty, -1), copy.labels)
    assert copy.names == original.names


def test_copies_are_cached_apart_by_all_that_decides_them(
    sources: list[SessionSource], tmp_path: Path
) -> None:
    plans = [None, *(CopyPlan(noise_snr_db=db, seed=seed) for db, seed in [(0, 0), (10, 0), (0, 1)])]
    made = [examples(sources[:2], tmp_path, plan) for plan in plans]
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2 * len(plans)
    for number, one in enumerate(made):
        assert not any(torch.equal(one.features["level"], two.features["level"]) for two in made[:number])
    again = [examples(sources[:2], tmp_path, plan) for plan in plans]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    assert all(changed(one, two) == set() for one, two in zip(made, again, strict=True))


def test_no_two_sessions_get_the_same_noise(sources: list[SessionSource]) -> None:
    plan = CopyPlan(noise_snr_db=0.0)
    first, second = (plan.perturbations(source.fingerprint()) for source in sources[:2])
    assert first != second
    assert first == plan.perturbations(sources[0].fingerprint())


def test_late_pictures_are_stale_or_absent_and_labels_stay(sources: list[SessionSource], cache: Path) -> None:
    original = examples(sources[:1], cache)
    copy = examples(sources[:1], cache, CopyPlan(late_ms={"camera": 400}))
    row_of = {end_ns: row for row, end_ns in enumerate(original.ends_ns.tolist())}
    at = [row for row, end_ns in enumerate(copy.ends_ns.tolist()) if end_ns in row_of]
    late = copy.rows(torch.tensor(at))
    on_time = original.rows(torch.tensor([row_of[end_ns] for end_ns in late.ends_ns.tolist()]))
    there = late.present.any(dim=1) & on_time.present.any(dim=1)  # others have no label
    assert there.sum() > 20
    assert torch.equal(late.labels[there], on_time.labels[there])
    older = ~late.present[:, MOTION] | (late.ages_s[:, MOTION] > on_time.ages_s[:, MOTION])
    assert older.float().mean() > 0.9
    assert torch.equal(late.ages_s[:, LEVEL], on_time.ages_s[:, LEVEL])


def test_media_files_have_copies_too(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "a").mkdir()
    quiet = np.random.default_rng(1).normal(0, 60, 40_000).astype(np.int16)  # a loop would be stuck
    write_wav(tmp_path / "a" / "hum.wav", quiet)
    original = MediaSource(tmp_path / "a" / "hum.wav", tmp_path, None, "microphone/main", 0.0)
    (copy,) = copied([original], CopyPlan(noise_snr_db=0.0))
    kept, noisy = (build([source], FUSION, cache, classes=("a", "b")) for source in (original, copy))
    assert changed(kept, noisy) == {"level"}
    assert torch.equal(kept.labels, noisy.labels)


def test_copies_are_learned_from_and_never_chosen_by_nor_tested_on(
    sources: list[SessionSource], cache: Path
) -> None:
    data = examples(sources, cache)
    copies = [examples(sources, cache, plan) for plan in (EVERYTHING, CopyPlan(gain_db=6.0))]
    for seed in range(5):
        plan = TrainPlan(profile="demo", training=TrainingConfig(seed=seed))
        without, with_copies = heads.split(data, plan), heads.split(data, plan, copies)
        _learns_from_copies_only(without, with_copies, copies)


def test_folds_hold_no_copy_either(sources: list[SessionSource], cache: Path) -> None:
    data = examples(sources, cache)
    copies = [examples(sources, cache, EVERYTHING)]
    plan = TrainPlan(profile="demo", folds=3, training=TrainingConfig(epochs=1))
    pairs = zip(
        heads.cross_validate(data, plan, FUSION),
        heads.cross_validate(data, plan, FUSION, copies),
        strict=True,
    )
    for (without, _), (with_copies, _) in pairs:
        _learns_from_copies_only(without, with_copies, copies)


def _learns_from_copies_only(without: Split, found: Split, copies: Sequence[Examples]) -> None:
    for name in ("validation", "test"):
        kept, part = getattr(without, name), getattr(found, name)
        assert changed(kept, part) == set()
        assert rows(kept) == rows(part)
        assert len(part) == len(rows(part)), "each window once: the original's"
        assert not set(part.sources.tolist()) & set(found.train.sources.tolist())
    count = len(without.train)
    assert changed(without.train, found.train.rows(torch.arange(count))) == set()
    own = set(without.train.sources.tolist())
    learned = [torch.tensor([number in own for number in copy.sources.tolist()]) for copy in copies]
    expected = [copy.rows(mask) for copy, mask in zip(copies, learned, strict=True)]
    assert len(found.train) == count + sum(map(len, expected))
    assert set(found.train.sources.tolist()) == own
    added = found.train.rows(torch.arange(count, len(found.train))).read()
    for name in added.branches:
        assert torch.equal(added.features[name], torch.cat([part.features[name] for part in expected]))


def test_copies_of_other_sources_are_refused(sources: list[SessionSource], cache: Path) -> None:
    with pytest.raises(ValueError, match="copies of other sources"):
        joined(examples(sources, cache), [examples(sources[:2], cache, EVERYTHING)])
