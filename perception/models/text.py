"""Text encoders: any transformers text model, and TF-IDF intents fitted on a few example phrases."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from string import ascii_lowercase, digits, punctuation
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import torch
from torch import nn

from perception.errors import WeightsError, first_line
from perception.messages import BranchState
from perception.models.encoder import Encoding, TextInput
from perception.models.lexical import phrase_vectorizer
from perception.models.options import OTHER, TfidfOptions, TransformersTextOptions
from perception.models.transformers_encoder import Loaded, TransformersEncoder, stored_folder
from perception.models.weights import load_transformer, seeded

_BYTES_PER_TOKEN: Final = 16
"""Bytes of a text stored for training; words of any language have fewer on average."""


def as_bytes(text: str, length: int) -> torch.Tensor:
    """Return a text's UTF-8 as (length,) uint8, cut or padded with zeros."""
    row = torch.zeros(length, dtype=torch.uint8)
    kept = bytearray(text.encode()[:length])
    if kept:
        row[: len(kept)] = torch.frombuffer(kept, dtype=torch.uint8)
    return row


def as_texts(rows: torch.Tensor) -> list[str]:
    """Return the texts of (n, length) uint8, without a last character that was cut."""
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows.cpu().numpy()]


class TextNetwork(nn.Module):
    """A text model with its tokenizer: masked mean over the last hidden states.

    Args:
        model: of transformers.
        tokenizer: of its checkpoint.
        max_tokens: longer texts are cut.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Return features (n, dim) float32."""
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        states = self.model(**tokens).last_hidden_state.float()  # (n, T, D)
        mask = tokens["attention_mask"][:, :, None].float()
        features: torch.Tensor = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        return features

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Encode texts given as bytes (n, length) uint8, equal ones once."""
        different, which = torch.unique(rows, dim=0, return_inverse=True)
        return self.encode(as_texts(different))[which]


class TransformersTextEncoder(TransformersEncoder):
    """Masked mean over the last hidden states of a transformers text model.

    The text tower of a two-tower model (CLIP, CLAP) and the encoder half of an encoder-decoder (T5) are
    used alone. `weights = "random"` is a BERT of the real bert-base size over a vocabulary of characters.
    """

    Options: TypeAlias = TransformersTextOptions
    modality: ClassVar[str] = "text"

    def __init__(self, options: Options, *, device: torch.device, **others: Any) -> None:
        super().__init__(partial(_load_text, options, **others), _text_half, device, options.dtype)
        self.network = TextNetwork(self.model, self._processor, options.max_tokens)
        self._bytes = _BYTES_PER_TOKEN * options.max_tokens
        self.dim = int(self.model.config.hidden_size)

    @torch.no_grad()
    def __call__(self, data: TextInput, /) -> Encoding:
        """Encode one command."""
        return Encoding(self.network.encode([data.text])[0])

    def prepare(self, data: TextInput, /) -> torch.Tensor:
        """Return the network's input for training: the text as uint8, which augmentation can change."""
        return as_bytes(data.text, self._bytes)


def _load_text(options: TransformersTextOptions, seed: int, weights: str | None = None) -> Loaded:
    """Return model and tokenizer, on the CPU in float32."""
    folder = stored_folder(options.model, options.revision, weights)
    if folder is None:
        return _random_bert(seed)
    return load_transformer(folder, seed), load_tokenizer(folder)


def _text_half(model: Any) -> Any:
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return getattr(model, "text_model", model)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a transformers folder; raise WeightsError if there is none with words."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise WeightsError(f"{folder}: no usable tokenizer there: {first_line(error)}") from error
    # A missing vocabulary raises no error: every word becomes the unknown one.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise WeightsError(f"{folder}: its tokenizer has no words; tokenizer.json or vocab.txt is missing")
    return tokenizer


def _random_bert(seed: int) -> tuple[Any, Any]:
    from transformers import BertConfig, BertModel, BertTokenizer

    characters = ascii_lowercase + digits + punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    with seeded(seed):
        model = BertModel(BertConfig())
    return model, BertTokenizer(vocab={word: index for index, word in enumerate(words)})


class TfidfIntents:
    """Intent of a command, fitted at the start on the example phrases in the profile.

    TF-IDF over words and their pairs and over character n-grams (robust to typing errors), then logistic
    regression. A command that resembles no example, by cosine, is `other`. Features: one score per intent
    in the profile's order, the score of `other`, and that best cosine.
    """

    Options: TypeAlias = TfidfOptions
    modality: ClassVar[str] = "text"
    cpu_only: ClassVar[bool] = True
    SOFTNESS: ClassVar = 0.05
    """Width in cosine of the transition from `other` to an intent."""

    def __init__(
        self, options: Options, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        self._threshold = options.threshold
        self.labels = (*(name for name in options.intents if name != OTHER), OTHER)
        phrases = [phrase for examples in options.intents.values() for phrase in examples]
        targets = [name for name, examples in options.intents.items() for _ in examples]
        self._vectorizer = phrase_vectorizer()
        self._examples = self._vectorizer.fit_transform(phrases)
        self._norms = np.sqrt(self._examples.multiply(self._examples).sum(axis=1)).A1
        self._coefficients, self._intercepts, self._classes = _fit(self._examples, targets)
        self.dim = len(self.labels) + 1

    def __call__(self, data: TextInput, /) -> Encoding:
        """Score one command."""
        x = self._vectorizer.transform([data.text])
        cosine = self._best_cosine(x)
        known = 1 / (1 + np.exp((self._threshold - cosine) / self.SOFTNESS))
        logits = (x @ self._coefficients.T)[0] + self._intercepts
        p = np.exp(logits - logits.max())
        scores = dict.fromkeys(self.labels, 0.0)
        for name, probability in zip(self._classes, p / p.sum(), strict=True):
            scores[name] = float(known * probability)
        scores[OTHER] += float(1 - known)
        features = torch.tensor([*scores.values(), cosine], dtype=torch.float32)
        return Encoding(features, BranchState(labels=self.labels, scores=tuple(scores.values())))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the fitted coefficients; the vocabulary follows from the options."""
        fitted = {"coefficients": self._coefficients, "intercepts": self._intercepts}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fitted.items()}

    def _best_cosine(self, x: Any) -> float:
        norm = float(np.sqrt(x.multiply(x).sum()))
        if norm == 0:
            return 0.0
        products = (self._examples @ x.T).toarray().ravel()
        return float((products / np.maximum(self._norms, 1e-12)).max() / norm)


def _fit(examples: Any, targets: Sequence[str]) -> tuple[Any, Any, list[str]]:
    """Return coefficients (K, V), intercepts (K,) and class names of a softmax over the intents."""
    from sklearn.linear_model import LogisticRegression

    classes = sorted(set(targets))
    if len(classes) == 1:
        return np.zeros((1, examples.shape[1])), np.zeros(1), classes
    model = LogisticRegression(C=10.0, max_iter=1000, tol=1e-6, class_weight="balanced")
    model.fit(examples, targets)
    coefficients, intercepts = model.coef_, model.intercept_
    if len(classes) == 2:  # one logit for the second class: the same softmax with a first logit of 0
        coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([[0.0], intercepts])
    return coefficients, intercepts, classes
