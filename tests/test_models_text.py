"""Text encoders: transformers models from a folder, seeded random BERT, and intents from example phrases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from perception.errors import ProfileError, WeightsError
from perception.models import build_encoder, weights_hash
from perception.models.encoder import TextInput
from perception.profile import EncoderConfig
from tests import tiny_models

CPU = torch.device("cpu")
INTENTS = {
    "come": ["come here", "come over", "come to me"],
    "stop": ["stop", "halt", "wait"],
    "look": ["look at this", "watch this"],
}


def build(kind: str, weights: str | None = None, **options: object) -> Any:
    config = EncoderConfig(input="command", kind=kind, weights=weights, options=options)
    return build_encoder("words", config, device=CPU, seed=0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer, in the layout of the Hub."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_models.bert(folder)
    return folder


def test_a_local_folder_is_loaded_and_the_last_states_are_averaged(bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = build("transformers-text", str(bert))
    encoding = encoder(TextInput("Come here please"))
    assert encoder.modality == "text"
    assert encoder.dim == 16
    assert encoding.features.dtype == torch.float32

    tokens = AutoTokenizer.from_pretrained(bert)("Come here please", return_tensors="pt")
    model = AutoModel.from_pretrained(bert).eval()
    assert tokens["input_ids"].tolist() == [[2, 5, 6, 9, 3]]
    states = model(**tokens).last_hidden_state[0]
    torch.testing.assert_close(encoding.features, states.mean(dim=0).detach(), atol=1e-6, rtol=1e-5)
    assert weights_hash(encoder.weights()) == weights_hash(model.state_dict())


def test_encoding_is_stateless_and_takes_empty_and_overlong_commands(bert: Path) -> None:
    encoder = build("transformers-text", str(bert), max_tokens=8)
    first = encoder(TextInput("stop"))
    assert encoder(TextInput("")).features.isfinite().all()
    long = encoder(TextInput("come here " * 400)).features
    assert torch.equal(long, encoder(TextInput("come here " * 3)).features)
    assert torch.equal(encoder(TextInput("stop")).features, first.features)


def test_the_encoder_half_of_an_encoder_decoder_and_the_text_tower_of_clip_are_used_alone(
    bert: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, T5Config, T5Model

    t5 = T5Config(vocab_size=10, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    tower = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(
        text_config={**tower, "vocab_size": 10, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    tokenizer = AutoTokenizer.from_pretrained(bert, model_input_names=["input_ids", "attention_mask"])
    for name, model, dim in (("t5", T5Model(t5), 8), ("clip", CLIPModel(clip), 12)):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        encoder = build("transformers-text", str(tmp_path / name))
        assert encoder.dim == dim
        assert encoder(TextInput("come here")).features.shape == (dim,)


def test_a_folder_without_tokenizer_weights_or_model_is_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere: no transformers model there"):
        build("transformers-text", str(tmp_path / "nowhere"))

    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    with pytest.raises(WeightsError, match="cannot be loaded as a transformers model"):
        build("transformers-text", str(tmp_path))

    (tmp_path / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="its tokenizer has no words"):
        build("transformers-text", str(tmp_path))


def test_weights_missing_from_the_file_are_not_left_random(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"weights are missing: encoder\.layer\.1\.output\.dense\.weight"):
        build("transformers-text", str(tmp_path))


def test_random_weights_are_a_real_sized_bert_that_tells_commands_apart() -> None:
    encoder = build("transformers-text", "random")
    assert encoder.dim == 768
    assert sum(tensor.numel() for tensor in encoder.weights().values()) == 109_482_240  # bert-base
    come, stop, again = (encoder(TextInput(text)).features for text in ("come here", "stop", "Come here"))
    assert torch.equal(come, again)  # uncased
    assert not torch.allclose(come, stop, atol=1e-2)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("come here", "come"),
        ("Come over here, please!", "come"),
        ("please stop now", "stop"),
        ("watch this carefully", "look"),
        ("loook at this", "look"),
        ("the weather is nice today", "other"),
        ("", "other"),
        ("¿qué?", "other"),
    ],
)
def test_a_command_gets_the_intent_it_resembles_or_other(text: str, label: str) -> None:
    encoder = build("tfidf", intents=INTENTS)
    encoding = encoder(TextInput(text))
    assert encoding.branch.labels == ("come", "stop", "look", "other")
    assert sum(encoding.branch.scores) == pytest.approx(1)
    assert encoding.branch.labels[encoding.branch.scores.index(max(encoding.branch.scores))] == label
    assert encoding.features.shape == (encoder.dim,)
    assert encoding.features[:-1].tolist() == pytest.approx(encoding.branch.scores)
    assert 0 <= encoding.features[-1] <= 1 + 1e-6


def test_the_confidence_is_the_cosine_to_the_nearest_example() -> None:
    phrases = [phrase for examples in INTENTS.values() for phrase in examples]
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True).fit(phrases)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(phrases)
    text = ["come and look"]
    # Both halves have unit norm, so the cosine of the whole is the mean of the two cosines.
    cosines = (
        words.transform(phrases) @ words.transform(text).T
        + letters.transform(phrases) @ letters.transform(text).T
    ).toarray() / 2
    encoding = build("tfidf", intents=INTENTS)(TextInput(text[0]))
    assert encoding.features[-1].item() == pytest.approx(cosines.max(), abs=1e-6)


def test_fitting_is_deterministic_and_follows_the_examples() -> None:
    hashes = [weights_hash(build("tfidf", intents=INTENTS).weights()) for _ in range(2)]
    more = {**INTENTS, "stop": ["stop", "halt", "wait", "freeze"]}
    assert hashes[0] == hashes[1] != weights_hash(build("tfidf", intents=more).weights())


def test_one_intent_alone_and_examples_of_other_work() -> None:
    alone = build("tfidf", intents={"stop": ["stop", "halt"]})
    assert alone(TextInput("stop")).branch.scores == pytest.approx((1, 0), abs=1e-3)
    assert alone(TextInput("banana")).branch.scores == pytest.approx((0, 1), abs=1e-3)

    encoder = build("tfidf", intents={"stop": ["stop", "halt"], "other": ["the bus stop is over there"]})
    assert encoder(TextInput("stop")).branch.labels == ("stop", "other")
    assert encoder(TextInput("the bus stop")).branch.scores[1] > 0.5
    assert encoder(TextInput("stop")).branch.scores[0] > 0.5


@pytest.mark.parametrize(
    ("intents", "message"),
    [
        ({}, r"options\.intents: .*at least 1"),
        ({"stop": []}, r"options\.intents: intent 'stop' has no example phrases"),
        ({"other": ["a"]}, r"options\.intents: there must be an intent besides 'other'"),
        ({"stop": "halt"}, r"options\.intents\.stop: .*tuple"),
    ],
)
def test_intents_that_cannot_be_learned_are_profile_errors(intents: object, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        build("tfidf", intents=intents)
