"""Texts compared by their words and spelling alone: TF-IDF, no weights, no torch."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_ALIKE: Final = 0.75
"""Words with a larger share of common letters are spellings of one: `stopp`, `stop`; not `wall`, `call`."""
_PART: Final = 3
"""Letters that a word needs to match inside another: `ball` in `football`, not `on` in `motion`."""


def phrase_vectorizer() -> Any:
    """Return TF-IDF over words and their pairs and over character n-grams, not fitted."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
    )


def lexical_similarity(text: str, others: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return how much a text resembles each of n others by its words and spelling alone, (n,) in [0, 1].

    The cosine of TF-IDF over words and their pairs and over character n-grams, fitted on the others.
    """
    from sklearn.metrics.pairwise import cosine_similarity

    if not any(character.isalnum() for other in others for character in other):
        return np.zeros(len(others), np.float32)
    vectorizer = phrase_vectorizer()
    known = vectorizer.fit_transform(others)
    similarity = cosine_similarity(known, vectorizer.transform([text]))
    return np.asarray(similarity[:, 0], np.float32)


def shares_word(text: str, others: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return which of n others have a word in common with a text, spelling errors allowed, (n,).

    TF-IDF alone is similar for words with common letters too: `barking` and `talking`.
    """
    wanted = _words(text)
    known = {word: any(_alike(word, one) for one in wanted) for other in others for word in _words(other)}
    return np.array([any(known[word] for word in _words(other)) for other in others], bool)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _alike(one: str, other: str) -> bool:
    shorter, longer = sorted((one, other), key=len)
    inside = shorter in longer and (len(shorter) >= _PART or not shorter.isascii())
    return one == other or inside or SequenceMatcher(None, one, other).ratio() > _ALIKE
