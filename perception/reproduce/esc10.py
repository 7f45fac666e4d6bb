"""ESC-10 (Piczak 2015): ten environmental sounds, five official folds, no outside weights.

For each test fold, the kind of head is chosen by cross-validation over the other four, then trained again on
all four. The figure is that of the kind chosen; the table shows what the others would have scored.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

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
from perception.features.logmel import LogMelConfig, log_mel
from perception.io.progress import Advance, nothing
from perception.models.fusion import FeatureFusion
from perception.models.networks import ConvEncoder
from perception.reproduce.results import Figures
from perception.training import augment
from perception.training.evaluate import metrics, probabilities
from perception.training.examples import Examples
from perception.training.fit import TrainingConfig, fit
from perception.training.imbalance import REMEDIES, Imbalance, long_tail
from perception.training.model import FusionModel

FOLDS: Final = range(1, 6)
RATE_HZ: Final = 22_050
FRONT_END: Final = LogMelConfig(RATE_HZ, 1024, 512, 1024, 64, 50.0, 11_000.0)
SECONDS: Final = 5.0
FRAMES: Final = 212
PATCH: Final = 128
"""Frames the network looks at, 3 s."""
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
Predict = Callable[[Examples], Any]


def load(data: Path) -> tuple[Examples, Any]:
    """Return log-mel pictures (N, FRAMES, 64) of all clips, and the fold of each, 1 to 5.

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
    return Examples.of({"audio": pictures}, labels, classes), np.array([int(f.name[0]) for f in files])


def _picture(file: Path) -> Any:
    sound = Sound(str(file), rate_hz=RATE_HZ, channels=1, sample_format="f32", loop=False, start=0)
    samples = np.concatenate([block[:, 0] for block in sound.blocks(8192)])
    length = round(RATE_HZ * SECONDS)
    samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
    return log_mel(samples / max(1e-3, float(np.abs(samples).max())), FRONT_END)[:FRAMES]


def statistics(pictures: torch.Tensor) -> torch.Tensor:
    """Return per band: mean, deviation, extremes, quartiles, and how much it changes, (N, 8 x bands)."""
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


def classical(train: Examples, seed: int, model: Any) -> Predict:
    """Fit a scikit-learn classifier on statistics."""
    model.fit(statistics(train.features["audio"]).numpy(), train.labels.numpy())
    return lambda data: model.predict_proba(statistics(data.features["audio"]).numpy())


def _patched(batch: Examples, generator: torch.Generator) -> Examples:
    pictures = batch.features["audio"]
    start = torch.randint(FRAMES - PATCH + 1, (len(pictures), 1), generator=generator)
    index = (start + torch.arange(PATCH))[:, :, None].expand(-1, -1, pictures.shape[2])
    patches = augment.spec_augmented(pictures.gather(1, index), generator, 0.2, 0.15)
    gain = (torch.rand(len(patches), 1, 1, generator=generator) - 0.5) * 1.0
    return replace(batch, features={"audio": (patches + gain)[:, None]})


def network(train: Examples, seed: int) -> Predict:
    """Train a convolutional network on random patches; a clip's answer is the mean over its patches."""
    torch.manual_seed(seed)
    encoder = ConvEncoder(1, (24, 48, 72, 96), DIM, (1, 2), dropout=0.3, first_stride=2)
    model = FusionModel(FeatureFusion({"audio": DIM}, train.classes), {"audio": encoder})
    mean, deviation = train.features["audio"].mean(), train.features["audio"].std()
    data = replace(train, features={"audio": (train.features["audio"] - mean) / deviation})
    few = _cut(data.rows(torch.arange(10)), 0)  # the last epoch is kept, whatever these say
    fit(model, data, few, NETWORK.model_copy(update={"seed": seed}), augment=_patched)

    def predict(test: Examples) -> Any:
        normal = replace(test, features={"audio": (test.features["audio"] - mean) / deviation})
        starts = range(0, FRAMES - PATCH + 1, 28)
        return np.mean([probabilities(model, _cut(normal, start)) for start in starts], axis=0)

    return predict


def _cut(data: Examples, start: int) -> Examples:
    return replace(data, features={"audio": data.features["audio"][:, None, start : start + PATCH]})


def train_all(train: Examples, seed: int) -> dict[str, Predict]:
    """Train every kind of head, and the mean of the two best kinds."""
    calibrated = CalibratedClassifierCV(SVC(C=10), ensemble=False)
    svm = classical(train, seed, make_pipeline(StandardScaler(), calibrated))
    kinds = {
        "random forest": classical(train, seed, RandomForestClassifier(300, random_state=seed)),
        "logistic regression": classical(
            train, seed, make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=500))
        ),
        "SVM": svm,
        "network": network(train, seed),
    }
    forest, net = kinds["random forest"], kinds["network"]
    return kinds | {
        "network + SVM": lambda data: (net(data) + svm(data)) / 2,
        "network + SVM + forest": lambda data: (net(data) + svm(data) + forest(data)) / 3,
    }


