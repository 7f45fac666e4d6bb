"""Encoder kinds by name; a kind's module and the packages behind it load when it is first asked for."""

from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

import torch
from pydantic import ValidationError

from perception.errors import ProfileError, WeightsError
from perception.models.encoder import Encoder
from perception.profile import EncoderConfig, Section


class RegisteredEncoder(Encoder[Any], Protocol):
    """What every encoder class here is besides callable."""

    Options: ClassVar[type[Section]]
    modality: ClassVar[str]
    """The kind of topic it reads: camera, microphone or text."""

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
KINDS: Final = tuple(_MODULES)


def encoder_class(kind: str) -> type[RegisteredEncoder]:
    """Return the class of an encoder kind; ProfileError lists the kinds if there is none."""
    if kind not in _MODULES:
        raise ProfileError(f"'{kind}' is no kind of encoder; kinds are {', '.join(KINDS)}")
    module, name = _MODULES[kind]
    found: Any = getattr(import_module(module), name)
    encoder: type[RegisteredEncoder] = found[kind] if isinstance(found, dict) else found
    return encoder


def build_encoder(name: str, config: EncoderConfig, *, device: torch.device, seed: int) -> RegisteredEncoder:
    """Build the encoder of `[fusion.encoders.NAME]`.

    Raises:
        ProfileError: unknown kind or option; names the encoder and the key.
        WeightsError: its weights are missing or do not fit.
    """
    try:
        encoder = encoder_class(config.kind)
    except ProfileError as error:
        raise ProfileError(f"fusion.encoders.{name}.kind: {error}") from error
    try:
        options = encoder.Options.model_validate(config.options)
    except ValidationError as error:
        problems = "; ".join(_explain(name, detail, encoder.Options) for detail in error.errors())
        raise ProfileError(problems) from error
    try:
        return encoder(options, device=device, seed=seed, weights=config.weights)
    except (ProfileError, WeightsError) as error:
        raise type(error)(f"fusion.encoders.{name}: {error}") from error


def _explain(name: str, detail: Any, options: type[Section]) -> str:
    key = ".".join(str(part) for part in ("fusion.encoders", name, "options", *detail["loc"]))
    if detail["type"] == "extra_forbidden":
        known = ", ".join(options.model_fields) or "none"
        return f"{key}: no such option; options are {known}"
    return f"{key}: {detail['msg'].removeprefix('Value error, ')} (got {str(detail['input'])[:60]!r})"
