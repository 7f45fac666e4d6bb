"""The log-linear pool: Bayes' rule for independent branches, the prior without any, calibrated by fitting."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from perception.models.pooling import LogLinearPool

PRIOR = np.array([0.7, 0.2, 0.1])


def generative(seed: int = 0) -> list[np.ndarray]:
    """p(symbol | class) of three branches that are independent given the class, (3, symbols)."""
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(symbols), size=3) for symbols in (4, 5, 2)]


def draw(rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return labels, each branch's exact posterior as logits (N, 3, 3), and the joint posterior."""
    rng, tables = np.random.default_rng(seed), generative()
    labels = rng.choice(3, size=rows, p=PRIOR)
    symbols = [np.array([rng.choice(table.shape[1], p=table[y]) for y in labels]) for table in tables]
    likelihoods = [table[:, s].T for table, s in zip(tables, symbols, strict=True)]  # each (N, 3)
    logits = np.stack([np.log(PRIOR * likelihood) for likelihood in likelihoods], axis=1)
    joint = PRIOR * np.prod(likelihoods, axis=0)
    return torch.tensor(labels), torch.tensor(logits).float(), joint / joint.sum(axis=1, keepdims=True)


def pool() -> LogLinearPool:
    made = LogLinearPool(3, 3)
    made.log_prior.copy_(torch.tensor(PRIOR).log())
    return made


def test_it_is_bayes_rule_for_branches_independent_given_the_class() -> None:
    _, logits, joint = draw(200)
    pooled = pool()(logits, torch.ones(200, 3, dtype=torch.bool)).exp()
    np.testing.assert_allclose(pooled, joint, atol=1e-5)


def test_reset_takes_back_all_that_was_fitted() -> None:
    labels, logits, joint = draw(200)
    everything, fitted = torch.ones(200, 3, dtype=torch.bool), pool()
    fitted.fit_temperatures(3 * logits, everything, labels)
    fitted.fit_weights(3 * logits, everything, labels)
    assert (fitted.doubt > 0).all()
    fitted.reset()
    np.testing.assert_allclose(fitted(logits, everything).exp(), joint, atol=1e-5)


def test_with_some_missing_it_is_bayes_rule_for_the_rest_and_with_all_missing_the_prior() -> None:
    _, logits, _ = draw(50)
    present = torch.tensor([True, False, True]).expand(50, 3)
    likelihoods = logits[:, [0, 2]].exp().numpy() / PRIOR
    joint = PRIOR * likelihoods.prod(axis=1)
    garbage = torch.where(present[:, :, None], logits, torch.nan)
    np.testing.assert_allclose(
        pool()(garbage, present).exp(), joint / joint.sum(axis=1, keepdims=True), atol=1e-5
    )
    nothing = pool()(logits * torch.nan, torch.zeros(50, 3, dtype=torch.bool))
    np.testing.assert_allclose(nothing.exp(), np.tile(PRIOR, (50, 1)), atol=1e-6)


def test_a_branch_of_weight_zero_is_a_missing_branch() -> None:
    _, logits, _ = draw(20)
    everything, weighted = torch.ones(20, 3, dtype=torch.bool), pool()
    weighted.weight[1] = 0
    present = torch.tensor([True, False, True]).expand(20, 3)
    torch.testing.assert_close(weighted(logits, everything), pool()(logits, present))


def test_temperatures_undo_overconfidence_as_found_by_an_independent_minimiser() -> None:
    labels, logits, _ = draw(3000)
    distorted = logits * torch.tensor([3.0, 1.0, 0.25])[:, None]
    fitted, present = pool(), torch.ones(3000, 3, dtype=torch.bool)
    fitted.fit_temperatures(distorted, present, labels)
    assert (fitted.doubt < 0.03).all(), "no branch was wrong for no reason"
    for branch in range(3):

        def nll(log_t: float, branch: int = branch) -> float:
            doubted = F.softmax(distorted[:, branch].double() / np.exp(log_t), dim=1)
            doubt = fitted.doubt[branch].double()
            return F.nll_loss(((1 - doubt) * doubted + doubt / 3).log(), labels).item()

        best = np.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded").x)
        assert fitted.temperature[branch].item() == pytest.approx(best, rel=0.03)
    assert fitted.temperature[0].item() == pytest.approx(3.0, rel=0.15)


