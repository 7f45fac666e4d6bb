"""ESC-10 (Piczak 2015): ten environmental sounds, five official folds, no outside weights.

For each test fold, the kind of head is chosen by cross-validation over the other four folds, then trained
again on all four. The figure is that of the chosen kind; the table also shows the scores of the others.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from perception.devices.sound import Sound
from perception.errors import PerceptionError
from perception.features.logmel import Frames, LogMelConfig, log_mel
from perception.io.progress import Advance, nothing
from perception.models.fusion import FeatureFusion
from perception.models.networks import ConvEncoder
from perception.reproduce.arrays import Floats, Rows
from perception.reproduce.results import Figures
from perception.training import augment
from perception.training.evaluate import probabilities
from perception.training.examples import Examples
from perception.training.fit import fit
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import REMEDIES, Imbalance, RemedyName, long_tail
from perception.training.model import FusionModel
from perception.training.scores import Labels, Probabilities, metrics

FOLDS: Final = range(1, 6)
RATE_HZ: Final = 22_050
FRONT_END: Final = LogMelConfig(RATE_HZ, 1024, 512, 1024, 64, 50.0, 11_000.0)
SECONDS: Final = 5.0
FRAMES: Final = 212
PATCH: Final = 128
"""Frames of one input of the network, 3 s."""
DIM: Final = 96
NETWORK: Final = TrainingConfig(
    epochs=60,
    batch=32,
    learning_rate=4e-3,
    weight_decay=2e-2,
    schedule="one-cycle",
    select="last",
    auxiliary=0,
    imbalance=Imbalance(smoothing=0.1),
)
HEAD: Final = TrainingConfig(
    epochs=60, batch=64, learning_rate=3e-3, weight_decay=0.1, schedule="cosine", select="last"
)
_LOG: Final = logging.getLogger(__name__)
Predict = Callable[[Examples], Probabilities]


class Classifier(Protocol):
    """The interface of a classifier of scikit-learn."""

    def fit(self, x: Floats, y: Labels) -> object:
        """Fit rows (N, D) and their classes (N,)."""

    def predict_proba(self, x: Floats) -> Probabilities:
        """Return probabilities (N, C)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Training configurations of the network and of heads."""

    network: TrainingConfig
    head: TrainingConfig


PUBLISHED: Final = Plan(NETWORK, HEAD)


@dataclass(frozen=True, slots=True)
class Clips:
    """Every clip, and the fold of each."""

    examples: Examples
    """`audio` (N, FRAMES, 64) log-mel, or the statistics of `described`."""
    folds: Rows
    """(N,) 1 to 5."""

    def without(self, folds: Sequence[int]) -> Examples:
        """Return the clips of the other folds."""
        return self.examples.rows(torch.from_numpy(~np.isin(self.folds, folds)))

    def only(self, fold: int) -> Examples:
        """Return the clips of one fold."""
        return self.examples.rows(torch.from_numpy(self.folds == fold))

    def described(self) -> "Clips":
        """Return the clips with `statistics` in place of log-mel."""
        described = {"audio": statistics(self.examples.features["audio"])}
        return replace(self, examples=replace(self.examples, features=described))


def load(data: Path) -> Clips:
    """Read all clips.

    Raises:
        PerceptionError: no folders `NNN-Class` with ogg files whose names begin with the fold.
    """
    files = sorted(data.glob("*-*/*.ogg"))
    if not files:
        raise PerceptionError(f"{data}: no ESC-10 clips there; expected 001-Dog_bark/1-100032-A.ogg")
    names = [file.parent.name.partition("-")[2] for file in files]
    classes = sorted(set(names))
    pictures = torch.from_numpy(np.stack([_picture(file) for file in files]))
    labels = torch.tensor([classes.index(name) for name in names])
    folds = np.array([int(file.name[0]) for file in files])
    return Clips(Examples.of({"audio": pictures}, labels, classes), folds)


def _picture(file: Path) -> Frames:
    sound = Sound(str(file), rate_hz=RATE_HZ, channels=1, sample_format="f32", loop=False, start=0)
    samples = np.concatenate([block[:, 0] for block in sound.blocks(8192)])
    length = round(RATE_HZ * SECONDS)
    samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
    return log_mel(samples / max(1e-3, float(np.abs(samples).max())), FRONT_END)[:FRAMES]


def statistics(pictures: torch.Tensor) -> torch.Tensor:
    """Return per band: mean, deviation, extremes, quartiles, deviation of changes, (N, 8 x bands)."""
    change = pictures.diff(dim=1)
    quartiles = torch.quantile(pictures, torch.tensor([0.25, 0.5, 0.75]), dim=1)
    parts = [
        pictures.mean(dim=1),
        pictures.std(dim=1),
        pictures.amin(dim=1),
        pictures.amax(dim=1),
        *quartiles,
        change.std(dim=1),
    ]
    return torch.cat(parts, dim=1)


def classical(train: Examples, model: Classifier) -> Predict:
    """Return the predictions of a classifier fitted on statistics."""
    model.fit(statistics(train.features["audio"]).numpy(), train.labels.numpy())
    return lambda data: model.predict_proba(statistics(data.features["audio"]).numpy())


def _patched(batch: Examples, generator: torch.Generator) -> Examples:
    pictures = batch.features["audio"]
    start = torch.randint(FRAMES - PATCH + 1, (len(pictures), 1), generator=generator)
    index = (start + torch.arange(PATCH))[:, :, None].expand(-1, -1, pictures.shape[2])
    patches = augment.spec_augmented(pictures.gather(1, index), generator, 0.2, 0.15)
    gain = (torch.rand(len(patches), 1, 1, generator=generator) - 0.5) * 1.0
    return replace(batch, features={"audio": (patches + gain)[:, None]})


def network(train: Examples, config: TrainingConfig) -> Predict:
    """Train a convolutional network on random patches; a clip's probabilities are means over its patches."""
    torch.manual_seed(config.seed)
    encoder = ConvEncoder(1, (24, 48, 72, 96), DIM, (1, 2), dropout=0.3, first_stride=2)
    model = FusionModel(FeatureFusion({"audio": DIM}, train.classes), {"audio": encoder})
    mean, deviation = train.features["audio"].mean(), train.features["audio"].std()
    data = replace(train, features={"audio": (train.features["audio"] - mean) / deviation})
    few = _cut(data.rows(torch.arange(10)), 0)  # the last epoch is kept, so their loss is not used
    fit(model, data, few, config, augment=_patched)

    def predict(test: Examples) -> Probabilities:
        normal = replace(test, features={"audio": (test.features["audio"] - mean) / deviation})
        starts = range(0, FRAMES - PATCH + 1, 28)
        p: Probabilities = np.mean([probabilities(model, _cut(normal, start)) for start in starts], axis=0)
        return p

    return predict


