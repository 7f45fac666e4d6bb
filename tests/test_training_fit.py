"""The training loop on small problems whose answer is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from perception import profile as profiles
from perception.errors import PerceptionError
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.networks import ConvEncoder
from perception.profile import EncoderConfig
from perception.training.evaluate import probabilities
from perception.training.examples import Examples
from perception.training.finetune import trainable
from perception.training.fit import fit, thinning
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import (
    Imbalance,
)
from perception.training.model import FusionModel, predict
from perception.training.scores import metrics
from tests.clusters import CLASSES, INPUTS, QUICK, clusters, trained


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "plateau"])
def test_every_optimiser_and_schedule_learns(optimiser: str, schedule: str) -> None:
    config = QUICK.model_validate(
        QUICK.model_dump() | {"optimiser": optimiser, "schedule": schedule, "epochs": 15}
    )
    test = clusters(seed=2)
    assert metrics(test.labels.numpy(), probabilities(trained(config), test)).accuracy > 0.9


def test_a_schedule_ends_with_the_last_step_of_epochs_that_oversampling_made_longer() -> None:
    data = clusters(90)
    config = QUICK.model_copy(
        update={
            "epochs": 3,
            "batch": 16,
            "schedule": "one-cycle",
            "imbalance": Imbalance(remedy="oversample"),
        }
    )
    rows = torch.cat([torch.nonzero(data.labels == 0).squeeze(1), torch.tensor([1, 2])])
    history = fit(FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES)), data.rows(rows), data, config)
    assert len(history.training_loss) == 3


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (trained(QUICK.model_copy(update={"epochs": 3})).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = trained(QUICK.model_copy(update={"epochs": 6}), dropout=0.1)
    state = tmp_path / "fit.state"
    for epochs in (3, 6):
        torch.manual_seed(0)
        model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES, dropout=0.1))
        config = QUICK.model_copy(update={"epochs": epochs})
        fit(model, clusters(), clusters(seed=1), config, state_file=state)
    expected, found = whole.state_dict(), model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("gru", [0, 4])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_what_full_precision_does(precision: str, gru: int) -> None:
    config = QUICK.model_validate(QUICK.model_dump() | {"precision": precision, "epochs": 12})
    test = clusters(seed=2)
    options = {"gru": gru, "ticks": 3} if gru else {}
    half, full = (trained(one, **options) for one in (config, QUICK.model_copy(update={"epochs": 12})))
    assert all(weight.dtype == torch.float32 for weight in half.parameters())
    assert metrics(test.labels.numpy(), probabilities(half, test)).accuracy > 0.9
    assert np.abs(probabilities(half, test) - probabilities(full, test)).max() < 0.05


def test_gradients_too_small_for_float16_are_learned_from_and_too_large_ones_left_out(tmp_path: Path) -> None:
    state = tmp_path / "fit.state"
    data = clusters()
    config = TrainingConfig(
        epochs=2, batch=8, precision="float16", optimiser="sgd", schedule="cosine", learning_rate=1e-2
    )
    batches = []

    def blinded(batch: Examples, generator: torch.Generator) -> Examples:
        """In the third batch, the inputs of an encoder make gradients overflow."""
        batches.append(batch)
        factor = 1e30 if len(batches) == 3 else 1.0
        return dataclasses.replace(batch, features={n: x * factor for n, x in batch.features.items()})

    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES), {"eye": torch.nn.Linear(2, 2)})
    fit(model, data, clusters(seed=1), config, augment=blinded, state_file=state)
    stored = torch.load(state, weights_only=True)
    assert stored["scaler"]["scale"] < 2**16
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit(model, data, clusters(seed=1), config.model_copy(update={"epochs": 3}), state_file=state)
    assert not all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "fit.state"
    quick = QUICK.model_copy(update={"epochs": 2})

    def go_on(data: Examples, config: TrainingConfig, hidden: int = 8) -> None:
        model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES, head="mlp", hidden=hidden))
        fit(model, data, clusters(seed=1), config, state_file=state)

    go_on(clusters(), quick)
    for other in (
        (clusters(), quick.model_copy(update={"learning_rate": 0.1})),
        (clusters(120), quick),
        (clusters(), quick, 16),
    ):
        with pytest.raises(PerceptionError, match=r"fit\.state: of a training with another configuration"):
            go_on(*other)
    go_on(clusters(), quick.model_copy(update={"epochs": 3}))


@pytest.mark.parametrize("select", ["nll", "balanced-nll", "last"])
def test_a_fit_that_never_had_a_finite_loss_is_an_error(select: str) -> None:
    config = QUICK.model_copy(update={"select": select})
    data = clusters()
    broken = dataclasses.replace(data, features=data.features | {"eye": torch.full((240, 2), torch.nan)})
    which = "the last epoch had no" if select == "last" else "no epoch had a"
    with pytest.raises(
        PerceptionError, match=f"^{which} finite loss on validation and finite weights; lower"
    ):
        fit(FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES)), broken, broken, config)
    diverging = config.model_copy(
        update={"optimiser": "sgd", "learning_rate": 1e30, "clip": 1e30, "epochs": 3}
    )
    with pytest.raises(PerceptionError, match=f"^{which} finite loss"):
        fit(FusionModel(ModelFusion({"eye": 2, "ear": 2}, CLASSES)), data, data, diverging)


@pytest.mark.parametrize("select", ["nll", "balanced-nll", "last"])
def test_weights_that_validation_does_not_show_are_finite_too(select: str) -> None:
    data = clusters()
    deaf = dataclasses.replace(data, present=torch.tensor([[False, True]]).expand(240, 2))  # ear, eye
    config = QUICK.model_copy(update={"select": select, "epochs": 2})

    def deafening(batch: Examples, generator: torch.Generator) -> Examples:
        ear = torch.full_like(batch.features["ear"], torch.inf)
        return dataclasses.replace(batch, features=batch.features | {"ear": ear})

    encoders = {"ear": torch.nn.Linear(2, 2)}
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES), encoders)
    with pytest.raises(PerceptionError, match="finite loss on validation and finite weights"):
        fit(model, data, deaf, config, augment=deafening)


def test_a_good_epoch_is_kept_although_later_ones_diverge_unless_the_last_is_asked_for() -> None:
    data, batches = clusters(), 0

    def poisoned(batch: Examples, generator: torch.Generator) -> Examples:
        nonlocal batches
        batches += 1
        if batches <= 2 * 4:
            return batch
        return dataclasses.replace(
            batch, features=batch.features | {"ear": batch.features["ear"] * torch.nan}
        )

    for select in ("nll", "balanced-nll", "last"):
        batches = 0
        config = QUICK.model_copy(update={"select": select, "epochs": 4})
        model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES))
        if select == "last":
            with pytest.raises(PerceptionError, match="the last epoch had no finite loss"):
                fit(model, data, clusters(seed=1), config, augment=poisoned)
            continue
        history = fit(model, data, clusters(seed=1), config, augment=poisoned)
        assert history.best_epoch == 1
        assert np.isnan(history.validation_loss[2:]).all()
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_too_few_labelled_windows_are_an_error() -> None:
    data = clusters()
    unlabelled = dataclasses.replace(data, labels=torch.full_like(data.labels, -1))
    one = data.rows(torch.arange(1))
    for train, validation, problem in (
        (one, data, "1 labelled windows to train on, 2 are needed"),
        (data, unlabelled, "0 labelled windows to choose the best epoch by, 1 are needed"),
    ):
        with pytest.raises(PerceptionError, match=problem):
            fit(FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES)), train, validation, QUICK)


def test_modality_dropout_makes_each_input_enough_alone() -> None:
    test = clusters(seed=2)
    truth = test.labels.numpy()
    model = trained(modality_dropout=0.5)
    for kept in INPUTS:
        assert metrics(truth, probabilities(model, test.only([kept]))).accuracy > 0.8


def test_a_lost_input_is_predicted_from_the_other_inputs_as_least_squares_does() -> None:
    generator = torch.Generator().manual_seed(0)
    ear = torch.randn(2000, 2, generator=generator)
    eye = ear @ torch.tensor([[1.0, 0.5], [0.0, 1.0]]) + torch.randn(2000, 2, generator=generator)
    features = {"ear": ear, "edges": eye + 0.01 * torch.randn(2000, 2, generator=generator), "eye": eye}
    data = Examples.of(features, (ear[:, 0] > 0).long(), ("low", "high"))
    model = FusionModel(FeatureFusion(dict.fromkeys(features, 2), data.classes, missing="predict"))
    config = QUICK.model_copy(update={"epochs": 20, "select": "last", "input_dropout": 0.3})
    fit(model, data, data, config, inputs=torch.tensor([0, 1, 1]))
    head = model.head
    assert isinstance(head, FeatureFusion)
    x, present = head._inputs(data.features, data.present)
    for lost in ([1, 2], [0]):
        there = present.clone()
        there[:, lost] = False
        columns = torch.isin(head.columns, torch.tensor(lost))
        known = torch.where(columns, 0.0, x)
        error = (head.missing(known, there) - x)[:, columns].square().mean()
        matrix = torch.cat([known, torch.ones(2000, 1)], dim=1).double()
        best = matrix @ torch.linalg.lstsq(matrix, x.double(), driver="gelsd").solution - x
        assert error < 1.02 * best[:, columns].square().mean() < 0.9
    # a loaded head has no inputs, but fills the same values
    alone = present.clone()
    alone[:, 1] = False
    before = head(data.features, alone)
    head.set_inputs(torch.arange(3))
    torch.testing.assert_close(head(data.features, alone), before)


def test_encoders_are_trained_with_the_head_and_never_see_what_is_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    pictures = torch.randn(96, 1, 8, 8, generator=generator)
    pictures[labels == 1, :, :4] += 2
    data = Examples.of({"eye": pictures}, labels, ("a", "b"))
    data.present[:8] = False
    data.features["eye"][:8] = torch.nan
    encoder = ConvEncoder(1, (4, 8), 8)
    model = FusionModel(FeatureFusion({"eye": 8}, ("a", "b")), {"eye": encoder})
    fit(model, data, data, QUICK.model_copy(update={"epochs": 8}))
    assert torch.isfinite(predict(model, data)).all()
    kept = data.rows(data.present[:, 0])
    assert metrics(kept.labels.numpy(), probabilities(model, kept)).accuracy > 0.9


def test_layers_before_the_last_stay_as_they_are_and_run(tmp_path: Path) -> None:
    fusion = (
        profiles.load("demo")
        .required_fusion()
        .model_copy(
            update={"encoders": {"eye": EncoderConfig(input="camera", kind="torchvision", weights="random")}}
        )
    )
    encoder = trainable(fusion, ["eye"], 0, layers=3)["eye"]
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    data = Examples.of({"eye": torch.randn(8, 3, 64, 64)}, torch.arange(8) % 2, ("a", "b"))
    model = FusionModel(FeatureFusion({"eye": encoder.dim}, ("a", "b")), {"eye": encoder.network})
    fit(model, data, data, QUICK.model_copy(update={"epochs": 1, "batch": 4}))
    changed = {
        name for name, value in encoder.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.rpartition(".")[0] for name in changed} == {
        "network.model.layer4.1.bn1", "network.model.layer4.1.conv2", "network.model.layer4.1.bn2"
    }  # fmt: skip


def test_a_model_level_pool_is_calibrated_on_validation() -> None:
    torch.manual_seed(0)
    head = ModelFusion({"eye": 2, "ear": 2}, CLASSES)
    fit(FusionModel(head), clusters(), clusters(seed=1), QUICK)
    assert not torch.equal(head.pool.temperature, torch.ones(2))


def test_an_epoch_of_a_head_with_a_memory_leaves_out_what_its_windows_share() -> None:
    assert [thinning(36_000, ticks) for ticks in (1, 2, 3, 20, 128)] == [1, 1, 1, 10, 17]
    assert [thinning(rows, 20) for rows in (500, 4096, 6144, 10**6)] == [1, 2, 3, 10]
    shown: list[torch.Tensor] = []

    def look(batch: Examples, generator: torch.Generator) -> Examples:
        shown.append(batch.ends_ns)
        return batch

    data = clusters(8192)
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES, gru=4, ticks=8))
    fit(model, data, clusters(seed=1), QUICK.model_copy(update={"epochs": 2}), augment=look)
    first, second = torch.cat(shown).view(2, -1)
    assert len(first) == len(first.unique()) == 8192 // 4
    assert set(first.tolist()) != set(second.tolist())
