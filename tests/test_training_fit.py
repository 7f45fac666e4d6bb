"""The training loop, imbalance and augmentation, on small problems whose answer is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from perception import profile as profiles
from perception.errors import PerceptionError
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.models.networks import ConvEncoder
from perception.profile import EncoderConfig
from perception.training import augment, evaluate, heads
from perception.training import plan as plans
from perception.training.evaluate import metrics, probabilities
from perception.training.examples import Examples
from perception.training.finetune import trainable
from perception.training.fit import fit, thinning
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import (
    REMEDIES,
    ClassificationLoss,
    Imbalance,
    balanced_weights,
    epoch_order,
    long_tail,
)
from perception.training.lost_inputs import draw_lags, hide_inputs
from perception.training.model import FusionModel, predict
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


def test_the_balanced_loss_weighs_classes_alike_whatever_their_shares_in_training() -> None:
    rows = long_tail(clusters().labels, 3, 10, torch.Generator().manual_seed(0))
    validation = clusters(seed=1).rows(torch.arange(100))
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES))
    config = QUICK.model_copy(update={"epochs": 1, "select": "balanced-nll"})
    (loss,) = fit(model, clusters().rows(rows), validation, config).validation_loss
    labels = validation.labels.numpy()
    weights = compute_sample_weight("balanced", labels)
    assert loss == pytest.approx(log_loss(labels, probabilities(model, validation), sample_weight=weights))


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


def test_hidden_inputs_hide_all_their_branches_but_never_everything() -> None:
    present = torch.ones(500, 3, dtype=torch.bool)
    shown = hide_inputs(present, torch.tensor([0, 0, 1]), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(shown[:, 0], shown[:, 1])
    assert shown.any(dim=1).all()
    assert not shown.all(dim=0).any()


def test_remedies_of_imbalance_weigh_and_repeat_as_documented() -> None:
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = balanced_weights(labels, 3)
    assert torch.allclose(weights * labels.bincount(), torch.full((3,), 100 / 3))
    order = epoch_order(Imbalance(remedy="oversample"), labels, torch.Generator().manual_seed(0))
    assert labels[order].bincount().tolist() == [90] * 3
    assert order.bincount(minlength=100).tolist() == [1] * 90 + [10] * 9 + [90]
    logits = torch.zeros(1, 3)
    common, rare = (
        ClassificationLoss(Imbalance(remedy="logit-adjustment"), labels, 3)(logits, torch.tensor([label]))
        for label in (0, 2)
    )
    assert float(rare - common) == pytest.approx(np.log(90), rel=1e-5)
    sure = torch.tensor([[5.0, 0.0, 0.0]])
    focal, plain = (
        ClassificationLoss(Imbalance(remedy=r), labels, 3)(sure, torch.tensor([0])) for r in ("focal", "none")
    )
    assert focal < 0.01 * plain
    kept = long_tail(torch.arange(300) % 3, 3, 50, torch.Generator().manual_seed(0))
    assert (torch.arange(300) % 3)[kept].bincount().tolist() == [100, 14, 2]
    assert set(REMEDIES) == {"none", "weights", "oversample", "focal", "logit-adjustment"}


def one_in_twenty(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(count, generator=generator) < 0.05).long()
    features = {name: torch.randn(count, 2, generator=generator) + labels[:, None] for name in INPUTS}
    return Examples.of(features, labels, ("common", "rare"))


@pytest.mark.parametrize("select", ["nll", "balanced-nll"])
@pytest.mark.parametrize("remedy", ["weights", "oversample", "logit-adjustment"])
@pytest.mark.parametrize("level", ["feature", "pool", "head"])
def test_a_remedy_acts_at_every_level_whatever_chooses_the_epoch(
    level: str, remedy: str, select: str
) -> None:
    plan = (
        plans.HeadPlan(head="linear") if level == "feature" else plans.HeadPlan(kind="model", combine=level)
    )
    settings = {"epochs": 12, "batch": 250, "learning_rate": 5e-2, "select": select, "input_dropout": 0}
    config = TrainingConfig.model_validate({**settings, "imbalance": {"remedy": remedy}})
    model = FusionModel(heads.new_head(plan, {"eye": 2, "ear": 2}, ("common", "rare"), 0))
    fit(model, one_in_twenty(2000, 1), one_in_twenty(1000, 2), config)
    test = one_in_twenty(2000, 3)
    assert metrics(evaluate.truth_of(test), probabilities(model, test)).macro_recall > 0.78
    nothing = test.rows(slice(0, 1)).only([])
    assert probabilities(model, nothing)[0] == pytest.approx([0.5, 0.5], abs=1e-5)


def test_focal_loss_is_that_of_the_branches_of_a_model_level_head_too() -> None:
    head = ModelFusion({"eye": 2, "ear": 2}, CLASSES)
    data = clusters(30)
    loss = ClassificationLoss(Imbalance(remedy="focal", gamma=3), data.labels, 3)
    own = torch.stack(
        [model(data.features[name]) for name, model in zip(head.branches, head.models, strict=True)], 1
    )
    expected = loss(own.flatten(0, 1), data.labels.repeat_interleave(2))
    torch.testing.assert_close(head.auxiliary_loss(data.features, data.present, data.labels, loss), expected)


def test_hiding_inputs_never_empties_a_window_that_lacks_some_already() -> None:
    present = torch.tensor([[True, False], [False, True], [True, True]]).repeat(500, 1)
    inputs, generator = torch.tensor([0, 1]), torch.Generator().manual_seed(0)
    for rows in (present, present[:, None].expand(-1, 3, -1)):
        left = hide_inputs(rows, inputs, 1.0, generator)
        assert left.flatten(1).any(dim=1).all()
        assert not (left & ~rows).any()
        assert not torch.equal(left, rows)


def test_noise_has_the_asked_ratio_and_augmentation_is_repeatable() -> None:
    waves = torch.sin(torch.arange(8000) / 5).repeat(3, 1)
    ratios = torch.tensor([20.0, 0.0, -10.0])
    noisy = augment.with_noise(waves, ratios, torch.Generator().manual_seed(0))
    power = (noisy - waves).square().mean(dim=1)
    assert torch.allclose(10 * (waves.square().mean(dim=1) / power).log10(), ratios, atol=0.01)
    pictures = torch.rand(6, 1, 20, 20)
    for change in (augment.moved, augment.recoloured, augment.occluded):
        first, second = (change(pictures, torch.Generator().manual_seed(1)) for _ in range(2))
        assert first.shape == pictures.shape
        assert torch.equal(first, second)
        assert not torch.equal(first, pictures)


def test_late_inputs_are_those_of_earlier_ticks_of_the_same_source() -> None:
    features = {"a": torch.arange(6.0)[:, None], "b": torch.arange(6.0)[:, None]}
    data = Examples.of(features, torch.zeros(6).long(), ("x", "y"), torch.tensor([0, 0, 0, 1, 1, 1]))
    late = data.context(torch.tensor([2, 4, 5]), 1, torch.tensor([[1, 0], [2, 0], [0, 2]]))
    assert late.features["a"][[0, 2], 0].tolist() == [1.0, 5.0]
    assert late.features["b"][:, 0].tolist() == [2.0, 4.0, 3.0]
    assert late.present.tolist() == [[True, True], [False, True], [True, True]]
    torch.testing.assert_close(late.ages_s[0], torch.tensor([1e-9, 0.0]))
    lags = draw_lags(4000, torch.tensor([0, 0, 1]), 0.5, 3, torch.Generator().manual_seed(0))
    assert (lags[:, 0] == lags[:, 1]).all()
    assert not (lags[:, 0].bool() & lags[:, 2].bool()).any()
    assert 0.45 < (lags > 0).any(dim=1).float().mean() < 0.55
    assert set(lags.flatten().tolist()) == {0, 1, 2, 3}


def test_a_late_input_never_empties_a_row_of_a_batch() -> None:
    data = clusters().select(["eye"])  # 20 sources: each begins with a row that lateness would empty
    shown: list[torch.Tensor] = []

    def look(batch: Examples, generator: torch.Generator) -> Examples:
        shown.append(batch.present)
        return batch

    config = QUICK.model_copy(update={"epochs": 1, "late": 1.0, "late_ticks": 1})
    fit(FusionModel(FeatureFusion({"eye": 2}, CLASSES)), data, data, config, augment=look)
    assert sum(map(len, shown)) == len(data)
    assert torch.cat(shown).any(dim=1).all()


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