def _cut(data: Examples, start: int) -> Examples:
    return replace(data, features={"audio": data.features["audio"][:, None, start : start + PATCH]})


def train_all(train: Examples, seed: int, plan: Plan) -> dict[str, Predict]:
    """Return the predictions of every kind of head, and of averages of the best kinds."""
    calibrated = CalibratedClassifierCV(SVC(C=10), ensemble=False)
    svm = classical(train, make_pipeline(StandardScaler(), calibrated))
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=500))
    kinds = {
        "random forest": classical(train, RandomForestClassifier(300, random_state=seed)),
        "logistic regression": classical(train, regression),
        "SVM": svm,
        "network": network(train, plan.network.model_copy(update={"seed": seed})),
    }
    forest, net = kinds["random forest"], kinds["network"]
    return kinds | {
        "network + SVM": lambda data: (net(data) + svm(data)) / 2,
        "network + SVM + forest": lambda data: (net(data) + svm(data) + forest(data)) / 3,
    }


def run(data: Path, out: Path, seeds: int = 1, advance: Advance = nothing, plan: Plan = PUBLISHED) -> Figures:
    """Score the five folds; write `esc10.json`, `.md` and `.html`; return the figures.

    `advance` counts the sets of heads that are trained.
    """
    clips = load(data)
    figures = Figures()
    for seed in range(seeds):
        chosen = choose(clips, seed, plan, advance)
        for fold in FOLDS:
            heads = train_all(clips.without([fold]), seed, plan)
            _score(figures, heads, clips.only(fold), chosen[fold])
            advance(note=f"fold {fold}")
            _LOG.info("fold %d, chosen without it: %s\n%s", fold, chosen[fold], figures.markdown())
    imbalance(figures, clips.described(), seeds, plan, advance)
    figures.save(out, "esc10", {"clips": len(clips.examples), "seeds": seeds})
    return figures


