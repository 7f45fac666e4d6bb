"""Types of the arrays of recipes, and functions of SciPy with types, which SciPy does not have."""

import numpy as np
import numpy.typing as npt
import scipy.special

from perception.training.scores import Probabilities

Floats = npt.NDArray[np.floating]
"""float32 or float64."""
Rows = npt.NDArray[np.int64]
"""(N,) numbers of rows."""
Right = npt.NDArray[np.bool_]
"""(N,) whether each row was inferred correctly."""


def softmax(logits: Floats, temperature: float = 1.0) -> Probabilities:
    """Return probabilities (N, C), float64, of logits (N, C) over a temperature."""
    p: Probabilities = scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1)
    return p


def log_softmax(logits: Floats, axis: int = 1) -> Floats:
    """Return log-probabilities over an axis."""
    log_p: Floats = scipy.special.log_softmax(logits, axis=axis)
    return log_p


def logsumexp(values: Floats, axis: int) -> Floats:
    """Return the logarithm of the sum of exponentials over an axis."""
    total: Floats = scipy.special.logsumexp(values, axis=axis)
    return total
