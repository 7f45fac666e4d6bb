"""Fine-tuned transformers encoders: trained on what they run on, stored with their head, loaded with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    T5Config,
    T5Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from perception import profile as profiles
from perception.cli.main import run
from perception.devices.scripted import messages
from perception.errors import ProfileError
from perception.fusion.build import build_engine, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.presence import Presence
from perception.fusion.swap import HeadSwap
from perception.messages import FusedState, HeadStatus, Message, SwapRequest, TextCommand, checked
from perception.models.checkpoint import ENCODERS, head_hash, load_head, weights_hash, with_own_encoders
from perception.models.encoder import TextInput
from perception.models.precision import noise
from perception.models.registry import build_encoder
from perception.models.text import as_bytes, as_texts
from perception.profile import CameraConfig, EncoderConfig, FusionConfig, MicrophoneConfig, ScriptConfig
from perception.session import SessionWriter
from perception.training import encoding
from perception.training.finetune import Augmentation, save, trainable
from perception.training.sources import SessionSource
from tests import tiny_models
from tests.test_models_transformers_audio import clap, wav2vec2

CPU = torch.device("cpu")
KINDS = {"say": "text", "hear": "audio", "see": "vision"}
MODELS = {"say": tiny_models.bert, "hear": tiny_models.ast, "see": tiny_models.vit}
PROFILE = """
[fusion]
hop_ms = 250
device = "cpu"
[fusion.inputs]
camera = {{ topic = "camera/front" }}
microphone = {{ topic = "microphone/main" }}
text = {{ topic = "text/say" }}
[fusion.encoders]
say = {{ input = "text", kind = "transformers-text", weights = "{0}/say" }}
hear = {{ input = "microphone", kind = "transformers-audio", weights = "{0}/hear" }}
see = {{ input = "camera", kind = "transformers-vision", weights = "{0}/see" }}
[fusion.head]
"""
PLAN = """
profile = "{}"
seeds = 1
test = 0
train_encoders = ["say", "hear", "see"]
train_layers = 2
[head]
head = "linear"
[augment]
typos = 0.2
word_drops = 0.1
colour = 0.1
mask_time = 0.1
[training]
epochs = 2
learning_rate = 0.01
"""


def recorded(path: Path, seed: int) -> SessionSource:
    """A scripted session with the same command three times, or with none if the seed is 3."""
    camera = CameraConfig(source="scripted", width=64, height=48, rate_hz=8)
    microphone = MicrophoneConfig(source="scripted")
    with SessionWriter(path) as writer:
        script = messages(ScriptConfig(seed=seed), camera, microphone, 8.0, origin_ns=10**18)
        for number, message in enumerate(script):
            writer.write(message)
            if number % 90 == 40 and seed != 3:
                command = TextCommand(
                    stamp_ns=message.header.stamp_ns, source="say#1", text="come here please"
                )
                writer.write(Message("text/say", command, received_ns=message.received_ns))
    return SessionSource(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base models, sessions, and a head that was trained with the models as `head`."""
    base = tmp_path_factory.mktemp("tuned")
    for name, write in MODELS.items():
        write(base / name)
    (base / "sessions").mkdir()
    for seed in (1, 2, 3):
        recorded(base / "sessions" / f"{seed}.mcap", seed)
    start = PROFILE.format(base) + 'weights = "random"\nclasses = ["a", "b"]\n'
    (base / "profile.toml").write_text(start)
    (base / "live.toml").write_text(PROFILE.format(base) + f'weights = "{base / "head"}"\n')
    (base / "plan.toml").write_text(PLAN.format(base / "profile.toml"))
    options = ("--sessions", base / "sessions", "--cache", base / "cache", "--workers", 1)
    arguments = ("train", base / "plan.toml", *options, "--out", base / "head")
    assert run([str(argument) for argument in arguments]) == 0
    return base


def fusion_of(folder: Path, name: str) -> FusionConfig:
    return profiles.load(str(folder / f"{name}.toml")).required_fusion()


def test_a_running_fusion_loads_the_tuned_encoders_with_their_head(folder: Path) -> None:
    before, after = (build_engine(fusion_of(folder, name), clock=lambda: 0) for name in ("profile", "live"))
    for name in KINDS:
        old, new = before.encoders[name].weights(), after.encoders[name].weights()
        changed = {key.rpartition(".")[0] for key, value in new.items() if not torch.equal(value, old[key])}
        assert len(changed) == 2, "the last two layers that hold weights"
    assert before.encoders_hash != after.encoders_hash


