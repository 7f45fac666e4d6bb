"""avMNIST: what fusion heads make of a picture and a sound of a digit, with either missing or disturbed.

Setting A is that of ShaSpec's table 3 (sound for a share of the training pairs, pictures alone to test),
setting B that of SimMLM (complete training pairs, every subset to test); the missing grid has either input
for a share of the training pairs, and every subset to test. All are run with our encoders and with SMIL's.
Every strategy of fusion is trained on the same frozen features. 10 pairs per class of the training part
choose the epoch and calibrate; the test part is looked at once per trained head.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

from perception.io.progress import Advance, nothing
from perception.models.checkpoint import config_hash
from perception.models.fusion import FeatureFusion, ModelFusion
from perception.reproduce.avmnist_data import CLASSES, Pairs, load, noises, split, thinned
from perception.reproduce.avmnist_recipes import DIM, OURS, SMIL, Recipe, featured
from perception.reproduce.results import Figures
from perception.training.cost import head_ms
from perception.training.evaluate import mcnemar, metrics, probabilities, shuffle_drops
from perception.training.examples import Examples
from perception.training.fit import TrainingConfig, fit
from perception.training.imbalance import REMEDIES, Imbalance, epoch_length, long_tail
from perception.training.model import FusionModel

INPUTS: Final = {"audio": "audio", "image": "image"}
SUBSETS: Final = {"both": ("audio", "image"), "image": ("image",), "audio": ("audio",)}
SETTING_A_RATES: Final = (0.05, 0.10, 0.15, 0.20)
GRID_RATES: Final = (0.20, 0.50, 0.80)
RATIOS: Final = (10, 50)
OVERSAMPLE: Final = Imbalance(remedy="oversample")
AS_LONG: Final = "none, as many steps as oversample"
"""Not a remedy: what of the others' gain is due to longer training, where rare classes leave few rows."""
REMEDIED: Final[Mapping[str, tuple[Imbalance, Imbalance]]] = {
    **{name: (Imbalance(remedy=name), Imbalance(remedy=name)) for name in REMEDIES},
    "oversample, head logit-adjustment": (OVERSAMPLE, Imbalance(remedy="logit-adjustment")),
    AS_LONG: (Imbalance(), Imbalance()),
}
"""Remedies of the encoders' and of the head's training."""
HEAD: Final = TrainingConfig(
    epochs=150, batch=128, learning_rate=2e-3, weight_decay=5e-2, patience=20, select="nll", input_dropout=0
)
_LOG: Final = logging.getLogger(__name__)


def head_of(strategy: str) -> FeatureFusion | ModelFusion:
    """Return an untrained head by the name of its strategy."""
    dims = {"audio": DIM, "image": DIM}
    match strategy.split(" + "):
        case ["model-level head" | "model-level pool" as level, *rest]:
            return ModelFusion(
                dims,
                CLASSES,
                combine="head" if level.endswith("head") else "pool",
                modality_dropout=0.5 if rest else 0.0,
            )
        case ["gated token", *rest]:
            return FeatureFusion(dims, CLASSES, "gated", dropout=0.2, modality_dropout=0.5 if rest else 0.0)
        case ["drop rows"]:
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing="zero")
        case [missing, *rest]:
            name: Any = missing
            dropout = 0.5 if rest else 0.0
            return FeatureFusion(dims, CLASSES, "mlp", dropout=0.2, missing=name, modality_dropout=dropout)
    raise ValueError(strategy)


STRATEGIES: Final = (
    "drop rows",
    "drop",
    "zero",
    "mean",
    "predict",
    "token",
    "token + modality dropout",
    "predict + modality dropout",
    "gated token",
    "gated token + modality dropout",
    "model-level head",
    "model-level head + modality dropout",
    "model-level pool",
)


def train_head(strategy: str, train: Examples, validation: Examples, config: TrainingConfig) -> FusionModel:
    """Train one strategy on features."""
    torch.manual_seed(config.seed)
    model = FusionModel(head_of(strategy))
    if strategy == "drop rows":
        train, validation = (part.rows(part.present.all(dim=1)) for part in (train, validation))
    fit(model, train, validation, config)
    return model


def run(data: Path, out: Path, seeds: int, advance: Advance = nothing) -> Figures:
    """Run every setting with its recipes; write `avmnist.json`, `.md` and `.html`.

    What a run that was interrupted has finished lies in `out`, for the next. `advance` counts the parts.
    """
    figures = Figures({f"cost ({recipe.name})": 1 for recipe in (OURS, SMIL)})
    about: dict[str, Any] = {
        "data": "MNIST training part and FSDD; 1,050 / 450 pairs",
        "seeds": seeds,
        "encoders": {recipe.name: recipe.training.model_dump() for recipe in (OURS, SMIL)},
        "head": HEAD.model_dump(),
    }
    for setting, recipe in SETTINGS:
        for seed in range(seeds):
            figures.extend(part(setting, recipe, seed, data, out))
            advance(note=f"{setting.__name__}, {recipe.name}, seed {seed}")
            _LOG.info("%s, %s, seed %d done", setting.__name__, recipe.name, seed)
    figures.save(out, "avmnist", about)
    return figures


