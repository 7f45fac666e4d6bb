"""Search in sessions: what is embedded when, the order of results, and the metrics of a ranking.

The models are tiny and random. The tests do not show that they find anything by meaning, only that an item
finds itself.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from msgspec import structs
from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

from perception.cli.main import run
from perception.devices.scripted import messages
from perception.errors import PerceptionError, SessionError, WeightsError
from perception.messages import (
    AudioBlock,
    Box,
    BranchState,
    CameraFrame,
    FusedState,
    Label,
    Message,
    TextCommand,
)
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig, parse
from perception.retrieval import evaluation
from perception.retrieval import search as engine
from perception.retrieval.ranking import best, mean, ranking_metrics
from perception.retrieval.search import LEXICAL, Hit, Query, SearchIndex, open_indexes, search
from perception.retrieval.sheet import picture_of, sound_of
from perception.retrieval.streams import Step
from perception.session import SessionWriter, read, replay
from perception.session.convert.media_tracks import image
from perception.session.labels import Span
from tests import retrieval
from tests.streams import START_NS

CPU = "cpu"
SECONDS = 12
STEP = Step(every_s=0.5, sound_s=2.0)


def record(path: Path, seed: int) -> Path:
    """The scripted room: frames, sound, commands and labels."""
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=10)
    with SessionWriter(path) as writer:
        for message in messages(
            ScriptConfig(seed=seed), camera, MicrophoneConfig(source="scripted"), SECONDS, origin_ns=START_NS
        ):
            writer.write(message)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def sessions(folder: Path) -> list[Path]:
    (folder / "sessions").mkdir()
    return [record(folder / "sessions" / f"play-{seed}.mcap", seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, str]:
    return {
        "frames": str(retrieval.clip(folder / "clip")),
        "sounds": str(retrieval.clap(folder / "clap")),
        "commands": str(retrieval.sentences(folder / "sentences")),
    }


def opened(sessions: list[Path], kind: str, model: str) -> SearchIndex:
    return open_indexes(sessions, [kind], {kind: model}, STEP, device=CPU, show=print)[0]


def frames_of(path: Path) -> list[Message[CameraFrame]]:
    return [m for m in read(path, ["camera/*"]) if isinstance(m.header, CameraFrame)]  # type: ignore[misc]


def texts_of(path: Path) -> list[TextCommand]:
    return [m.header for m in read(path, ["text/*"]) if isinstance(m.header, TextCommand)]


def command(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_a_frame_of_a_session_finds_itself(
    sessions: list[Path], models: dict[str, str], folder: Path
) -> None:
    wanted = frames_of(sessions[1])[50]
    picture = image(wanted)
    assert picture is not None
    cv2.imwrite(str(folder / "query.png"), picture)
    found = search(
        opened(sessions, "frames", models["frames"]),
        engine.picture_query(folder / "query.png"),
        top=5,
        apart_s=2.0,
    )
    assert (found[0].path, found[0].topic) == (sessions[1], "camera/front")
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert found[0].stamp_ns == wanted.header.stamp_ns
    shown = picture_of(found[0])
    assert shown is not None
    assert np.array_equal(shown, picture)


def test_a_sound_of_a_session_finds_itself(
    sessions: list[Path], models: dict[str, str], folder: Path
) -> None:
    blocks = [m for m in read(sessions[0], ["microphone/*"]) if isinstance(m.header, AudioBlock)]
    samples = np.concatenate([np.frombuffer(block.payload, "<i2") for block in blocks])
    own = opened(sessions, "sounds", models["sounds"])
    number = 5
    middle_ns = int(own.stamps_ns[number])
    start = round((middle_ns - blocks[0].header.stamp_ns) * 16_000 / 1e9) - 16_000
    soundfile.write(folder / "query.wav", samples[start : start + 32_000], 16_000)
    found = search(own, engine.sound_query(folder / "query.wav"), top=3, apart_s=1.0)
    assert (found[0].path, found[0].stamp_ns) == (sessions[0], middle_ns)
    assert found[0].score > 0.999
    shown = sound_of(found[0], 2.0)
    assert shown is not None
    np.testing.assert_allclose(shown, samples[start : start + 32_000] / 32_768, atol=1e-6)


def test_commands_and_labels_are_found_by_their_words(sessions: list[Path]) -> None:
    own = opened(sessions, "commands", LEXICAL)
    texts = texts_of(sessions[0])
    found = search(own, Query(texts[0].text), top=3, apart_s=0)
    assert found[0].text == texts[0].text
    assert found[0].score == pytest.approx(1.0, abs=1e-5)
    assert found[0].stamp_ns in {line.stamp_ns for line in texts if line.text == found[0].text} or (
        found[0].path == sessions[1]
    )
    labels = {m.header.name for m in read(sessions[0], ["label/*"]) if isinstance(m.header, Label)}
    name = max(labels, key=len).replace("_", " ")
    assert {hit.topic for hit in search(own, Query(name), top=1, apart_s=0)} == {"label/truth"}


def test_a_sentence_model_compares_commands_too(sessions: list[Path], models: dict[str, str]) -> None:
    own = opened(sessions, "commands", models["commands"])
    assert search(own, Query(texts_of(sessions[0])[0].text), top=1, apart_s=0)[0].score == pytest.approx(
        1.0, abs=1e-5
    )


def test_what_is_embedded_once_is_not_again_unless_weights_or_step_change(
    sessions: list[Path], models: dict[str, str], folder: Path, tmp_path: Path
) -> None:
    shown: list[str] = []

    def open_(model: str, every_s: float) -> None:
        step, chosen = Step(every_s=every_s), {"frames": model}
        open_indexes(sessions, ["frames"], chosen, step, device=CPU, folder=tmp_path, show=shown.append)

    other = str(retrieval.clip(folder / "other-clip", seed=9))
    open_(models["frames"], 1.0)
    files = set(tmp_path.iterdir())
    assert (len(shown), len(files)) == (1, 2)
    open_(models["frames"], 1.0)
    assert (len(shown), set(tmp_path.iterdir())) == (1, files)
    open_(other, 1.0)
    open_(models["frames"], 2.0)
    open_(other, 1.0)
    assert (len(shown), len(list(tmp_path.iterdir()))) == (3, 6)
    next(iter(files)).write_bytes(b"cut off")
    open_(models["frames"], 1.0)
    assert len(shown) == 4
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors"}


def test_a_session_that_grew_is_embedded_again(models: dict[str, str], tmp_path: Path) -> None:
    path = record(tmp_path / "a.mcap", 1)
    first = opened([path], "frames", models["frames"])
    path.unlink()
    record(tmp_path / "a.mcap", 3)
    again = opened([path], "frames", models["frames"])
    assert len(first) == len(again)
    assert len(list((tmp_path / "a.index").iterdir())) == 2


def test_every_half_second_has_its_frame(sessions: list[Path], models: dict[str, str]) -> None:
    own = opened(sessions[:1], "frames", models["frames"])
    assert SECONDS * 2 - 1 <= len(own) <= SECONDS * 2 + 1
    assert (np.diff(own.stamps_ns) > 0).all()


def test_a_missing_model_is_one_clear_error(sessions: list[Path]) -> None:
    with pytest.raises(WeightsError, match="neither a folder here nor a Hub name"):
        opened(sessions, "frames", "/no/such/clip")


def test_default_models_that_are_not_here_are_left_out(sessions: list[Path]) -> None:
    nowhere = engine.DEFAULT_MODELS | dict.fromkeys(("frames", "sounds"), "/no/such/model")
    shown: list[str] = []

    def open_(*kinds: str) -> list[SearchIndex]:
        return open_indexes(sessions, kinds, {}, STEP, device=CPU, defaults=nowhere, show=shown.append)

    found = open_("frames", "sounds", "commands", "states")
    assert [(one.kind, one.model) for one in found] == [("commands", LEXICAL), ("states", LEXICAL)]
    assert shown == [
        f"{kind}: left out, /no/such/model is not on this machine; fetch it by --model {kind}=/no/such/model"
        for kind in ("frames", "sounds")
    ]
    with pytest.raises(WeightsError):  # the only kind is required
        open_("frames")


def test_a_kind_that_no_session_has_needs_no_model(tmp_path: Path) -> None:
    with SessionWriter(tmp_path / "s.mcap") as writer:
        for message in read(record(tmp_path / "whole.mcap", 1), ["text/*"]):
            writer.write(message)
    own = opened([tmp_path / "s.mcap"], "frames", "/no/such/clip")
    assert (len(own), search(own, Query("cup"), top=3, apart_s=1)) == (0, [])


def test_of_neighbours_in_time_the_best_is_kept() -> None:
    scores = np.array([0.1, 0.9, 0.8, 0.7, 0.95, 0.9], np.float32)
    stamps_ns = np.array([0, 10, 11, 20, 0, 10])
    groups = np.array([0, 0, 0, 0, 1, 1])
    assert best(scores, stamps_ns, groups, 10, 0) == [4, 1, 5, 2, 3, 0]
    assert best(scores, stamps_ns, groups, 10, 5) == [4, 1, 5, 3, 0]
    assert best(scores, stamps_ns, groups, 2, 11) == [4, 1]
    assert best(scores[:0], stamps_ns[:0], groups[:0], 3, 1) == []


def test_metrics_equal_scikit_learns() -> None:
    generator = np.random.default_rng(4)
    scores = generator.standard_normal((20, 60)).astype(np.float32)
    truth = generator.integers(0, 60, 20)
    relevant = np.arange(60)[None] == truth[:, None]
    scored = {
        str(n): ranking_metrics(scores[n], relevant[n], np.argsort(-scores[n])[:10].tolist())
        for n in range(20)
    }
    figures = mean(scored)
    assert figures["mAP"] == pytest.approx(label_ranking_average_precision_score(relevant, scores))
    for k in (1, 5, 10):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=np.arange(60))
        assert figures[f"recall@{k}"] == pytest.approx(expected)
    assert figures["chance"] == pytest.approx(1 / 60)
    assert mean({}) == {}


def test_what_lies_in_a_span_of_a_class_is_relevant(sessions: list[Path]) -> None:
    own = opened(sessions, "commands", LEXICAL).without("label/")
    texts = texts_of(sessions[0])
    wanted = texts[0]
    name = wanted.text.replace(" ", "_")
    spans = {
        sessions[0]: [
            Span(wanted.stamp_ns - 1, wanted.stamp_ns + 1, name),
            Span(wanted.stamp_ns + 1, wanted.stamp_ns + 2, "nothing_there"),
        ]
    }
    scored = evaluation.evaluate(own, spans, apart_s=0.0)
    assert list(scored) == [name]
    assert (scored[name].relevant, scored[name].count) == (1, len(own))
    same = sum(line.text == wanted.text for path in sessions for line in texts_of(path))
    assert scored[name].average_precision == pytest.approx(1 / same)


def test_the_command_prints_times_and_draws_a_sheet(
    sessions: list[Path], models: dict[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [argument for kind, model in models.items() for argument in ("--model", f"{kind}={model}")]
    sheet = folder / "sheet.png"
    assert command("search", sessions[0].parent, "come here", *chosen, "--top", 6, "--sheet", sheet) == 0
    out = capsys.readouterr().out
    assert "frames (" in out
    assert "sounds (" in out
    assert "camera/front" in out
    drawn = cv2.imread(str(sheet))
    assert drawn is not None
    assert drawn.std() > 10
    assert command("search", sessions[0], "stop", "--in", "frames", *chosen, "--json", "--top", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"frames"}
    assert len(found["frames"]["hits"]) == 2
    assert {"path", "topic", "at_s", "stamp_ns", "score"} <= set(found["frames"]["hits"][0])
    assert command("search", *sessions, "--evaluate", "truth", *chosen, "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    assert set(scored["frames"]["mean"]) == {"mAP", "chance", "recall@1", "recall@5", "recall@10"}
    assert (
        command("search", *sessions, "--evaluate", "truth", "--in", "commands", "--model", "commands=lexical")
        == 0
    )
    assert "mean of" in capsys.readouterr().out


PROFILE = """
[fusion]
hop_ms = 250
device = "cpu"
threads = 1
[fusion.inputs]
camera = { topic = "camera/front" }
microphone = { topic = "microphone/main" }
[fusion.encoders]
markers = { input = "camera", kind = "aruco" }
voice = { input = "microphone", kind = "silero" }
[fusion.head]
classes = ["busy_hands", "quiet_room"]
"""


@pytest.fixture(scope="module")
def fused(folder: Path, sessions: list[Path]) -> tuple[Path, list[FusedState]]:
    """A session with the states of a fusion, and a detected marker in some of them."""
    profile = parse(tomllib.loads(PROFILE), where="test")
    states = list(replay(sessions[0], profile))
    detected = BranchState(
        labels=("18",), scores=(1.0,), boxes=(Box(x=5, y=5, width=9, height=9, label="18"),)
    )
    for number in range(20, 24):
        camera = structs.replace(states[number].modalities["camera"], branches={"markers": detected})
        both = states[number].modalities | {"camera": camera}
        states[number] = structs.replace(states[number], modalities=both)
    recorded = [Message("state/fused", state, received_ns=state.stamp_ns) for state in states]
    with SessionWriter(folder / "fused.mcap") as writer:
        for message in sorted([*read(sessions[0]), *recorded], key=lambda one: one.received_ns):
            writer.write(message)
    return folder / "fused.mcap", states


def test_what_states_name_is_found_by_its_name_where_it_began(fused: tuple[Path, list[FusedState]]) -> None:
    path, states = fused

    def first(name: str, where: str) -> Hit:
        (own,) = open_indexes([path], ["states"], {}, STEP, show=print)
        hits = search(own, Query(name), top=50, apart_s=0, floor=0.3)
        return next(hit for hit in sorted(hits, key=lambda hit: hit.stamp_ns) if hit.note.startswith(where))

    def voice(state: FusedState) -> float:
        branches = state.modalities["microphone"].branches
        return branches["voice"].scores[0] if branches else 0.0

    assert first("speech", "microphone/voice").stamp_ns == next(s.stamp_ns for s in states if voice(s) >= 0.3)
    for words in ("marker 18", "18", "markers"):
        marker = first(words, "camera/markers")
        assert (marker.stamp_ns, marker.note) == (states[20].stamp_ns, "camera/markers 1.00, 0.8 s")
    name = states[0].fused.label.replace("_", " ")
    hit = first(name, "fused")
    assert (hit.topic, hit.text, hit.stamp_ns) == ("state/fused", name, states[0].stamp_ns)
    (own,) = open_indexes([path], ["states"], {}, STEP, show=print)
    assert len(own) < len(states) / 2, "a name that states repeat is one item"


def test_under_the_floor_nothing_is_shown(
    fused: tuple[Path, list[FusedState]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("search", fused[0], "--in", "states", "--apart", 0)
    for unrelated in ("unicorn", "walking the dog", "zebra", "0000", "?"):
        assert command(*arguments[:2], unrelated, *arguments[2:]) == 0
        assert re.fullmatch(r"states \(lexical\): 0 of \d+, score 0\.3 or more\n", capsys.readouterr().out)
    assert command(*arguments[:2], "speech", *arguments[2:], "--floor", 1) == 0
    strict = capsys.readouterr().out
    assert command(*arguments[:2], "speech", *arguments[2:], "--floor", 0.01) == 0
    assert len(capsys.readouterr().out.splitlines()) >= len(strict.splitlines()) > 0


def test_a_search_by_words_loads_no_model_and_no_torch(fused: tuple[Path, list[FusedState]]) -> None:
    code = (
        "import sys\n"
        "from perception.cli.main import run\n"
        "session = sys.argv[1]\n"
        "ways = [], ['--in', 'commands'], ['--json']\n"
        "codes = [run(['search', session, 'speech', *more]) for more in ways]\n"
        "print(codes, {'torch', 'transformers', 'cv2', 'av'} & set(sys.modules))\n"
    )
    nowhere = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(fused[0].parent / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(fused[0])], env=nowhere, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0] set()"], done.stderr
    assert "  state/fused  speech  (microphone/voice " in done.stdout
    assert done.stderr.count("left out") == 4


def test_a_file_in_the_place_of_the_query_is_an_error(
    sessions: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("search", *sessions) == 2
    assert "is a session or file; the QUERY comes last" in capsys.readouterr().err
    assert command("search", sessions[0], "forgotten.mcap") == 2


def test_nothing_found_is_an_empty_list_and_an_empty_sheet(
    sessions: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--in", "commands", "--model", "commands=lexical", "--sheet", tmp_path / "none.svg")
    assert command("search", *sessions, "0000", *arguments) == 0
    assert "commands (lexical): 0 of" in capsys.readouterr().out
    assert (tmp_path / "none.svg").read_text().count("<svg") == 1
    assert command("search", *sessions, "stop", *arguments[:4], "--sheet", tmp_path / "a.xyz") == 1
    assert "a.xyz: the contact sheet cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["a.mcap"], 2, "give sessions and one of"),
        (["a.mcap", "cup", "--model", "faces=x"], 2, "faces=x: expected KIND=MODEL"),
        (["a.mcap", "cup"], 7, "cannot open a.mcap"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("search", *arguments) == code
    assert line in capsys.readouterr().err


def test_labels_and_sessions_must_be_there(sessions: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no labels of track 'mood'"):
        evaluation.labelled(sessions, "mood")
    with pytest.raises(SessionError, match="no sessions"):
        engine.find_sessions([tmp_path])
    with pytest.raises(PerceptionError, match="none of JPEG, PNG"):
        engine.picture_query(sessions[0])


def test_times_are_hours_minutes_and_seconds() -> None:
    assert [engine.clock(s) for s in (-0.001, 59.996, 3725.5)] == ["0:00:00.00", "0:01:00.00", "1:02:05.50"]
    assert [engine.clock(s) for s in (-5.332, -61.0)] == ["-0:00:05.33", "-0:01:01.00"]