def test_weights_count_a_branch_given_twice_only_once() -> None:
    labels, logits, _ = draw(3000)
    twice = logits[:, [0, 0, 1]]
    fitted, present = pool(), torch.ones(3000, 3, dtype=torch.bool)
    naive = F.nll_loss(fitted(twice, present), labels)
    fitted.fit_weights(twice, present, labels)
    assert fitted.weight[:2].sum().item() == pytest.approx(1, abs=0.15)
    assert fitted.weight[2].item() == pytest.approx(1, abs=0.2)
    assert F.nll_loss(fitted(twice, present), labels) < naive


def test_a_useless_branch_loses_its_weight_and_the_pool_is_no_worse_than_the_best_branch() -> None:
    labels, logits, _ = draw(3000)
    logits[:, 1] = torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)) * 4
    fitted, present = pool(), torch.ones(3000, 3, dtype=torch.bool)
    fitted.fit_temperatures(logits, present, labels)
    fitted.fit_weights(logits, present, labels)
    pooled = F.nll_loss(fitted(logits, present), labels)
    alone = [F.cross_entropy(logits[:, m] / fitted.temperature[m], labels) for m in (0, 2)]
    assert pooled < min(alone)
    useful = F.nll_loss(pool()(logits, torch.tensor([True, False, True]).expand(3000, 3)), labels)
    assert pooled.item() == pytest.approx(useful.item(), abs=0.01)


def test_fitting_stays_finite_on_separable_data_and_a_branch_never_seen_weighs_as_the_others() -> None:
    labels = torch.arange(30) % 3
    logits = F.one_hot(labels, 3).float()[:, None].expand(30, 3, 3).contiguous()
    present = torch.tensor([True, True, False]).expand(30, 3)
    fitted = pool()
    fitted.fit_temperatures(logits, present, labels)
    fitted.fit_weights(logits, present, labels)
    assert torch.isfinite(fitted.temperature).all()
    assert torch.isfinite(fitted.weight).all()
    assert fitted.temperature[2] == 1
    assert fitted.weight[2].item() == pytest.approx(fitted.weight[:2].mean().item(), abs=0.01)
    assert (fitted(logits, present).argmax(dim=1) == labels).all()


def test_where_no_branch_fails_none_is_followed_alone() -> None:
    labels = torch.arange(120) % 3
    sure = 8 * F.one_hot(labels, 3).float()
    mistaken = sure.clone()
    mistaken[:3] = mistaken[:3].roll(1, dims=1)
    logits, present = torch.stack([sure, mistaken], dim=1), torch.ones(120, 2, dtype=torch.bool)
    fitted = LogLinearPool(2, 3)
    fitted.fit_weights(logits, present, labels)
    assert fitted.weight[0] - fitted.weight[1] < 0.2


def test_copies_of_an_observation_count_once_so_that_few_do_not_look_like_many() -> None:
    labels, logits, _ = draw(40)
    everything = torch.ones(40, 3, dtype=torch.bool)
    once, copied, taken_for_many = pool(), pool(), pool()
    for fitted, times, copies in ((once, 1, 1), (copied, 50, 50), (taken_for_many, 50, 1)):
        repeated, present, truth = (x.repeat_interleave(times, dim=0) for x in (logits, everything, labels))
        fitted.fit_temperatures(repeated, present, truth, copies)
        fitted.fit_weights(repeated, present, truth, copies)
    for name in ("temperature", "doubt", "weight"):
        torch.testing.assert_close(getattr(copied, name), getattr(once, name), rtol=1e-3, atol=1e-4)
    assert (taken_for_many.weight - 1).abs().max() > (once.weight - 1).abs().max()


def test_doubt_is_how_often_a_branch_knows_nothing_and_bounds_what_it_can_do() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 3
    blind = torch.rand(3000, generator=generator) < 0.2
    guessed = torch.randint(3, (3000,), generator=generator)
    logits = 20 * F.one_hot(torch.where(blind, guessed, labels), 3).float()[:, None]
    fitted = LogLinearPool(1, 3)
    fitted.fit_temperatures(logits, torch.ones(3000, 1, dtype=torch.bool), labels)
    assert fitted.doubt.item() == pytest.approx(0.2, abs=0.03)
    assert fitted.calibrated(logits).exp().sum(dim=2).numpy() == pytest.approx(np.ones((3000, 1)), abs=1e-5)
    disputed = torch.tensor([[[500.0, 0.0, 0.0], [0.0, 6.0, 0.0]]])
    both, odds = LogLinearPool(2, 3), []
    for doubt in (0.0, 0.1):
        both.doubt.fill_(doubt)
        log_p = both(disputed, torch.ones(1, 2, dtype=torch.bool))
        odds.append((log_p[0, 0] - log_p[0, 1]).item())
    assert odds[0] > 400
    assert odds[1] < 1