def part(setting: "Setting", recipe: Recipe, seed: int, data: Path, out: Path) -> Figures:
    """Return the figures of one seed; an earlier run's, if it was of the same plan and came so far."""
    plan = {
        "recipe": recipe.training.model_dump(),
        "head": HEAD.model_dump(),
        "strategies": STRATEGIES,
        "remedies": list(REMEDIED),
    }
    name = f"{setting.__name__}-{recipe.name}-{seed}-{config_hash(plan)[:8]}.json"
    file = out / "parts" / name
    if file.exists():
        return Figures.read(file)
    figures = Figures()
    setting(figures, recipe, *load(data, seed), seed, out / "encoders")
    figures.write(file)
    return figures


def setting_b(
    figures: Figures, recipe: Recipe, train_pairs: Pairs, test_pairs: Pairs, seed: int, folder: Path
) -> None:
    """Every strategy trained on complete pairs, tested on both, image alone, audio alone, and noise."""
    table = f"setting B ({recipe.name})"
    train, validation = split(recipe.examples(train_pairs), seed)
    test = recipe.examples(test_pairs)
    encoders = {branch: recipe.trained(folder, "all", branch, train, seed) for branch in INPUTS}
    parts = [featured(encoders, part) for part in (train, validation, test)]
    noisy = {name: featured(encoders, recipe.examples(pairs)) for name, pairs in noises(test_pairs).items()}
    truth = test_pairs.labels.numpy()
    alone = {branch: probabilities(model, test.select([branch])) for branch, model in encoders.items()}
    for branch, p in alone.items():
        figures.add(table, f"{branch} encoder alone", branch, metrics(truth, p).accuracy)
    figures.add(table, "majority class", "both", float(np.bincount(truth).max() / len(truth)))
    averaged = softmax(np.mean([np.log(p.clip(1e-12)) for p in alone.values()], axis=0), axis=1)
    figures.add(table, "averaged logits of the encoders", "both", metrics(truth, averaged).accuracy)
    best = max(alone.values(), key=lambda p: metrics(truth, p).accuracy)
    for strategy in STRATEGIES:
        model = train_head(strategy, parts[0], parts[1], HEAD.model_copy(update={"seed": seed}))
        _score_b(figures, recipe, strategy, model, parts[2], noisy, best)
        cost = f"cost ({recipe.name})"
        parameters = [sum(p.numel() for p in one.parameters()) for one in (*encoders.values(), model)]
        figures.add(cost, strategy, "parameters, encoders included", sum(parameters))
        figures.add(cost, strategy, "head, ms per sample", head_ms(model, parts[2]))
        if strategy == "model-level pool":
            assert isinstance(model.head, ModelFusion)
            model.head.pool.reset()
            _score_b(figures, recipe, "product of experts", model, parts[2], noisy, best)


def _score_b(
    figures: Figures,
    recipe: Recipe,
    strategy: str,
    model: FusionModel,
    test: Examples,
    noisy: Mapping[str, Examples],
    best: Any,
) -> None:
    truth, table = test.labels.numpy(), f"setting B ({recipe.name})"
    for column, kept in SUBSETS.items():
        p = probabilities(model, test.only(kept))
        scored = metrics(truth, p)
        figures.add(table, strategy, column, scored.accuracy)
        if column == "both":
            figures.add(table, strategy, "macro F1 both", scored.macro_f1)
            figures.add(table, strategy, "nll both", scored.nll)
            figures.add(table, strategy, "ece both", scored.ece)
            figures.add(table, strategy, "p against best alone", mcnemar(truth, p, best))
    for name, drop in shuffle_drops(model, test, INPUTS).items():
        figures.add(table, strategy, f"{name} shuffled", -drop)
    for name, data in noisy.items():
        accuracy = metrics(truth, probabilities(model, data)).accuracy
        figures.add(f"noise ({recipe.name})", strategy, name, accuracy)


def setting_a(
    figures: Figures, recipe: Recipe, train_pairs: Pairs, test_pairs: Pairs, seed: int, folder: Path
) -> None:
    """Sound kept for a share of the training pairs only; tested on pictures alone."""
    table = f"setting A, image only ({recipe.name})"
    complete, test = recipe.examples(train_pairs), recipe.examples(test_pairs)
    for rate in SETTING_A_RATES:
        for row, column, accuracy in _thinned(recipe, complete, test, "audio", rate, seed, folder):
            if column == "image":
                figures.add(table, row, f"{rate:.0%}", accuracy)