def test_live_features_of_tuned_encoders_are_those_of_the_data_set_and_of_training(folder: Path) -> None:
    live = fusion_of(folder, "live")
    tuned = with_own_encoders(live)
    source = SessionSource(folder / "sessions" / "1.mcap")
    use_threads(live.threads)
    core, engine = FusionCore(live), build_engine(live, clock=lambda: 0)
    stored, raw = encoding.encode(source, tuned), encoding.encode(source, tuned, tuple(KINDS))
    row_of = {end_ns: row for row, end_ns in enumerate(stored["ends_ns"].tolist())}
    networks = {name: one.network.eval() for name, one in trainable(tuned, KINDS, 0).items()}
    with_text = 0
    for window in (window for message in source.messages() for window in core.push(message)):
        features, *_ = engine.tensors(window, engine.encode(window))
        for name, x in features.items():
            row = row_of[window.end_ns]
            assert torch.equal(x[0], stored[f"feature.{name}"][row])
            given = raw[f"feature.{name}"][row : row + 1]
            with torch.no_grad():
                trained = networks[name](given.float() if given.is_floating_point() else given)
            torch.testing.assert_close(trained, x, atol=2e-3, rtol=2e-3)
        with_text += "say" in features
    assert with_text > 10


def test_evaluate_judges_a_head_with_the_encoders_it_was_trained_with(folder: Path) -> None:
    options = ("--profile", folder / "profile.toml", "--cache", folder / "cache", "--workers", 1)
    arguments = ("evaluate", folder / "head", folder / "sessions", *options, "--out", folder / "judged")
    known = set((folder / "cache").iterdir())
    assert run([str(argument) for argument in arguments]) == 0
    assert len(set((folder / "cache").iterdir()) - known) == 3, "features of the tuned encoders"


def test_a_text_is_misspelt_before_it_becomes_tokens() -> None:
    rows = torch.stack([as_bytes(text, 40) for text in ("come here please", "", "日本語 stop")])
    assert as_texts(rows) == ["come here please", "", "日本語 stop"]
    assert as_texts(as_bytes("日本", 4)[None]) == ["日"]
    generator = torch.Generator().manual_seed(0)
    assert Augmentation().texts(rows, generator) is rows
    first, second = (Augmentation(typos=0.5).texts(rows, generator) for _ in range(2))
    assert as_texts(first)[0] not in (as_texts(rows)[0], as_texts(second)[0])
    assert as_texts(Augmentation(word_drops=1.0).texts(rows, generator)) == ["come", "", "日本語"]
    again = Augmentation(typos=0.5).texts(rows, torch.Generator().manual_seed(0))
    assert torch.equal(first, again)


def swap_to(folder: Path, live: FusionConfig, candidate: Path) -> tuple[list[HeadStatus], FusedState]:
    """Ask for another head halfway through a session; return the answers and the last state."""
    engine = build_engine(live, clock=lambda: 0)
    swap = HeadSwap(engine)
    request = {
        "stamp_ns": 0,
        "folder": str(candidate),
        "head_hash": head_hash(load_head(candidate)),
        "ticks": 2,
    }
    core = FusionCore(live)
    source = SessionSource(folder / "sessions" / "1.mcap")
    windows = [window for message in source.messages() for window in core.push(message)]
    presence = Presence()
    for number, window in enumerate(windows):
        if number == 12:
            swap.request(checked(SwapRequest, {"action": "shadow", **request}))
            while swap._loading.locked():
                pass
        if number == 16:
            swap.request(checked(SwapRequest, {"action": "go", **request}))
        swap.apply_requests(window.tick)
        state = engine.run(presence.mark_held(window))
        swap.compare(state.fused)
    return list(swap.statuses), state


def test_a_swap_keeps_the_encoders_and_what_they_made_of_a_text_that_still_holds(
    folder: Path, tmp_path: Path
) -> None:
    other = load_head(folder / "head")
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path)
    (tmp_path / ENCODERS).symlink_to(folder / "head" / ENCODERS)
    live = fusion_of(folder, "live")
    answers, state = swap_to(folder, live, tmp_path)
    fresh = live.model_copy(update={"head": live.head.model_copy(update={"weights": str(tmp_path)})})
    same, expected = swap_to(folder, fresh, tmp_path)
    assert (answers[-1].phase, same[-1].phase) == ("live", "live")
    assert state.modalities["text"].presence == "held"
    assert state.fused == expected.fused


