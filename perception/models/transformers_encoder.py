"""Base of the encoders of text, pictures and sound that use a transformers model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch

from perception.errors import WeightsError, first_line
from perception.models.weights import State, hub_folder, save_transformer, source_of

Loaded: TypeAlias = tuple[Any, Any]
"""A model and its preprocessing."""


class TransformersEncoder:
    """One half of a transformers model, fixed, in evaluation mode, with its stored preprocessing.

    Args:
        load: returns the whole model and its preprocessing, on the CPU in float32, the same at each call.
        half: returns the part of the model that encodes.
        device: to run on.
        dtype: name of the number format of the weights.
    """

    def __init__(
        self,
        load: Callable[[], tuple[Any, Any]],
        half: Callable[[Any], Any],
        device: torch.device,
        dtype: str,
    ) -> None:
        self._load, self._half, self._device = load, half, device
        whole, self._processor = load()
        self.model = half(whole).eval().requires_grad_(False).to(device, getattr(torch, dtype))

    def weights(self) -> State:
        """Return the model's parameters and buffers."""
        state: State = self.model.state_dict()
        return state

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, with the half of it that is not used here, and its preprocessing."""
        whole, processor = self._load()
        self._half(whole).load_state_dict(self.model.state_dict())
        save_transformer(folder, whole, processor)


def stored_folder(model: str, revision: str | None, weights: str | None) -> Path | None:
    """Return the folder of a stored model, None for random weights.

    Args:
        model: name on the Hub.
        revision: of the model there.
        weights: as of a profile; a local folder replaces the model on the Hub.

    Raises:
        WeightsError: the Hub's model is not in the cache and cannot be downloaded.
    """
    source, folder = source_of(weights)
    if source == "random":
        return None
    return folder if source == "local" else hub_folder(model, revision)


def load_preprocessing(kind: str, folder: Path) -> Any:
    """Load the stored preprocessing of a model of pictures or sound; raise WeightsError without one.

    Args:
        kind: `AutoImageProcessor` or `AutoFeatureExtractor`.
        folder: of the model.
    """
    import transformers

    try:
        loaded = getattr(transformers, kind)
        return loaded.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each raises errors of other types
        text = f"{folder}: no usable preprocessor_config.json there: {first_line(error)}"
        raise WeightsError(text) from error
