"""Fusion heads: any input may be missing, and the head then receives exactly what each strategy defines."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

from perception.models.checkpoint import load_head
from perception.models.fusion import BranchName, CombineName, FeatureFusion, FusionHead, ModelFusion
from perception.models.heads import GatedHead, HeadName
from perception.models.missing import MISSING, Distortion, MissingName, ModalityDropout, Predict
from perception.models.weights import seeded

DIMS = {"voice": 4, "faces": 3, "intent": 2}
ORDER = ("faces", "intent", "voice")
CLASSES = ("come", "stay", "go")
PATTERNS = torch.tensor(list(product([True, False], repeat=3)))


def batch(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, dim, generator=generator) * 3 + 5 for name, dim in DIMS.items()}


def heads() -> list[FusionHead]:
    with seeded(0):
        return [
            *(
                FeatureFusion(DIMS, CLASSES, head=head, missing=missing, use_ages=True)
                for head in get_args(HeadName)
                for missing in get_args(MissingName)
            ),
            *(
                ModelFusion(DIMS, CLASSES, branch=branch, combine=combine)
                for branch in get_args(BranchName)
                for combine in get_args(CombineName)
            ),
        ]


def label_of(head: FusionHead) -> str:
    return "-".join(str(value) for value in head.config.values() if isinstance(value, str))


def labels_from(features: dict[str, torch.Tensor]) -> torch.Tensor:
    """The class depends on two branches."""
    return (features["voice"][:, 0] + features["faces"][:, 0] - 10).div(3).round().clamp(-1, 1).long() + 1


@pytest.mark.parametrize("head", heads(), ids=label_of)
def test_every_presence_pattern_gives_finite_logits_that_do_not_depend_on_what_is_absent(
    head: FusionHead,
) -> None:
    head.eval()
    features, ages_s = batch(len(PATTERNS)), torch.full((len(PATTERNS), 3), 0.3)
    logits = head(features, PATTERNS, ages_s)

    garbage = {
        name: torch.where(PATTERNS[:, [column]], features[name], torch.nan)
        for column, name in enumerate(ORDER)
    }
    assert logits.shape == (len(PATTERNS), len(CLASSES))
    assert torch.isfinite(logits).all()
    assert torch.equal(head(garbage, PATTERNS, torch.where(PATTERNS, ages_s, torch.inf)), logits)


@pytest.mark.parametrize("head", heads(), ids=label_of)
def test_nothing_present_answers_the_class_prior_and_training_through_it_stays_finite(
    head: FusionHead,
) -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 0])
    head.fit_statistics(batch(8), PATTERNS, labels)
    nothing, ages_s = torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3)

    expected = torch.tensor([7 / 11, 3 / 11, 1 / 11])  # one added to each count
    torch.testing.assert_close(head({}, nothing, ages_s).softmax(dim=1), expected.expand(2, 3))

    head.train()
    loss = F.cross_entropy(head(batch(8), PATTERNS, torch.zeros(8, 3)), labels)
    torch.autograd.backward(loss)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", heads(), ids=label_of)
def test_a_row_is_judged_alike_alone_and_in_a_batch(head: FusionHead) -> None:
    head.eval()
    features, ages_s = batch(len(PATTERNS)), torch.zeros(len(PATTERNS), 3)
    together = head(features, PATTERNS, ages_s)
    for row in range(len(PATTERNS)):
        one = slice(row, row + 1)
        alone = head({name: x[one] for name, x in features.items()}, PATTERNS[one], ages_s[one])
        torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-5)


def test_a_head_that_is_given_conditions_reads_them_where_present(tmp_path: Path) -> None:
    with seeded(0):
        head = FeatureFusion(DIMS, CLASSES, use_ages=True, use_conditions=True).eval()
    features, ages_s = batch(2), torch.zeros(2, 3)
    present = torch.tensor([[True, True, False]]).expand(2, 3)
    fine = head(features, present, ages_s)
    assert torch.equal(head(features, present, ages_s, None, torch.zeros(2, 3).bool()), fine)
    suspect = torch.tensor([[True, False, False], [False, False, True]])
    found = head(features, present, ages_s, None, suspect)
    assert not torch.equal(found[0], fine[0])
    assert torch.equal(found[1], fine[1])  # the third is absent
    head.save_pretrained(tmp_path)
    assert torch.equal(load_head(tmp_path)(features, present, ages_s, None, suspect), found)


def test_a_head_without_conditions_is_stored_as_before() -> None:
    assert "use_conditions" not in FeatureFusion(DIMS, CLASSES).config
    assert FeatureFusion(DIMS, CLASSES, use_conditions=True).config["use_conditions"] is True


def test_training_makes_inputs_suspect_with_all_their_branches_and_blends_them() -> None:
    distortion = Distortion((4, 3, 2), p=0.5).train()
    distortion.inputs = torch.tensor([0, 1, 1])
    x, present = torch.randn(400, 9), torch.ones(400, 3).bool()
    present[:, 0] = False
    mixed, suspect = distortion(x, present, torch.zeros(400, 3).bool())
    assert not suspect[:, 0].any()
    assert torch.equal(suspect[:, 1], suspect[:, 2])
    assert 0.4 < suspect[:, 1].float().mean() < 0.6
    changed = (mixed != x).any(dim=1)
    assert not (changed & ~suspect[:, 1]).any()
    assert (changed != suspect[:, 1]).sum() < 10  # a row may be blended with itself
    assert torch.equal(mixed[:, :4], x[:, :4])
    still, none = distortion.eval()(x, present, torch.zeros(400, 3).bool())
    assert torch.equal(still, x)
    assert not none.any()


def test_a_trained_head_relies_less_on_what_is_suspect() -> None:
    with seeded(0):
        head = FeatureFusion({"good": 4, "strong": 4}, CLASSES, head="mlp", use_conditions=True)
        optimiser = torch.optim.Adam(head.parameters(), 0.02)
        for _ in range(300):
            features, labels = noisy_pair(256)
            optimiser.zero_grad()
            loss = F.cross_entropy(head(features, torch.ones(256, 2).bool()), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        features, labels = noisy_pair(2000)
    features["strong"] = features["strong"][torch.randperm(2000, generator=torch.Generator().manual_seed(1))]
    present, head = torch.ones(2000, 2).bool(), head.eval()
    suspect = torch.tensor([[False, True]]).expand(2000, 2)
    flagged, plain = (
        float((head(features, present, None, None, one).argmax(1) == labels).float().mean())
        for one in (suspect, torch.zeros_like(suspect))
    )
    assert flagged > plain + 0.05


def noisy_pair(rows: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A branch that shows the class well and one that shows it better."""
    labels = torch.randint(3, (rows,))
    shown = F.one_hot(labels, 4).float()
    noise = {"good": 0.5, "strong": 0.15}
    return {name: shown + torch.randn(rows, 4) * level for name, level in noise.items()}, labels


