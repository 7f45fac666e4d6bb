"""Inputs that training hides, delays or disturbs."""

import torch

from perception.models.fusion import FeatureFusion
from perception.training import augment
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.lost_inputs import draw_lags, hide_inputs
from perception.training.model import FusionModel
from tests.clusters import CLASSES, QUICK, clusters


def test_hidden_inputs_hide_all_their_branches_but_never_everything() -> None:
    present = torch.ones(500, 3, dtype=torch.bool)
    shown = hide_inputs(present, torch.tensor([0, 0, 1]), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(shown[:, 0], shown[:, 1])
    assert shown.any(dim=1).all()
    assert not shown.all(dim=0).any()


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
