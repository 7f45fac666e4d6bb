"""Embedders: pictures, sounds and texts as unit vectors in one space, to search one by another.

Two-tower models of transformers: CLIP and similar ones for pictures and text, CLAP for sounds and text, and
any text model for sentences. The scalar product of two vectors is their cosine.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch

from perception.errors import WeightsError
from perception.io.home import expanded
from perception.models.encoder import TextInput
from perception.models.images import check_bgr
from perception.models.text import TransformersTextEncoder, load_tokenizer
from perception.models.transformers_audio import TransformersAudioEncoder
from perception.models.transformers_encoder import load_preprocessing
from perception.models.weights import hub_folder, load_transformer, weights_hash
from perception.units.arrays import Image

Vectors = npt.NDArray[np.float32]
_TOKENS: Final = 64
"""Texts are padded to this length, as SigLIP was trained; other models get a mask of the padding."""


class PictureEmbedder:
    """A transformers model of pictures and text, such as CLIP or SigLIP.

    Args:
        model: a local folder, or a name on the Hub.
        device: to run on.

    Raises:
        WeightsError: weights not found, or the model has no common space.
    """

    def __init__(self, model: str, *, device: torch.device) -> None:
        folder = model_folder(model)
        loaded = load_transformer(folder, 0)
        self._embed = _tower(loaded, "get_image_features", folder)
        self._processor = load_preprocessing("AutoImageProcessor", folder)
        self._text = _TextTower(loaded, folder, device)
        self._device = device
        self.hash = weights_hash(loaded.eval().requires_grad_(False).to(device).state_dict())

    @torch.no_grad()
    def pictures(self, images: Sequence[Image]) -> Vectors:
        """Embed (height, width, 3) BGR images of any sizes into (n, dim)."""
        rgb = [torch.from_numpy(cv2.cvtColor(check_bgr(image), cv2.COLOR_BGR2RGB)) for image in images]
        tensors = [image.to(self._device).permute(2, 0, 1) for image in rgb]
        inputs = self._processor(images=tensors, return_tensors="pt", device=self._device)
        return _unit(self._embed(pixel_values=inputs["pixel_values"]))

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts into (n, dim)."""
        return self._text(texts)


class SoundEmbedder:
    """A transformers model of sounds and text, such as CLAP; arguments and errors as of PictureEmbedder."""

    def __init__(self, model: str, *, device: torch.device) -> None:
        folder = model_folder(model)
        options = TransformersAudioEncoder.Options()
        self._encoder = TransformersAudioEncoder(options, device=device, seed=0, weights=str(folder))
        _tower(self._encoder.model, "get_audio_features", folder)
        self._text = _TextTower(self._encoder.model, folder, device)
        self.hash = weights_hash(self._encoder.weights())

    def sound(self, waveform: npt.NDArray[np.float32], rate_hz: int) -> Vectors:
        """Embed (samples,) mono into (1, dim); of sound longer than the model's input, the end is used."""
        return _unit(self._encoder.features(waveform, rate_hz)[None])

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts into (n, dim)."""
        return self._text(texts)


class SentenceEmbedder:
    """The mean over the last states of a text model; arguments and errors as of PictureEmbedder."""

    def __init__(self, model: str, *, device: torch.device) -> None:
        options = TransformersTextEncoder.Options(max_tokens=256)
        folder = str(model_folder(model))
        self._encoder = TransformersTextEncoder(options, device=device, seed=0, weights=folder)
        self.hash = weights_hash(self._encoder.weights())

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Embed texts into (n, dim)."""
        features = [self._encoder(TextInput(text)).features for text in texts]
        return _unit(torch.stack(features)) if features else np.zeros((0, self._encoder.dim), np.float32)


def model_folder(model: str) -> Path:
    """Return the folder of a model, a folder or a name on the Hub; raise WeightsError if not found."""
    path = expanded(model)
    return path if path.is_dir() else hub_folder(model)


class _TextTower:
    """The text half of a two-tower model."""

    def __init__(self, model: Any, folder: Path, device: torch.device) -> None:
        self._embed = _tower(model, "get_text_features", folder)
        self._tokenizer = load_tokenizer(folder)
        self._device = device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Vectors:
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
        )
        return _unit(self._embed(**tokens.to(self._device)))


def _tower(model: Any, name: str, folder: Path) -> Any:
    if not hasattr(model, name):
        kind, wanted = type(model).__name__, name.removeprefix("get_").removesuffix("_features")
        raise WeightsError(f"{folder}: a {kind} has no common space with {wanted}; give CLIP or CLAP")
    return getattr(model, name)


def _unit(output: Any) -> Vectors:
    """Return the normalised rows of a tower's output: a tensor, or an object with one."""
    features = output if isinstance(output, torch.Tensor) else output.pooler_output
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    vectors: Vectors = unit.cpu().numpy()
    return vectors
