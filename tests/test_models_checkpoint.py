"""Checkpoint folders: what is loaded is what was saved, and what is wrong is named."""

import json
from pathlib import Path

import pytest
import torch

from perception.errors import ProfileError, WeightsError
from perception.models import (
    FeatureFusion,
    ModelFusion,
    build_head,
    check_branches,
    config_hash,
    load_head,
    weights_hash,
)
from perception.models.checkpoint import Head
from perception.profile import HeadConfig

CPU = torch.device("cpu")
DIMS = {"voice": 4, "faces": 3}
CLASSES = ("come", "stay", "go")
FEATURES = {"voice": torch.ones(2, 4), "faces": torch.ones(2, 3)}
PRESENT = torch.tensor([[True, True], [False, True]])


def heads() -> list[Head]:
    return [
        FeatureFusion(DIMS, CLASSES, head="gated", hidden=5, missing="predict", use_ages=True),
        FeatureFusion(DIMS, CLASSES, missing="mean", modality_dropout=0.3),
        ModelFusion(DIMS, CLASSES, branch="mlp", combine="head", hidden=7, dropout=0.1),
        ModelFusion(DIMS, CLASSES),
    ]


@pytest.mark.parametrize("head", heads())
def test_a_head_comes_back_as_it_was_saved(tmp_path: Path, head: Head) -> None:
    labels = torch.tensor([0, 2])
    head.fit_statistics(FEATURES, PRESENT, labels)
    head.eval().save_pretrained(tmp_path)
    loaded = load_head(tmp_path)

    assert type(loaded) is type(head)
    assert loaded.config == head.config
    assert not loaded.training
    assert weights_hash(loaded.state_dict()) == weights_hash(head.state_dict())
    ages_s = torch.zeros(2, 2)
    assert torch.equal(loaded(FEATURES, PRESENT, ages_s), head(FEATURES, PRESENT, ages_s))

    as_on_the_hub = type(head).from_pretrained(str(tmp_path))
    assert as_on_the_hub.config == head.config
    assert weights_hash(as_on_the_hub.state_dict()) == weights_hash(head.state_dict())


def test_a_checkpoint_says_what_it_is_in_plain_json(tmp_path: Path) -> None:
    ModelFusion(DIMS, CLASSES).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "model"
    assert config["classes"] == list(CLASSES)
    assert config["dims"] == DIMS
    assert (tmp_path / "model.safetensors").stat().st_size < 4096


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere: no fusion head there; expected a folder"):
        load_head(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: unreadable"):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "bert"}, "kind is 'bert' in config.json, expected one of feature, model"),
        ({"colour": 1}, "not the configuration of a feature head: .*colour"),
        ({"head": "deep"}, "not the configuration of a feature head: 'deep'"),
        ({"dims": {}}, "not the configuration of a feature head: .*at least one branch"),
        ({"classes": ["a", "a"]}, "not the configuration of a feature head: classes repeat"),
        ({"classes": ["a", "b"]}, r"not the weights of this FeatureFusion: log_prior is \(3,\) instead of"),
        ({"missing": "zero"}, r"not the weights of this FeatureFusion: missing\.token is unknown"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    FeatureFusion(DIMS, CLASSES).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(WeightsError, match=message):
        load_head(tmp_path)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"voice": 4}, "it was trained with encoder 'faces', which is missing"),
        ({**DIMS, "intent": 2}, "it was trained without encoder 'intent'"),
        ({"voice": 5, "faces": 3}, "encoder 'voice' gives 5 features, it was trained with 4"),
    ],
)
def test_encoders_other_than_those_of_training_are_named(dims: dict[str, int], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        check_branches(FeatureFusion(DIMS, CLASSES), dims)
    check_branches(FeatureFusion(DIMS, CLASSES), DIMS)


def test_a_profile_gets_a_trained_head_or_a_seeded_random_one(tmp_path: Path) -> None:
    FeatureFusion(DIMS, CLASSES).save_pretrained(tmp_path)
    trained = build_head(HeadConfig(weights=str(tmp_path)), DIMS, device=CPU, seed=0)
    assert weights_hash(trained.state_dict()) == weights_hash(load_head(tmp_path).state_dict())

    config = HeadConfig(weights="random", kind="model", classes=CLASSES)
    hashes = [
        weights_hash(build_head(config, DIMS, device=CPU, seed=seed).state_dict()) for seed in (3, 3, 4)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HeadConfig(weights="pretrained"), r"fusion\.head\.weights: give a checkpoint folder or 'random'"),
        (HeadConfig(weights="random", classes=("a",)), r"fusion\.head\.classes: .* at least two classes"),
    ],
)
def test_a_head_that_cannot_be_is_a_profile_error(config: HeadConfig, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        build_head(config, DIMS, device=CPU, seed=0)


def test_the_configuration_hash_ignores_the_order_of_keys_only() -> None:
    assert config_hash({"a": 1, "b": [1, 2]}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"a": [1, 2]}) != config_hash({"a": [2, 1]})
