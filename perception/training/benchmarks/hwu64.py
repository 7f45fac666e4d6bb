"""HWU64 (Liu et al. 2019): which of 64 intents a typed command to a home robot has, one shipped fold.

Every set of classifiers is tried by cross-validation on the training part, their calibrated probabilities
averaged; the best set is trained again on all of it, and the test part is scored once, with that.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from perception.errors import PerceptionError
from perception.training.benchmarks.results import Figures
from perception.training.evaluate import metrics, subsets

INNER_FOLDS: Final = 5
WORDS: Final = r"(?u)\b\w+\b"
_LOG: Final = logging.getLogger(__name__)


def load(data: Path, part: str) -> tuple[list[str], list[str]]:
    """Return texts and intents of `train` or `test`; PerceptionError if they are not there."""
    file = data / f"{part}_fold1.json"
    try:
        examples = json.loads(file.read_text(encoding="utf-8"))["rasa_nlu_data"]["common_examples"]
    except (OSError, ValueError, KeyError) as error:
        raise PerceptionError(f"{file}: no HWU64 fold there: {error}") from error
    return [item["text"] for item in examples], [item["intent"] for item in examples]


def words(longest: int) -> TfidfVectorizer:
    """Return TF-IDF of word n-grams, unfitted."""
    return TfidfVectorizer(ngram_range=(1, longest), token_pattern=WORDS, sublinear_tf=True)


def characters(shortest: int, longest: int) -> TfidfVectorizer:
    """Return TF-IDF of character n-grams within words, unfitted."""
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(shortest, longest), sublinear_tf=True)


def classifiers() -> dict[str, Any]:
    """Return unfitted classifiers by name."""
    both = make_union(words(2), characters(2, 5))
    short = make_union(words(1), characters(2, 4))
    return {
        "SVM on words": make_pipeline(words(2), LinearSVC(C=0.5)),
        "SVM on words and characters": make_pipeline(both, LinearSVC(C=1.0)),
        "SVM on words and short characters": make_pipeline(short, LinearSVC(C=0.3)),
        "logistic regression on words": make_pipeline(words(2), LogisticRegression(C=20, max_iter=60)),
    }


def run(data: Path, out: Path, seeds: int = 1) -> Figures:
    """Choose, train and score; write `hwu64.json`, `.md` and `.html`; return the figures.

    Args:
        data: holds `train_fold1.json` and `test_fold1.json`.
        out: folder of the results.
        seeds: how many ways of cutting the training part the choice rests on.
    """
    texts, intents = load(data, "train")
    classes, labels = np.unique(intents, return_inverse=True)
    figures = Figures()
    names, temperatures = choose(figures, texts, labels, seeds)
    test_texts, test_intents = load(data, "test")
    truth = np.searchsorted(classes, test_intents)
    told = []
    for name in names:
        model = classifiers()[name].fit(texts, labels)
        told.append(softmax(model.decision_function(test_texts) / temperatures[name], axis=1))
    scored = metrics(truth, np.mean(told, axis=0))
    row = " + ".join(names)
    for column in ("accuracy", "macro_recall", "macro_precision", "macro_f1", "nll", "ece"):
        figures.add("hwu64, test fold 1", row, column, getattr(scored, column))
    majority = float((truth == np.bincount(labels).argmax()).mean())
    figures.add("hwu64, test fold 1", "majority class", "accuracy", majority)
    about = {"train": len(texts), "test": len(truth), "classes": len(classes), "temperatures": temperatures}
    figures.save(out, "hwu64", about)
    return figures


def choose(
    figures: Figures, texts: Sequence[str], labels: Any, seeds: int
) -> tuple[tuple[str, ...], Mapping[str, float]]:
    """Return the set of classifiers that is right most often where it was not trained, and temperatures."""
    right: dict[tuple[str, ...], list[float]] = {}
    temperatures: dict[str, float] = {}
    for seed in range(seeds):
        folds = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=seed)
        told = {}
        for name, pipeline in classifiers().items():
            decisions = cross_val_predict(pipeline, texts, labels, cv=folds, method="decision_function")
            temperatures[name] = temperature(decisions, labels)
            told[name] = softmax(decisions / temperatures[name], axis=1)
        for names in subsets(list(told)):
            scored = metrics(labels, np.mean([told[name] for name in names], axis=0))
            right.setdefault(names, []).append(scored.accuracy)
            row = " + ".join(names)
            figures.add("hwu64, cross-validated on train", row, "accuracy", scored.accuracy)
            figures.add("hwu64, cross-validated on train", row, "nll", scored.nll)
        _LOG.info("choice, seed %d\n%s", seed, figures.markdown())
    return max(right, key=lambda names: float(np.mean(right[names]))), temperatures


def temperature(decisions: Any, labels: Any) -> float:
    """Return the softmax temperature with the least NLL of decisions made without the row in training."""
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return -float(log_softmax(decisions / np.exp(log_t), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=(-5, 3), method="bounded").x))
