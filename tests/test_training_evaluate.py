"""Scores of heads: metrics, subsets of inputs, conformal sets, shuffled and late inputs, on known answers."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from perception.models.fusion import FeatureFusion
from perception.training import augment, evaluate, report, scores
from perception.training.evaluate import probabilities
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.model import FusionModel
from perception.training.scores import metrics
from tests.clusters import CLASSES, INPUTS, QUICK, clusters, trained


def test_metrics_agree_with_their_definitions() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 5000)
    labels = np.array([rng.choice(3, p=row) for row in p])  # perfectly calibrated
    scored = metrics(labels, p)
    assert scored.ece < 0.03
    assert scored.macro_recall == pytest.approx(balanced_accuracy_score(labels, p.argmax(axis=1)))
    assert scored.nll == pytest.approx(-np.log(p[np.arange(5000), labels]).mean())
    sure = np.eye(3)[p.argmax(axis=1)]
    assert scores.expected_calibration_error(labels, sure) == pytest.approx(1 - scored.accuracy)


def test_conformal_sets_cover_what_they_promise() -> None:
    model, data = trained(), clusters(3000, seed=5, spread=1.2)
    halves = [
        (part.labels.numpy(), probabilities(model, part))
        for part in (data.rows(torch.arange(1500)), data.rows(torch.arange(1500, 3000)))
    ]
    found = scores.conformal(halves[0], halves[1], alpha=0.1)
    assert 0.87 < found.coverage < 0.93
    assert 1 <= found.size < 3


def test_a_conformal_set_of_constant_probabilities_holds_what_is_as_likely_as_the_threshold() -> None:
    p = np.tile([0.3, 0.7], (100, 1))
    labels = np.arange(100) % 10 // 7  # 7 of 10 are the rarer class
    found = scores.conformal((labels, p), (labels, p), alpha=0.1)
    assert (found.threshold, found.coverage, found.size) == (0.3, 1.0, 2.0)


def test_too_few_rows_promise_nothing_but_sets_of_everything() -> None:
    p = np.tile([0.9, 0.1], (5, 1))
    found = scores.conformal((np.zeros(5, int), p), (np.ones(5, int), p), alpha=0.1)
    assert (found.coverage, found.size) == (1.0, 2.0)


def test_sessions_of_the_same_name_are_scored_apart() -> None:
    data = Examples.of({"eye": torch.zeros(4, 2)}, torch.tensor([0, 1, 0, 1]), CLASSES, torch.arange(4) // 2)
    data = dataclasses.replace(data, names=("kitchen", "kitchen"))
    scored = evaluate.by_source(data.labels.numpy(), np.tile([0.8, 0.2], (4, 1)), data)
    assert {name: one.count for name, one in scored.items()} == {"kitchen #0": 2, "kitchen #1": 2}


def test_each_clip_counts_once_by_all_of_its_windows() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 1])
    sources = torch.tensor([0, 0, 0, 1, 1, 2, 2])  # two clips and a session of both classes
    data = Examples.of({"eye": torch.zeros(7, 2)}, labels, ("a", "b"), sources)
    sure = np.array([0.95, 0.4, 0.4, 0.6, 0.7, 0.9, 0.2])
    scored = evaluate.by_clip(labels.numpy(), np.stack([sure, 1 - sure], axis=1), data)
    assert scored["accuracy"] == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert (scored["sources"], scored["clips"], scored["clip_accuracy"]) == (3, 2, 0.5)


def deafened(data: Examples) -> Examples:
    noise = torch.randn(len(data), 2, generator=torch.Generator().manual_seed(9))
    return Examples.of(data.features | {"ear": noise}, data.labels, CLASSES)


def test_a_shuffled_input_costs_only_a_head_that_uses_it() -> None:
    model = FusionModel(FeatureFusion({"eye": 2, "ear": 2}, CLASSES))
    fit(model, deafened(clusters(960)), deafened(clusters(seed=1)), QUICK)
    drops = evaluate.shuffle_drops(model, deafened(clusters(960, seed=2)), INPUTS)
    assert drops["camera"] > 0.3
    assert abs(drops["microphone"]) < 0.02
    assert set(evaluate.by_subset(model, clusters(), INPUTS)) == {"camera+microphone", "camera", "microphone"}


def test_a_delayed_input_is_older_and_never_from_another_session() -> None:
    data = clusters(24)
    late = augment.delayed(data, "eye", 2)
    column = data.branches.index("eye")
    assert torch.equal(late.features["eye"][2:12], data.features["eye"][:10])
    assert late.present[:, column].tolist() == [False] * 2 + [True] * 10 + [False] * 2 + [True] * 10
    assert late.present[:, 1 - column].all()
    assert evaluate.delay_sweep(trained(), data, INPUTS, (0,))[0]["camera"]["0"] > 0.8


COST = {
    "models_ms_per_tick": 1.0,
    "encoders_ms_per_tick": 0.5,
    "windows": 50,
    "head_ms_per_tick": 0.5,
    "head_parameters": 9,
    "encoder_ms_when_it_runs": {},
}


def trained_alone(branch: str) -> FusionModel:
    torch.manual_seed(0)
    model = FusionModel(FeatureFusion({branch: 2}, CLASSES))
    fit(model, clusters().select([branch]), clusters(seed=1).select([branch]), QUICK)
    return model


def partly_absent() -> Examples:
    """Return windows 0 to 79 with both inputs, 80 to 159 without sound, 160 to 239 without pictures."""
    data = clusters(seed=2)
    present = data.present.clone()
    present[80:160, data.branches.index("ear")] = False
    present[160:, data.branches.index("eye")] = False
    return dataclasses.replace(data, present=present)


def test_windows_in_which_a_subset_is_absent_do_not_count_in_its_scores() -> None:
    model, data = trained(), partly_absent()
    scored = evaluate.by_subset(model, data, INPUTS)
    assert {name: one.count for name, one in scored.items()} == {
        "camera+microphone": 240,
        "camera": 160,
        "microphone": 160,
    }
    assert evaluate.left_out(data, INPUTS) == {"camera+microphone": 0, "camera": 80, "microphone": 80}
    assert scored["camera"].accuracy > 0.9
    assert scored["microphone"].accuracy > 0.9


def test_a_report_holds_no_score_of_what_is_always_absent_and_counts_it() -> None:
    model = trained()
    data = dataclasses.replace(clusters(seed=2).only(["eye"]), empty=(3,) + (0,) * 18 + (4,))
    tested = data.rows(data.sources < 19)
    singles = {name: trained_alone(branch) for branch, name in INPUTS.items()}
    found = report.assess([model], clusters(seed=3), tested, INPUTS, singles)
    assert list(found["subsets"]) == list(found["conformal"]) == ["camera+microphone", "camera"]
    assert found["left_out"]["microphone"] == len(tested)
    assert list(found["single"]) == ["camera"]
    assert found["empty_windows"] == {"tested": 3, "all": 7}
    assert found["delay_left_out"]["camera"] == {"0": 0, "1": 19, "2": 38, "5": 95, "10": 190, "20": 228}
    assert "20" not in found["delay"]["camera"], "no window is left"
    page = report.as_html(found | {"cost": COST}, "head")
    assert "nothing is present in them: 3 of these sessions, 7 of all" in page
    assert "camera+microphone 0, camera 0, microphone 228" in page
    assert "camera 19 at 1" in page


def test_a_head_of_one_input_is_compared_on_the_windows_that_have_it() -> None:
    data = partly_absent()
    found = report.assess([trained()], None, data, INPUTS, {"camera": trained_alone("eye")})["single"][
        "camera"
    ]
    there = data.rows(torch.arange(160))
    fused, alone = (
        metrics(evaluate.truth_of(part), probabilities(model, part)).accuracy
        for model, part in ((trained(), there), (trained_alone("eye"), there.select(["eye"])))
    )
    assert found["accuracy"] == pytest.approx(alone)
    assert found["gain"] == pytest.approx(fused - alone)


def test_shuffling_an_input_leaves_it_where_it_is_present() -> None:
    data = partly_absent()
    drops = evaluate.shuffle_drops(trained(), data.only(["eye"]).without_empty(), INPUTS)
    assert drops["microphone"] == 0
    assert drops["camera"] > 0.3
