"""HWU64 (Liu et al. 2019): the intent, one of 64, of a typed command to a home robot; one shipped fold.

Every set of classifiers is scored by cross-validation on the training part, by the average of their
calibrated probabilities. The best set is trained again on the whole training part, and scored once on the
test part.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC
from torch import nn

from perception.errors import PerceptionError
from perception.io.progress import Advance, nothing
from perception.io.text_file import read_text
from perception.reproduce.arrays import Floats, log_softmax, softmax
from perception.reproduce.results import Figures
from perception.training.evaluate import subsets
from perception.training.scores import Labels, metrics

INNER_FOLDS: Final = 5
BATCH: Final = 128
COLUMNS: Final = ("accuracy", "macro_recall", "macro_precision", "macro_f1", "nll", "ece")
WORDS: Final = r"(?u)\b\w+\b"
_LOG: Final = logging.getLogger(__name__)


def load(data: Path, part: str) -> tuple[list[str], list[str]]:
    """Return texts and intents of `train` or `test`.

    Raises:
        PerceptionError: the fold cannot be read, or does not have the format of Rasa training data.
    """
    file = data / f"{part}_fold1.json"
    try:
        examples = json.loads(read_text(file))["rasa_nlu_data"]["common_examples"]
    except (OSError, ValueError, KeyError) as error:
        raise PerceptionError(f"{file}: no HWU64 fold there: {error}") from error
    return [item["text"] for item in examples], [item["intent"] for item in examples]


def words(longest: int) -> TfidfVectorizer:
    """Return TF-IDF of word n-grams, unfitted."""
    return TfidfVectorizer(ngram_range=(1, longest), token_pattern=WORDS, sublinear_tf=True)


def characters(shortest: int, longest: int) -> TfidfVectorizer:
    """Return TF-IDF of character n-grams within words, unfitted."""
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True)


class Network(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """One hidden layer over sparse features, with dropout of features; logits are means over members.

    Args:
        members: networks that differ by their seed.
        hidden: units.
        epochs: of one-cycle AdamW.
        dropped: share of the features of an example that each training step leaves out.
        rarest: features that fewer examples have are left out.
    """

    def __init__(
        self, members: int = 2, hidden: int = 128, epochs: int = 12, dropped: float = 0.3, rarest: int = 3
    ) -> None:
        self.members, self.hidden, self.epochs = members, hidden, epochs
        self.dropped, self.rarest = dropped, rarest

    def fit(self, x: csr_matrix, labels: Labels) -> "Network":
        """Fit a sparse matrix (N, D) and labels (N,)."""
        self.classes_, targets = np.unique(labels, return_inverse=True)
        self._kept = np.flatnonzero(np.asarray((x > 0).sum(axis=0)).ravel() >= self.rarest)
        rows = x.tocsr()[:, self._kept].astype(np.float32)
        self._fitted = [self._member(rows, torch.from_numpy(targets), seed) for seed in range(self.members)]
        return self

    def _member(self, x: csr_matrix, targets: torch.Tensor, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        weight = nn.Parameter(torch.randn(x.shape[1], self.hidden) * 0.05)
        layers = [nn.BatchNorm1d(self.hidden), nn.ReLU(), nn.Dropout(0.5)]
        head = nn.Sequential(*layers, nn.Linear(self.hidden, len(self.classes_)))
        head.register_parameter("weight", weight)
        optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1e-2)
        batches = -(-len(targets) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=self.epochs * batches)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(targets)).chunk(batches):
                logits = head(_bagged(x[rows.numpy()], weight, self.dropped))
                loss = F.cross_entropy(logits, targets[rows], label_smoothing=0.1)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
        return head.eval()

    @torch.no_grad()
    def decision_function(self, x: csr_matrix) -> Floats:
        """Return logits (N, C), float32."""
        rows = x.tocsr()[:, self._kept].astype(np.float32)
        logits = torch.stack([head(_bagged(rows, head.get_parameter("weight"))) for head in self._fitted])
        mean: Floats = logits.mean(dim=0).numpy()
        return mean

    def predict(self, x: csr_matrix) -> Labels:
        """Return classes (N,)."""
        classes: Labels = self.classes_[self.decision_function(x).argmax(axis=1)]
        return classes


def _bagged(x: csr_matrix, weight: torch.Tensor, dropped: float = 0.0) -> torch.Tensor:
    """Return the product of sparse rows (B, D) and weights (D, hidden)."""
    values = F.dropout(torch.from_numpy(x.data), dropped, training=dropped > 0)
    places, starts = torch.from_numpy(x.indices).long(), torch.from_numpy(x.indptr[:-1]).long()
    return F.embedding_bag(places, weight, starts, mode="sum", per_sample_weights=values)


def classifiers() -> dict[str, Pipeline]:
    """Return unfitted classifiers by name; each is deterministic."""
    both = make_union(words(2), characters(2, 5))
    short = make_union(words(1), characters(2, 4))
    return {
        "SVM on words": make_pipeline(words(2), LinearSVC(C=0.5, random_state=0)),
        "SVM on words and characters": make_pipeline(both, LinearSVC(C=1.0, random_state=0)),
        "SVM on words and short characters": make_pipeline(short, LinearSVC(C=0.3, random_state=0)),
        "network on words and characters": make_pipeline(make_union(words(2), characters(3, 5)), Network()),
    }


def run(data: Path, out: Path, seeds: int = 1, advance: Advance = nothing) -> Figures:
    """Choose, train and score; write `hwu64.json`, `.md` and `.html`; return the figures.

    Args:
        data: holds `train_fold1.json` and `test_fold1.json`.
        out: folder of the results.
        seeds: how many splits of the training part the choice is based on.
        advance: counts the trained classifiers.
    """
    texts, intents = load(data, "train")
    classes, labels = np.unique(intents, return_inverse=True)
    figures = Figures()
    names, temperatures = choose(figures, texts, labels, seeds, advance)
    test_texts, test_intents = load(data, "test")
    truth = np.searchsorted(classes, test_intents)
    inferred = []
    for name in names:
        advance(note=f"{name}, on all")
        model = classifiers()[name].fit(texts, labels)
        inferred.append(softmax(model.decision_function(test_texts), temperatures[name]))
    scored, table = metrics(truth, np.mean(inferred, axis=0)), "hwu64, test fold 1"
    figures.add_metrics(table, " + ".join(names), scored, COLUMNS)
    majority = float((truth == np.bincount(labels).argmax()).mean())
    figures.add(table, "majority class", "accuracy", majority)
    about = {"train": len(texts), "test": len(truth), "classes": len(classes), "temperatures": temperatures}
    figures.save(out, "hwu64", about)
    return figures


def choose(
    figures: Figures, texts: Sequence[str], labels: Labels, seeds: int, advance: Advance
) -> tuple[tuple[str, ...], Mapping[str, float]]:
    """Return the classifiers with the best accuracy on rows they were not trained on, and temperatures.

    Args:
        figures: receives the scores of every set of classifiers.
        texts: of the training part.
        labels: (N,) int64.
        seeds: how many splits of the training part.
        advance: counts the trained classifiers.
    """
    right: dict[tuple[str, ...], list[float]] = {}
    temperatures: dict[str, float] = {}
    for seed in range(seeds):
        folds = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=seed)
        inferred = {}
        for name, pipeline in classifiers().items():
            advance(note=f"{name}, seed {seed}")
            decisions: Floats = cross_val_predict(
                pipeline, texts, labels, cv=folds, method="decision_function"
            )
            temperatures[name] = temperature(decisions, labels)
            inferred[name] = softmax(decisions, temperatures[name])
        for names in subsets(list(inferred)):
            scored = metrics(labels, np.mean([inferred[name] for name in names], axis=0))
            right.setdefault(names, []).append(scored.accuracy)
            row = " + ".join(names)
            figures.add_metrics("hwu64, cross-validated on train", row, scored, ("accuracy", "nll"))
        _LOG.info("choice, seed %d\n%s", seed, figures.markdown())
    return max(right, key=lambda names: float(np.mean(right[names]))), temperatures


def temperature(decisions: Floats, labels: Labels) -> float:
    """Return the softmax temperature with the least NLL.

    Args:
        decisions: (N, C) logits of classifiers that were not trained on the row.
        labels: (N,) int64.
    """
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return -float(log_softmax(decisions / np.exp(log_t))[rows, labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=(-5, 3), method="bounded").x))