def choose(clips: Clips, seed: int, plan: Plan, advance: Advance) -> dict[int, str]:
    """Return, for each test fold, the kind of head that is best by cross-validation over the other four.

    A head trained without two folds is used for both: it is scored on one where the other is the test fold.
    """
    parts: dict[int, list[tuple[Labels, dict[str, Probabilities]]]] = {fold: [] for fold in FOLDS}
    for pair in combinations(FOLDS, 2):
        kinds = train_all(clips.without(pair), seed, plan)
        for test, inner in (pair, pair[::-1]):
            left_out = clips.only(inner)
            inferred = {name: predict(left_out) for name, predict in kinds.items()}
            parts[test].append((left_out.labels.numpy(), inferred))
        advance(note=f"without folds {pair[0]} and {pair[1]}")
        _LOG.info("heads without folds %d and %d scored on these", *pair)
    return {fold: best_kind(scored) for fold, scored in parts.items()}


def best_kind(parts: Sequence[tuple[Labels, Mapping[str, Probabilities]]]) -> str:
    """Return the kind with best accuracy, then least NLL, over parts (labels, probabilities by kind)."""
    truth = np.concatenate([labels for labels, _ in parts])
    scored = {
        name: metrics(truth, np.concatenate([inferred[name] for _, inferred in parts]))
        for name in parts[0][1]
    }
    return max(scored, key=lambda name: (scored[name].accuracy, -scored[name].nll))


def _score(figures: Figures, heads: Mapping[str, Predict], test: Examples, chosen: str) -> None:
    table = "esc10, test folds"
    for name, predict in heads.items():
        scored = metrics(test.labels.numpy(), predict(test))
        figures.add(table, name, "accuracy", scored.accuracy)
        if name == chosen:
            figures.add_metrics(table, "chosen", scored)


def imbalance(figures: Figures, clips: Clips, seeds: int, plan: Plan, advance: Advance) -> None:
    """Add the macro recall of each remedy on balanced test folds, after exponential imbalance in training.

    Args:
        figures: take the scores.
        clips: described by statistics.
        seeds: of the remaining rows and of the head.
        plan: of the head.
        advance: counts the folds.
    """
    for ratio, seed, fold in product((10, 50), range(seeds), FOLDS):
        train, test = clips.without([fold]), clips.only(fold)
        generator = torch.Generator().manual_seed(seed)
        train = train.rows(long_tail(train.labels, len(train.classes), ratio, generator))
        advance(note=f"imbalance 1:{ratio}, fold {fold}")
        for remedy in REMEDIES:
            model = _remedied(train, remedy, plan.head.model_copy(update={"seed": seed}))
            scored = metrics(test.labels.numpy(), probabilities(model, test))
            figures.add(f"imbalance 1:{ratio}", remedy, "macro recall", scored.macro_recall)
            figures.add(f"imbalance 1:{ratio}", remedy, "macro F1", scored.macro_f1)


def _remedied(train: Examples, remedy: RemedyName, config: TrainingConfig) -> FusionModel:
    torch.manual_seed(config.seed)
    dims = {"audio": train.features["audio"].shape[1]}
    model = FusionModel(FeatureFusion(dims, train.classes, "mlp", dropout=0.3))
    fit(model, train, train, config.model_copy(update={"imbalance": Imbalance(remedy=remedy)}))
    return model
