"""Remedies of imbalance: weights, epochs, priors, and what heads learn with them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from perception.models.fusion import FeatureFusion, ModelFusion
from perception.training import evaluate, heads
from perception.training import plan as plans
from perception.training.evaluate import probabilities
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import (
    REMEDIES,
    ClassificationLoss,
    Imbalance,
    balanced_weights,
    epoch_order,
    long_tail,
)
from perception.training.model import FusionModel
from perception.training.scores import metrics
from tests.clusters import CLASSES, INPUTS, QUICK, clusters


def test_the_balanced_loss_weighs_classes_alike_whatever_their_shares_in_training() -> None:
    rows = long_tail(clusters().labels, 3, 10, torch.Generator().manual_seed(0))
    validation = clusters(seed=1).rows(torch.arange(100))
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES))
    config = QUICK.model_copy(update={"epochs": 1, "select": "balanced-nll"})
    (loss,) = fit(model, clusters().rows(rows), validation, config).validation_loss
    labels = validation.labels.numpy()
    weights = compute_sample_weight("balanced", labels)
    assert loss == pytest.approx(log_loss(labels, probabilities(model, validation), sample_weight=weights))


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