def missing_grid(
    figures: Figures, recipe: Recipe, train_pairs: Pairs, test_pairs: Pairs, seed: int, folder: Path
) -> None:
    """Either input kept for a share of the training pairs only; tested on both, image alone, audio alone."""
    complete, test = recipe.examples(train_pairs), recipe.examples(test_pairs)
    for branch in INPUTS:
        table = f"missing grid, {branch} kept for a share of the training pairs ({recipe.name})"
        for rate in GRID_RATES:
            for row, column, accuracy in _thinned(recipe, complete, test, branch, rate, seed, folder):
                figures.add(table, row, f"{rate:.0%}: {column}", accuracy)


def _thinned(
    recipe: Recipe, complete: Examples, test: Examples, thin: str, rate: float, seed: int, folder: Path
) -> Iterator[tuple[str, str, float]]:
    """Train all that there is with `thin` kept for a share of pairs; yield row, column and test accuracy."""
    train, validation = split(thinned(complete, thin, rate, seed), seed)
    truth = test.labels.numpy()
    keys = {branch: f"{thin}-{rate:.0%}" if branch == thin else "all" for branch in INPUTS}
    encoders = {branch: recipe.trained(folder, keys[branch], branch, train, seed) for branch in INPUTS}
    for branch, model in encoders.items():
        alone = probabilities(model, test.select([branch]))
        yield f"{branch} encoder alone", branch, metrics(truth, alone).accuracy
    parts = [featured(encoders, part) for part in (train, validation, test)]
    for strategy in STRATEGIES:
        model = train_head(strategy, parts[0], parts[1], HEAD.model_copy(update={"seed": seed}))
        for column, kept in SUBSETS.items():
            p = probabilities(model, parts[2].only(kept))
            yield strategy, column, metrics(truth, p).accuracy


def imbalance(
    figures: Figures, recipe: Recipe, train_pairs: Pairs, test_pairs: Pairs, seed: int, folder: Path
) -> None:
    """Exponential imbalance of the training part; every remedy's macro recall on the even test part."""
    complete, test = recipe.examples(train_pairs), recipe.examples(test_pairs)
    for ratio in RATIOS:
        generator = torch.Generator().manual_seed(seed)
        train, validation = split(complete, seed)
        train = train.rows(long_tail(train.labels, len(CLASSES), ratio, generator))
        validation = validation.rows(long_tail(validation.labels, len(CLASSES), min(ratio, 10), generator))
        said, merits = {}, {}
        for row, stages in REMEDIED.items():
            times = epoch_length(OVERSAMPLE, train.labels) / len(train) if row == AS_LONG else 1.0
            told = _remedied(recipe, stages, times, train, validation, f"1to{ratio}", seed, folder)
            merits[row] = _balanced_merit(validation.labels.numpy(), told(validation))
            said[row] = {column: told(test.only(kept)) for column, kept in SUBSETS.items()}
        best = max((row for row in merits if row != AS_LONG), key=merits.__getitem__)
        for row, columns in (*said.items(), ("chosen on validation", said[best])):
            for column, p in columns.items():
                scored = metrics(test.labels.numpy(), p)
                figures.add(f"imbalance 1:{ratio}, macro recall", row, column, scored.macro_recall)
                figures.add(f"imbalance 1:{ratio}, macro F1", row, column, scored.macro_f1)


def _remedied(
    recipe: Recipe,
    stages: tuple[Imbalance, Imbalance],
    times: float,
    train: Examples,
    validation: Examples,
    key: str,
    seed: int,
    folder: Path,
) -> Callable[[Examples], Any]:
    """Train encoders and head under their remedies, `times` as long; return what tells probabilities."""
    own = replace(recipe, training=_longer(recipe.training, times))
    name = f"{key}-{stages[0].remedy}"
    encoders = {branch: own.trained(folder, name, branch, train, seed, stages[0]) for branch in INPUTS}
    change = {"seed": seed, "imbalance": stages[1], "select": "balanced-nll"}
    config = _longer(HEAD, times).model_copy(update=change)
    model = train_head(
        "token + modality dropout", featured(encoders, train), featured(encoders, validation), config
    )
    return lambda data: probabilities(model, featured(encoders, data))


def _longer(config: TrainingConfig, times: float) -> TrainingConfig:
    epochs, patience = round(config.epochs * times), round(config.patience * times)
    return config.model_copy(update={"epochs": epochs, "patience": patience})


def _balanced_merit(truth: Any, p: Any) -> tuple[float, float]:
    """Return macro recall, and to tell equals apart the NLL with classes equal, negated."""
    weights = compute_sample_weight("balanced", truth)
    nll = log_loss(truth, p.clip(1e-12), sample_weight=weights, labels=np.arange(p.shape[1]))
    return metrics(truth, p).macro_recall, -float(nll)


Setting = Callable[[Figures, Recipe, Pairs, Pairs, int, Path], None]
SETTINGS: Final[tuple[tuple[Setting, Recipe], ...]] = (
    (setting_b, OURS),
    (setting_a, OURS),
    (missing_grid, OURS),
    (setting_b, SMIL),
    (setting_a, SMIL),
    (missing_grid, SMIL),
    (imbalance, OURS),
)