def test_feature_fusion_concatenates_by_name_then_presence_then_ages() -> None:
    head = FeatureFusion(DIMS, CLASSES, head="linear", missing="zero", use_ages=True).eval()
    features, ages_s = batch(5), torch.rand(5, 3) * 20
    present = torch.tensor([[True, False, True]]).expand(5, 3)
    assert head.branches == ORDER

    x = torch.cat([features["faces"], torch.zeros(5, 2), features["voice"]], dim=1).clamp(-10, 10)
    ages = torch.log1p(ages_s.clamp(max=10)) * present
    linear = head.head.layers
    assert isinstance(linear, nn.Linear)
    expected = F.linear(torch.cat([x, present.float(), ages], dim=1), linear.weight, linear.bias)
    torch.testing.assert_close(head(features, present, ages_s), expected)


def test_inputs_are_standardised_over_the_rows_present_only() -> None:
    head = FeatureFusion(DIMS, CLASSES, missing="zero")
    features, generator = batch(200), torch.Generator().manual_seed(1)
    features["intent"][:, 1] = 7.0  # a constant feature must not be divided by zero
    present = torch.rand(200, 3, generator=generator) > 0.4
    head.fit_statistics(features, present, torch.zeros(200, dtype=torch.int64))

    rows = features["voice"][present[:, 2]].numpy()
    np.testing.assert_allclose(head.mean[5:], rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(head.std[5:], rows.std(axis=0), rtol=1e-5)
    assert head.mean[4] == 7.0
    assert head.std[4] == 1.0


def test_a_linear_head_learns_what_logistic_regression_learns() -> None:
    features, everything = batch(400), torch.ones(400, 3, dtype=torch.bool)
    labels = labels_from(features)
    with seeded(0):
        head = FeatureFusion(DIMS, CLASSES, head="linear")
    head.fit_statistics(features, everything, labels)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    linear = head.head.layers
    assert isinstance(linear, nn.Linear)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        penalty = linear.weight[:, : sum(DIMS.values())].square().sum() / 2 / len(labels)  # sklearn's C = 1
        loss = F.cross_entropy(head(features, everything), labels) + penalty
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    x = torch.cat([features[name] for name in ORDER], dim=1).numpy()
    reference = LogisticRegression(C=1.0, max_iter=1000).fit((x - x.mean(0)) / x.std(0), labels.numpy())
    expected = reference.predict_proba((x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(head(features, everything).softmax(1).detach(), expected, atol=5e-3)


def fill(name: MissingName, x: torch.Tensor, present: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    filled: torch.Tensor = MISSING[name](dims).eval()(x, present)
    return filled


def test_zero_drop_and_token_before_training() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    present = torch.tensor([[True, False, False]])
    assert torch.equal(fill("zero", x, present, (2, 1, 3)), x)
    torch.testing.assert_close(fill("drop", x, present, (2, 1, 3)), x * 3**0.5)
    assert torch.equal(fill("token", x, present, (2, 1, 3)), x)


def test_dropping_branches_keeps_the_expected_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    dims, present = (30, 5, 65), torch.rand(2000, 3, generator=generator) > 0.5
    present = present[present.any(dim=1)]
    mask = present.repeat_interleave(torch.tensor(dims), dim=1)
    x = torch.randn(mask.shape, generator=generator) * mask
    squared = fill("drop", x, present, dims).square().sum(dim=1)
    assert squared.mean().item() == pytest.approx(sum(dims), rel=0.03)


def test_a_token_is_learned_only_where_its_branch_is_absent() -> None:
    token = MISSING["token"]((2, 3))
    token(torch.ones(1, 5), torch.tensor([[True, False]])).sum().backward()
    (parameter,) = token.parameters()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [0, 0, 1, 1, 1]


def test_mean_is_the_mean_of_what_was_present_in_training() -> None:
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(90, 2, generator=generator) > 0.3
    x = torch.where(present.repeat_interleave(2, dim=1), torch.randn(90, 4, generator=generator) + 2, 0.0)
    mean = MISSING["mean"]((2, 2)).train()
    for start in (0, 10, 40):
        stop = {0: 10, 10: 40, 40: 90}[start]
        mean(x[start:stop], present[start:stop])
    filled = mean.eval()(torch.zeros(1, 4), torch.tensor([[False, False]]))
    expected = torch.cat([x[present[:, 0], :2].mean(0), x[present[:, 1], 2:].mean(0)])
    torch.testing.assert_close(filled[0], expected)


def test_prediction_of_an_absent_branch_converges_to_linear_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    voice = torch.randn(300, 3, generator=generator)
    faces = voice @ torch.randn(3, 2, generator=generator) + 0.1 * torch.randn(300, 2, generator=generator)
    x, present = torch.cat([voice, faces], dim=1), torch.ones(300, 2, dtype=torch.bool)
    with seeded(0):
        predict = Predict((3, 2))
    optimiser = torch.optim.LBFGS(predict.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = predict.auxiliary_loss(x, present)
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    alone = torch.tensor([[True, False]]).expand(300, 2)
    filled = predict(torch.cat([voice, torch.zeros(300, 2)], dim=1), alone).detach()
    assert torch.equal(filled[:, :3], voice)
    expected = LinearRegression().fit(voice.numpy(), faces.numpy()).predict(voice.numpy())
    np.testing.assert_allclose(filled[:, 3:], expected, atol=5e-3)


def test_modality_dropout_hides_at_its_rate_but_never_everything() -> None:
    dropout, present = ModalityDropout(0.5), PATTERNS[:-1].repeat(2000, 1)
    with seeded(0):
        kept = dropout(present)
    assert not (kept & ~present).any()
    assert kept.any(dim=1).all()
    full = present.all(dim=1)
    # Expected: 1 - 0.5 per branch, plus the one spared in the 1/8 of the rows that would lose all three.
    assert kept[full].float().mean().item() == pytest.approx(0.5 + 1 / 24, abs=0.02)
    assert torch.equal(dropout.eval()(present), present)


def test_modality_dropout_hides_whole_inputs_and_spares_one_that_is_there() -> None:
    dropout, present = ModalityDropout(0.5), PATTERNS[:-1].repeat(2000, 1)
    dropout.inputs = torch.tensor([1, 0, 1])
    with seeded(0):
        kept = dropout(present)
    assert kept.any(dim=1).all()
    both = present[:, 0] & present[:, 2]
    assert torch.equal(kept[both, 0], kept[both, 2])
    full = present.all(dim=1)
    # Expected: 1 - 0.5 per input, plus the one spared in the 1/4 of the rows that would lose both.
    assert kept[full].float().mean().item() == pytest.approx(0.5 + 1 / 8, abs=0.02)
    ticks = dropout(PATTERNS[:1].expand(500, 4, 3))
    assert torch.equal(ticks, ticks[:, :1].expand_as(ticks))


def test_modality_dropout_in_training_makes_a_head_that_stands_a_missing_branch() -> None:
    features, everything = batch(600), torch.ones(600, 3, dtype=torch.bool)
    features["faces"] = features["voice"][:, :3].clone()  # either branch suffices
    labels = (features["voice"][:, 0] > 5).long()
    without_voice = torch.tensor([[True, True, False]]).expand(600, 3)
    accuracy = {}
    for p in (0.0, 0.4):
        with seeded(1):
            head = FeatureFusion(DIMS, ("no", "yes"), head="mlp", hidden=16, modality_dropout=p)
            head.fit_statistics(features, everything, labels)
            optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
            for _ in range(120):
                optimiser.zero_grad()
                torch.autograd.backward(F.cross_entropy(head(features, everything), labels))
                optimiser.step()
        guessed = head.eval()(features, without_voice).argmax(dim=1)
        accuracy[p] = (guessed == labels).float().mean().item()
    assert accuracy[0.4] > 0.98
    assert accuracy[0.4] > accuracy[0.0]


def test_gates_are_closed_where_a_branch_is_absent() -> None:
    head = FeatureFusion(DIMS, CLASSES, head="gated", hidden=8, missing="zero").eval()
    present = torch.tensor([[False, True, False]])
    features = batch(1)
    gated = head.head
    assert isinstance(gated, GatedHead)
    projected = gated.projections[1](features["intent"])
    torch.testing.assert_close(head(features, present), gated.out(projected))


def test_model_fusion_of_one_branch_alone_is_the_model_of_that_branch() -> None:
    head = ModelFusion(DIMS, CLASSES).eval()
    features, only_voice = batch(4), torch.tensor([[False, False, True]]).expand(4, 3)
    torch.testing.assert_close(
        head(features, only_voice), head.models[2](features["voice"]).log_softmax(dim=1)
    )


def test_the_branches_of_model_fusion_are_trained_as_complete_models() -> None:
    head = ModelFusion(DIMS, CLASSES)
    features, labels = batch(8), torch.arange(8) % 3
    expected = [
        F.cross_entropy(model(features[name].clamp(-10, 10))[PATTERNS[:, m]], labels[PATTERNS[:, m]])
        for m, (name, model) in enumerate(zip(ORDER, head.models, strict=True))
    ]
    torch.testing.assert_close(head.auxiliary_loss(features, PATTERNS, labels), torch.stack(expected).mean())


def test_calibration_makes_an_overconfident_pool_honest() -> None:
    features, everything = batch(400), torch.ones(400, 3, dtype=torch.bool)
    labels = labels_from(features)
    with seeded(0):
        head = ModelFusion(DIMS, CLASSES).eval()
    with torch.no_grad():
        for model in head.models:
            assert isinstance(model, nn.Linear)
            model.weight *= 20
    head.fit_statistics(features, everything, labels)
    before = F.cross_entropy(head(features, everything), labels)
    head.calibrate(features, everything, labels)
    after = F.cross_entropy(head(features, everything), labels)
    assert after < before
    assert after < F.cross_entropy(head.log_prior.expand(400, 3), labels)
    with pytest.raises(ValueError, match="eval"):
        head.train().calibrate(features, everything, labels)


@pytest.mark.parametrize(
    ("features", "present", "message"),
    [
        ({**batch(2), "voice": torch.zeros(2, 9)}, torch.ones(2, 3).bool(), r"branch 'voice': .*\(2, 9\)"),
        (batch(2), torch.ones(2, 4).bool(), r"presence is \(2, 4\), expected \(batch, 3\)"),
    ],
)
def test_wrong_shapes_are_named(
    features: dict[str, torch.Tensor], present: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureFusion(DIMS, CLASSES)(features, present)


def test_ages_are_demanded_where_they_were_trained() -> None:
    with pytest.raises(ValueError, match="give ages_s"):
        FeatureFusion(DIMS, CLASSES, use_ages=True)(batch(1), torch.ones(1, 3).bool())


def test_principal_components_are_those_of_scikit_learn_on_the_rows_present(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(60, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    features = {"narrow": torch.randn(60, 2, generator=generator), "wide": wide}
    present = torch.ones(60, 2, dtype=torch.bool)
    present[40:, 1] = False
    head = FeatureFusion({"narrow": 2, "wide": 12}, ("x", "y"), pca=3)
    head.fit_statistics(features, present, torch.arange(60) % 2)
    assert head.reduction is not None
    assert head.reduction.widths == (2, 3)
    there = wide[:40]
    standard = (there - there.mean(dim=0)) / there.std(dim=0, correction=0)
    expected = PCA(3, whiten=True).fit_transform(standard.double().numpy())
    x, _ = head.eval()._inputs(features, present)
    reduced = head.reduction(x)
    torch.testing.assert_close(reduced[:40, 2:].double(), torch.from_numpy(expected), atol=1e-3, rtol=1e-3)
    assert not reduced[40:, 2:].any()
    head.save_pretrained(tmp_path)
    torch.testing.assert_close(load_head(tmp_path)(features, present), head(features, present))