def run(data: Path, out: Path, seeds: int = 1, advance: Advance = nothing) -> Figures:
    """Score the five folds; write `esc10.json`, `.md` and `.html`; return the figures.

    `advance` counts the sets of heads that are trained.
    """
    examples, folds = load(data)
    figures = Figures()
    about = {"clips": len(examples), "seeds": seeds}
    for seed in range(seeds):
        chosen = choose(examples, folds, seed, advance)
        for fold in FOLDS:
            _score(
                figures, _without(examples, folds, [fold]), _only(examples, folds, fold), chosen[fold], seed
            )
            advance(note=f"fold {fold}")
            _LOG.info("fold %d, chosen without it: %s\n%s", fold, chosen[fold], figures.markdown())
    imbalance(figures, examples, folds, seeds, advance)
    figures.save(out, "esc10", about)
    return figures


def choose(examples: Examples, folds: Any, seed: int, advance: Advance) -> dict[int, str]:
    """Return, for each test fold, the kind of head that is best by cross-validation over the other four.

    A head trained without two folds serves both: it tells either one where the other is the test fold.
    """
    told: dict[int, list[tuple[Any, dict[str, Any]]]] = {fold: [] for fold in FOLDS}
    for pair in combinations(FOLDS, 2):
        kinds = train_all(_without(examples, folds, pair), seed)
        for test, inner in (pair, pair[::-1]):
            held = _only(examples, folds, inner)
            said = {name: predict(held) for name, predict in kinds.items()}
            told[test].append((held.labels.numpy(), said))
        advance(note=f"without folds {pair[0]} and {pair[1]}")
        _LOG.info("heads without folds %d and %d told these", *pair)
    return {fold: best_kind(parts) for fold, parts in told.items()}


def best_kind(parts: Sequence[tuple[Any, dict[str, Any]]]) -> str:
    """Return the kind right most often over all parts (labels, probabilities by kind), then of least NLL."""
    truth = np.concatenate([labels for labels, _ in parts])
    scored = {name: metrics(truth, np.concatenate([said[name] for _, said in parts])) for name in parts[0][1]}
    return max(scored, key=lambda name: (scored[name].accuracy, -scored[name].nll))


def _without(examples: Examples, folds: Any, left_out: Sequence[int]) -> Examples:
    return examples.rows(torch.from_numpy(~np.isin(folds, left_out)))


def _only(examples: Examples, folds: Any, fold: int) -> Examples:
    return examples.rows(torch.from_numpy(folds == fold))


def _score(figures: Figures, train: Examples, test: Examples, chosen: str, seed: int) -> None:
    truth = test.labels.numpy()
    for name, predict in train_all(train, seed).items():
        scored = metrics(truth, predict(test))
        figures.add("esc10, test folds", name, "accuracy", scored.accuracy)
        if name == chosen:
            for column in ("accuracy", "macro_recall", "macro_f1", "nll", "ece"):
                figures.add("esc10, test folds", "chosen", column, getattr(scored, column))


def imbalance(figures: Figures, examples: Examples, folds: Any, seeds: int, advance: Advance) -> None:
    """Exponential imbalance of the training folds; each remedy's macro recall on even test folds."""
    described = replace(examples, features={"audio": statistics(examples.features["audio"])})
    for ratio in (10, 50):
        for seed in range(seeds):
            for fold in FOLDS:
                train = _without(described, folds, [fold])
                generator = torch.Generator().manual_seed(seed)
                train = train.rows(long_tail(train.labels, len(train.classes), ratio, generator))
                test = _only(described, folds, fold)
                advance(note=f"imbalance 1:{ratio}, fold {fold}")
                for remedy in REMEDIES:
                    config = HEAD.model_copy(update={"seed": seed, "imbalance": Imbalance(remedy=remedy)})
                    torch.manual_seed(seed)
                    dims = {"audio": train.features["audio"].shape[1]}
                    model = FusionModel(FeatureFusion(dims, train.classes, "mlp", dropout=0.3))
                    fit(model, train, train, config)
                    scored = metrics(test.labels.numpy(), probabilities(model, test))
                    table = f"imbalance 1:{ratio}"
                    figures.add(table, remedy, "macro recall", scored.macro_recall)
                    figures.add(table, remedy, "macro F1", scored.macro_f1)
