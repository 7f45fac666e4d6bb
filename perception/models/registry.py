"""Encoder kinds by name; the module of a kind and its packages are loaded at its first use."""

from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

import torch

from perception.errors import ProfileError, WeightsError
from perception.models.encoder import Encoder
from perception.models.options import KINDS as KINDS
from perception.models.options import EncoderOptions, options_of, unknown_kind
from perception.profile import EncoderConfig


class RegisteredEncoder(Encoder[Any], Protocol):
    """Interface of all encoder classes here."""

    Options: ClassVar[type[EncoderOptions]]
    modality: ClassVar[str]
    """Modality that it reads: camera, microphone or text."""

    def __init__(
        self, options: Any, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None: ...


_AUDIO: Final = "perception.models.audio"
_CNN: Final = "perception.models.cnn"
_DETECTORS: Final = "perception.models.detectors"
_TEXT: Final = "perception.models.text"
_VISION: Final = "perception.models.vision"
_MODULES: Final = {
    "torchvision": (_VISION, "TorchvisionEncoder"),
    "cnn-image": (_CNN, "CnnImageEncoder"),
    "cnn-sound": (_CNN, "CnnSoundEncoder"),
    "transformers-vision": (_VISION, "TransformersVisionEncoder"),
    "faces": (_DETECTORS, "HaarFaces"),
    "aruco": (_DETECTORS, "ArucoMarkers"),
    "motion": (_DETECTORS, "Motion"),
    "transformers-text": (_TEXT, "TransformersTextEncoder"),
    "tfidf": (_TEXT, "TfidfIntents"),
    "transformers-audio": ("perception.models.transformers_audio", "TransformersAudioEncoder"),
    **dict.fromkeys(("vggish", "mfcc", "silero", "level"), (_AUDIO, "AUDIO_ENCODERS")),
}


def encoder_class(kind: str) -> type[RegisteredEncoder]:
    """Return the class of an encoder kind; raise ProfileError, which lists the kinds, for an unknown one."""
    if kind not in _MODULES:
        raise ProfileError(unknown_kind(kind))
    module, name = _MODULES[kind]
    found: Any = getattr(import_module(module), name)
    encoder: type[RegisteredEncoder] = found[kind] if isinstance(found, dict) else found
    return encoder


def build_encoder(name: str, config: EncoderConfig, *, device: torch.device, seed: int) -> RegisteredEncoder:
    """Build the encoder of `[fusion.encoders.NAME]`.

    Raises:
        ProfileError: unknown kind or option; it names the encoder and the key.
        WeightsError: its weights are missing or do not fit.
    """
    options = options_of(name, config)
    try:
        return encoder_class(config.kind)(options, device=device, seed=seed, weights=config.weights)
    except (ProfileError, WeightsError) as error:
        raise type(error)(f"fusion.encoders.{name}: {error}") from error
