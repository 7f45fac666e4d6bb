"""HWU64 (Liu et al. 2019): which of 64 intents a typed command to a home robot has, one shipped fold.

Pipeline and strength are chosen by cross-validation on the training part; the test part is scored once.
"""

import json
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from perception.errors import PerceptionError
from perception.training.benchmarks.results import Figures
from perception.training.evaluate import metrics

STRENGTHS: Final = (0.5, 1.0)
NGRAMS: Final = {"words": (2, None), "words+characters": (2, (2, 5)), "words+short characters": (3, (1, 4))}
INNER_FOLDS: Final = 3
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


def features(name: str) -> Any:
    """Return an unfitted vectoriser by its name in NGRAMS."""
    longest, characters = NGRAMS[name]
    words = TfidfVectorizer(ngram_range=(1, longest), token_pattern=WORDS, sublinear_tf=True)
    if characters is None:
        return words
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=characters, sublinear_tf=True))


def run(data: Path, out: Path, seeds: int = 1) -> Figures:
    """Choose, train and score; write `hwu64.json` and `.md`; return the figures."""
    texts, intents = load(data, "train")
    classes, labels = np.unique(intents, return_inverse=True)
    figures = Figures()
    choices: dict[tuple[str, float], float] = {}
    decisions: dict[tuple[str, float], Any] = {}
    folds = StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=0)
    for name in NGRAMS:
        for strength in STRENGTHS:
            pipeline = make_pipeline(features(name), LinearSVC(C=strength))
            told = cross_val_predict(pipeline, texts, labels, cv=folds, method="decision_function")
            choices[name, strength] = float((told.argmax(axis=1) == labels).mean())
            decisions[name, strength] = told
            figures.add(
                "hwu64, cross-validated on train",
                f"{name}, C={strength}",
                "accuracy",
                choices[name, strength],
            )
            _LOG.info("%s, C=%s: %.4f", name, strength, choices[name, strength])
    name, strength = max(choices, key=lambda choice: choices[choice])
    temperature = _temperature(decisions[name, strength], labels)
    model = make_pipeline(features(name), LinearSVC(C=strength)).fit(texts, labels)
    test_texts, test_intents = load(data, "test")
    truth = np.searchsorted(classes, test_intents)
    p = np.exp(log_softmax(model.decision_function(test_texts) / temperature, axis=1))
    scored = metrics(truth, p)
    for column in ("accuracy", "macro_recall", "macro_precision", "macro_f1", "nll", "ece"):
        figures.add("hwu64, test fold 1", f"TF-IDF {name}, linear SVM", column, getattr(scored, column))
    majority = float((truth == np.bincount(labels).argmax()).mean())
    figures.add("hwu64, test fold 1", "majority class", "accuracy", majority)
    about = {"train": len(texts), "test": len(truth), "classes": len(classes), "temperature": temperature}
    figures.save(out, "hwu64", about)
    return figures


def _temperature(decisions: Any, labels: Any) -> float:
    """Return the softmax temperature with the least NLL of decisions made without the row in training."""
    rows = np.arange(len(labels))

    def nll(log_t: float) -> float:
        return -float(log_softmax(decisions / np.exp(log_t), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(nll, bounds=(-5, 3), method="bounded").x))