@pytest.mark.parametrize("own", [True, False])
def test_a_head_that_was_trained_with_other_encoders_is_not_swapped_in(
    folder: Path, tmp_path: Path, own: bool
) -> None:
    load_head(folder / "head").save_pretrained(tmp_path)
    if own:
        for name in KINDS:  # as they were before training
            (tmp_path / ENCODERS).mkdir(exist_ok=True)
            (tmp_path / ENCODERS / name).symlink_to(folder / name)
    answers, _ = swap_to(folder, fusion_of(folder, "live"), tmp_path)
    assert {answer.phase for answer in answers} == {"refused"}
    assert "it was trained with another encoder '" in answers[0].reason
    assert f'restart the fusion with fusion.head.weights = "{tmp_path}"' in answers[0].reason


def t5(folder: Path) -> None:
    T5Model(T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )


def clip(folder: Path) -> None:
    tower = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": 10, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    pictures = {**tower, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config={**tower, **words}, vision_config=pictures, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        folder
    )


def tokenized(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def write_both(folder: Path) -> None:
        write(folder)
        tokenizer = tiny_models.tokenizer(model_input_names=["input_ids", "attention_mask"])
        tokenizer.save_pretrained(folder)

    return write_both


def whisper(folder: Path) -> None:
    sizes = {"d_model": 16, "num_mel_bins": 32, "max_source_positions": 50, "encoder_layers": 1}
    rest = {"decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60}
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    config = WhisperConfig(**sizes, **rest, **tokens, encoder_ffn_dim=16, decoder_ffn_dim=16)
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=32, chunk_length=1).save_pretrained(folder)


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("text", tokenized(t5)),
        ("text", tokenized(clip)),
        ("vision", clip),
        ("audio", clap),
        ("audio", wav2vec2),
        ("audio", whisper),
    ],
)
def test_whatever_transformers_has_is_trained_stored_and_found_again(
    tmp_path: Path, kind: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "base")
    item = EncoderConfig(input="x", kind=f"transformers-{kind}", weights=str(tmp_path / "base"))
    fusion = profiles.load("demo").required_fusion().model_copy(update={"encoders": {"it": item}})
    tuned = trainable(fusion, ["it"], 0)["it"]
    data = noise()[tuned.modality]
    prepared = tuned.prepare(data)[None]
    prepared = prepared.float() if prepared.is_floating_point() else prepared
    before = tuned(data).features
    optimiser = torch.optim.SGD(tuned.network.parameters(), lr=0.01)
    tuned.network(prepared).square().sum().backward()
    optimiser.step()
    save(tmp_path / "head", fusion, {"it": tuned.network})
    stored = item.model_copy(update={"weights": str(tmp_path / "head" / ENCODERS / "it")})
    found = build_encoder("it", stored, device=CPU, seed=1)
    assert weights_hash(found.weights()) == weights_hash(tuned.weights())
    assert torch.equal(found(data).features, tuned(data).features)
    assert not torch.equal(before, tuned(data).features)
    torch.testing.assert_close(tuned.network(prepared)[0], found(data).features, atol=2e-3, rtol=2e-3)


def test_encoders_without_anything_to_learn_are_refused_by_name() -> None:
    item = EncoderConfig(input="x", kind="tfidf", options={"intents": {"stop": ["stop now"]}})
    fusion = profiles.load("demo").required_fusion().model_copy(update={"encoders": {"intent": item}})
    with pytest.raises(ProfileError, match="'intent' is of kind 'tfidf', which cannot be trained"):
        trainable(fusion, ["intent"], 0)


def test_repeated_texts_are_encoded_once_and_alike(tmp_path: Path) -> None:
    tiny_models.bert(tmp_path)
    item = EncoderConfig(input="x", kind="transformers-text", weights=str(tmp_path))
    encoder: Any = build_encoder("say", item, device=CPU, seed=0)
    texts = ["come here", "stop", "come here", "please stop"]
    rows = torch.stack([encoder.prepare(TextInput(text)) for text in texts])
    sizes: list[int] = []
    encoder.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    features = encoder.network(rows)
    assert sizes == [3]
    assert torch.equal(features[0], features[2])
    for text, x in zip(texts, features, strict=True):
        torch.testing.assert_close(x, encoder(TextInput(text)).features, atol=1e-5, rtol=1e-5)
