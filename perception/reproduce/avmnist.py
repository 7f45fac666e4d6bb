"""avMNIST: fusion heads on a picture and a sound of a digit, with either missing or disturbed.

Setting A is that of ShaSpec's table 3: sound for a share of the training pairs, tested on pictures alone.
Setting B is that of SimMLM: complete training pairs, tested on every subset. The missing grid has either
input for a share of the training pairs, and is tested on every subset. All are run with the encoders of this
package and with those of SMIL. Every strategy of fusion is trained on the same frozen features. 10 pairs per
class of the training part choose the epoch and calibrate. The test part is scored once per trained head.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from perception.io.progress import Advance, nothing
from perception.models.checkpoint import config_hash
from perception.models.fusion import ModelFusion
from perception.reproduce.arrays import softmax
from perception.reproduce.avmnist_data import CLASSES, Pairs, load, noises, split, thinned
from perception.reproduce.avmnist_heads import (
    AS_LONG,
    HEAD,
    OVERSAMPLE,
    REMEDIED,
    STRATEGIES,
    Remedies,
    balanced_merit,
    longer,
    train_head,
)
from perception.reproduce.avmnist_recipes import INPUTS, OURS, SMIL, Recipe, featured
from perception.reproduce.results import Figures
from perception.training.cost import head_ms
from perception.training.evaluate import probabilities, shuffle_drops
from perception.training.examples import Examples
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import epoch_length, long_tail
from perception.training.model import FusionModel
from perception.training.scores import Labels, Probabilities, mcnemar, metrics

SUBSETS: Final = {"both": ("audio", "image"), "image": ("image",), "audio": ("audio",)}
SETTING_A_RATES: Final = (0.05, 0.10, 0.15, 0.20)
GRID_RATES: Final = (0.20, 0.50, 0.80)
RATIOS: Final = (10, 50)
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings, recipes and heads to train and score."""

    settings: Sequence[tuple["Setting", Recipe]]
    head: TrainingConfig
    strategies: Sequence[str]
    remedied: Mapping[str, Remedies]


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe on one pairing of pictures with sounds."""

    plan: Plan
    recipe: Recipe
    train_pairs: Pairs
    test_pairs: Pairs
    seed: int
    folder: Path
    """Folder in which trained encoders are stored for the next run."""

    @property
    def head(self) -> TrainingConfig:
        """The training configuration of heads."""
        return self.plan.head.model_copy(update={"seed": self.seed})

    @property
    def truth(self) -> Labels:
        """The digits of the test pairs, (N,)."""
        labels: Labels = self.test_pairs.labels.numpy()
        return labels

    def examples(self) -> tuple[Examples, Examples]:
        """Return the inputs of the encoders for the training pairs and the test pairs."""
        return self.recipe.examples(self.train_pairs), self.recipe.examples(self.test_pairs)

    def encoders(self, keys: Mapping[str, str], train: Examples) -> dict[str, FusionModel]:
        """Return an encoder per branch, trained on `train`; `keys` name its data by branch."""
        return {
            branch: self.recipe.trained(self.folder, keys[branch], branch, train, self.seed)
            for branch in INPUTS
        }


Setting = Callable[[Figures, Trial], None]


def run(data: Path, out: Path, seeds: int, advance: Advance = nothing, plan: Plan | None = None) -> Figures:
    """Run every setting with its recipes; write `avmnist.json`, `.md` and `.html`.

    Finished parts are stored in `out`; a run resumes from the parts of an interrupted one.

    Args:
        data: see `avmnist_data.load`.
        out: folder of the results.
        seeds: pairings of pictures with sounds.
        advance: counts the parts.
        plan: by default PUBLISHED.
    """
    plan = plan or PUBLISHED
    recipes = {recipe.name: recipe for _, recipe in plan.settings}
    figures = Figures({f"cost ({name})": 1 for name in recipes})
    about = {
        "data": "MNIST training part and FSDD; 1,050 / 450 pairs",
        "seeds": seeds,
        "encoders": {name: recipe.training.model_dump() for name, recipe in recipes.items()},
        "head": plan.head.model_dump(),
    }
    for setting, recipe in plan.settings:
        for seed in range(seeds):
            figures.extend(_part(plan, setting, recipe, seed, data, out))
            advance(note=f"{setting.__name__}, {recipe.name}, seed {seed}")
            _LOG.info("%s, %s, seed %d done", setting.__name__, recipe.name, seed)
    figures.save(out, "avmnist", about)
    return figures


def _part(plan: Plan, setting: Setting, recipe: Recipe, seed: int, data: Path, out: Path) -> Figures:
    """Return the figures of one seed, from an earlier run if it finished them with the same plan."""
    identity = {
        "recipe": recipe.training.model_dump(),
        "head": plan.head.model_dump(),
        "strategies": list(plan.strategies),
        "remedies": list(plan.remedied),
    }
    file = out / "parts" / f"{setting.__name__}-{recipe.name}-{seed}-{config_hash(identity)[:8]}.json"
    if file.exists():
        return Figures.read(file)
    figures = Figures()
    setting(figures, Trial(plan, recipe, *load(data, seed), seed, out / "encoders"))
    figures.write(file)
    return figures


def setting_b(figures: Figures, trial: Trial) -> None:
    """Train every strategy on complete pairs; test on both, image alone, audio alone, and noise."""
    complete, raw = trial.examples()
    train, validation = split(complete, trial.seed)
    encoders = trial.encoders(dict.fromkeys(INPUTS, "all"), train)
    train, validation, test = (featured(encoders, part) for part in (train, validation, raw))
    disturbed = {
        name: featured(encoders, trial.recipe.examples(pairs))
        for name, pairs in noises(trial.test_pairs).items()
    }
    name = trial.recipe.name
    best = _add_alone(figures, f"setting B ({name})", encoders, raw)
    scores = _Scores(figures, name, test, disturbed, best)
    for strategy in trial.plan.strategies:
        model = train_head(strategy, train, validation, trial.head)
        scores.add(strategy, model)
        parameters = [sum(p.numel() for p in one.parameters()) for one in (*encoders.values(), model)]
        figures.add(f"cost ({name})", strategy, "parameters, encoders included", sum(parameters))
        figures.add(f"cost ({name})", strategy, "head, ms per sample", head_ms(model, test))
        if strategy == "model-level pool":
            assert isinstance(model.head, ModelFusion)
            model.head.pool.reset()
            scores.add("product of experts", model)


def _add_alone(
    figures: Figures, table: str, encoders: Mapping[str, FusionModel], test: Examples
) -> Probabilities:
    """Add scores that need no fusion head; return the probabilities (N, C) of the better encoder alone."""
    truth: Labels = test.labels.numpy()
    alone = {branch: probabilities(model, test.select([branch])) for branch, model in encoders.items()}
    accuracy = {branch: metrics(truth, p).accuracy for branch, p in alone.items()}
    for branch, value in accuracy.items():
        figures.add(table, f"{branch} encoder alone", branch, value)
    figures.add(table, "majority class", "both", float(np.bincount(truth).max() / len(truth)))
    averaged = softmax(np.mean([np.log(p.clip(1e-12)) for p in alone.values()], axis=0))
    figures.add(table, "averaged logits of the encoders", "both", metrics(truth, averaged).accuracy)
    return alone[max(accuracy, key=accuracy.__getitem__)]


@dataclass(frozen=True, slots=True)
class _Scores:
    """Adds the scores of models of setting B."""

    figures: Figures
    recipe: str
    test: Examples
    disturbed: Mapping[str, Examples]
    best: Probabilities
    """(N, C) of the better encoder alone."""

    def add(self, row: str, model: FusionModel) -> None:
        """Add the scores of one model on every subset, with an input shuffled, and under disturbances."""
        table, truth = f"setting B ({self.recipe})", self.test.labels.numpy()
        for column, kept in SUBSETS.items():
            p = probabilities(model, self.test.only(kept))
            scored = metrics(truth, p)
            self.figures.add(table, row, column, scored.accuracy)
            if column == "both":
                self.figures.add(table, row, "macro F1 both", scored.macro_f1)
                self.figures.add(table, row, "nll both", scored.nll)
                self.figures.add(table, row, "ece both", scored.ece)
                self.figures.add(table, row, "p against best alone", mcnemar(truth, p, self.best))
        for name, drop in shuffle_drops(model, self.test, INPUTS).items():
            self.figures.add(table, row, f"{name} shuffled", -drop)
        for name, data in self.disturbed.items():
            accuracy = metrics(truth, probabilities(model, data)).accuracy
            self.figures.add(f"noise ({self.recipe})", row, name, accuracy)


def setting_a(figures: Figures, trial: Trial) -> None:
    """Keep sound for a share of the training pairs; test on pictures alone."""
    table = f"setting A, image only ({trial.recipe.name})"
    parts = trial.examples()
    for rate in SETTING_A_RATES:
        for row, column, accuracy in _thinned(trial, *parts, "audio", rate):
            if column == "image":
                figures.add(table, row, f"{rate:.0%}", accuracy)


def missing_grid(figures: Figures, trial: Trial) -> None:
    """Keep either input for a share of the training pairs; test on both, image alone, audio alone."""
    parts = trial.examples()
    for branch in INPUTS:
        table = f"missing grid, {branch} kept for a share of the training pairs ({trial.recipe.name})"
        for rate in GRID_RATES:
            for row, column, accuracy in _thinned(trial, *parts, branch, rate):
                figures.add(table, row, f"{rate:.0%}: {column}", accuracy)


def _thinned(
    trial: Trial, complete: Examples, raw: Examples, thin: str, rate: float
) -> Iterator[tuple[str, str, float]]:
    """Train everything with `thin` kept for a share of the pairs; yield row, column and test accuracy."""
    train, validation = split(thinned(complete, thin, rate, trial.seed), trial.seed)
    keys = {branch: f"{thin}-{rate:.0%}" if branch == thin else "all" for branch in INPUTS}
    encoders = trial.encoders(keys, train)
    for branch, model in encoders.items():
        alone = probabilities(model, raw.select([branch]))
        yield f"{branch} encoder alone", branch, metrics(trial.truth, alone).accuracy
    train, validation, test = (featured(encoders, part) for part in (train, validation, raw))
    for strategy in trial.plan.strategies:
        model = train_head(strategy, train, validation, trial.head)
        for column, kept in SUBSETS.items():
            p = probabilities(model, test.only(kept))
            yield strategy, column, metrics(trial.truth, p).accuracy


def imbalance(figures: Figures, trial: Trial) -> None:
    """Add the macro recall of every remedy on the test part, after exponential imbalance in training."""
    complete, test = trial.examples()
    for ratio in RATIOS:
        generator = torch.Generator().manual_seed(trial.seed)
        train, validation = split(complete, trial.seed)
        train = train.rows(long_tail(train.labels, len(CLASSES), ratio, generator))
        validation = validation.rows(long_tail(validation.labels, len(CLASSES), min(ratio, 10), generator))
        inferred, merits = {}, {}
        for row, remedies in trial.plan.remedied.items():
            times = epoch_length(OVERSAMPLE, train.labels) / len(train) if row == AS_LONG else 1.0
            infer = _remedied(trial, remedies, times, train, validation, f"1to{ratio}")
            merits[row] = balanced_merit(validation.labels.numpy(), infer(validation))
            inferred[row] = {column: infer(test.only(kept)) for column, kept in SUBSETS.items()}
        best = max((row for row in merits if row != AS_LONG), key=merits.__getitem__)
        for row, columns in (*inferred.items(), ("chosen on validation", inferred[best])):
            for column, p in columns.items():
                scored = metrics(trial.truth, p)
                figures.add(f"imbalance 1:{ratio}, macro recall", row, column, scored.macro_recall)
                figures.add(f"imbalance 1:{ratio}, macro F1", row, column, scored.macro_f1)


def _remedied(
    trial: Trial, remedies: Remedies, times: float, train: Examples, validation: Examples, key: str
) -> Callable[[Examples], Probabilities]:
    """Train encoders and head under their remedies, `times` as long; return a function that infers."""
    own = replace(trial.recipe, training=longer(trial.recipe.training, times))
    name = f"{key}-{remedies.encoders.remedy}"
    encoders = {
        branch: own.trained(trial.folder, name, branch, train, trial.seed, remedies.encoders)
        for branch in INPUTS
    }
    change = {"imbalance": remedies.head, "select": "balanced-nll"}
    config = longer(trial.head, times).model_copy(update=change)
    trained, held_out = featured(encoders, train), featured(encoders, validation)
    model = train_head("token + modality dropout", trained, held_out, config)
    return lambda data: probabilities(model, featured(encoders, data))


PUBLISHED: Final = Plan(
    (
        (setting_b, OURS),
        (setting_a, OURS),
        (missing_grid, OURS),
        (setting_b, SMIL),
        (setting_a, SMIL),
        (missing_grid, SMIL),
        (imbalance, OURS),
    ),
    HEAD,
    STRATEGIES,
    REMEDIED,
)
