"""Encoders that are trained together with a head: their inputs, augmentation and files."""

import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from perception.errors import ProfileError
from perception.models.checkpoint import ENCODERS
from perception.models.encoder import Encoding
from perception.models.precision import DTYPE, MAX_ERROR, noise
from perception.models.registry import RegisteredEncoder, build_encoder
from perception.models.text import as_bytes, as_texts
from perception.profile import FusionConfig, Section
from perception.session.recompute.perturb import typed_badly
from perception.training import augment
from perception.training.augment import Disturbance
from perception.training.examples import Examples

_ABOUT: Final = {
    **dict.fromkeys(("flip", "shift", "turn_deg", "scale", "colour", "occlusion"), "camera"),
    **dict.fromkeys(("mask_time", "mask_bands", "sound_shift"), "microphone"),
    **dict.fromkeys(("typos", "word_drops"), "text"),
}


class Trainable(RegisteredEncoder, Protocol):
    """An encoder whose features are `network(prepare(data))`.

    Prepared data can be disturbed: a picture is (3, H, W) in [0, 1], a sound (channels, frames, bands), a
    text (bytes,) uint8. An encoder that needs more files than its weights has `save_pretrained(folder)`.
    """

    network: nn.Module

    def prepare(self, data: Any, /) -> torch.Tensor:
        """Return the input of the network, without the dimension of the batch."""


class Augmentation(Section):
    """`[augment]`: random disturbances of the inputs of trained encoders; none by default."""

    flip: Annotated[bool, Field(description="mirror half of the pictures")] = False
    shift: Annotated[float, Field(ge=0, lt=1, description="share of a picture's sides")] = 0.0
    turn_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1, description="larger or smaller by this share")] = 0.0
    colour: Annotated[float, Field(ge=0, lt=1, description="contrast and brightness per channel")] = 0.0
    occlusion: Annotated[float, Field(ge=0, le=1, description="share of the sides that is blanked")] = 0.0
    mask_time: Annotated[float, Field(ge=0, le=1, description="SpecAugment: share of the frames")] = 0.0
    mask_bands: Annotated[float, Field(ge=0, le=1, description="SpecAugment: share of the bands")] = 0.0
    sound_shift: Annotated[float, Field(ge=0, lt=1, description="share of the window")] = 0.0
    typos: Annotated[float, Field(ge=0, le=1, description="share of the letters of text")] = 0.0
    word_drops: Annotated[float, Field(ge=0, le=1, description="share of the words of text")] = 0.0

    def pictures(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Disturb pictures (B, 3, H, W) in [0, 1]."""
        if self.flip or self.shift or self.turn_deg or self.scale:
            turn_rad = self.turn_deg * torch.pi / 180
            x = augment.moved(x, generator, self.shift, turn_rad, self.scale, self.flip)
        if self.colour:
            x = augment.recoloured(x, generator, self.colour)
        return augment.occluded(x, generator, self.occlusion) if self.occlusion else x

    def sounds(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Disturb spectrograms (B, channels, frames, bands), all channels of a window alike."""
        count, channels, length, bands = x.shape
        frames = x.transpose(1, 2).flatten(2)
        if self.sound_shift:
            frames = augment.time_shifted(frames, generator, self.sound_shift)
        if self.mask_time or self.mask_bands:
            frames = augment.spec_augmented(frames, generator, self.mask_time, self.mask_bands)
        return frames.view(count, length, channels, bands).transpose(1, 2)

    def texts(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Misspell texts (B, bytes) uint8, before they become tokens."""
        if not (self.typos or self.word_drops):
            return x
        rng = random.Random(int(torch.randint(2**62, (1,), generator=generator)))
        length = x.shape[1]
        typed = (typed_badly(text, rng, self.typos, self.word_drops) for text in as_texts(x))
        return torch.stack([as_bytes(text, length) for text in typed])

    def of(self, encoders: Mapping[str, Trainable]) -> Callable[[Examples, torch.Generator], Examples]:
        """Return the augmentation for `fit`."""
        by_modality: dict[str, tuple[Disturbance, int]] = {
            "camera": (self.pictures, 3),
            "microphone": (self.sounds, 3),
            "text": (self.texts, 1),
        }
        return augment.per_branch(
            {name: _over_ticks(*by_modality[encoder.modality]) for name, encoder in encoders.items()}
        )


def _over_ticks(change: Disturbance, dims: int) -> Disturbance:
    """Return a disturbance of every tick of (B, ...) or (B, K, ...); one input has `dims` dimensions."""

    def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shown = x.float() if x.is_floating_point() else x
        return change(shown.flatten(0, -1 - dims), generator).reshape(x.shape)

    return disturb


def check(file: Path, augment: Augmentation, fusion: FusionConfig, names: Iterable[str]) -> None:
    """Raise ProfileError if an encoder cannot be trained, or a disturbance has no trained encoder."""
    kinds = {encoder.modality for encoder in trainable(fusion, names, 0).values()}
    for key in sorted(augment.changed()):
        if _ABOUT[key] not in kinds:
            raise ProfileError(
                f"{file}: augment.{key}: none of train_encoders takes {_ABOUT[key]}; [[copies]] disturb the "
                "inputs of other encoders"
            )


def trainable(fusion: FusionConfig, names: Iterable[str], seed: int, layers: int = 0) -> dict[str, Trainable]:
    """Build encoders to train, with the weights that the profile names, on the CPU in float32.

    In each, only the last `layers` that hold weights are trained; all if 0.

    Raises:
        ProfileError: there is no such encoder, or it cannot be trained.
        WeightsError: weights are missing.
    """
    found: dict[str, Trainable] = {}
    for name in names:
        if name not in fusion.encoders:
            raise ProfileError(f"train_encoders: no encoder '{name}'; there are {', '.join(fusion.encoders)}")
        item = fusion.encoders[name]
        options = {key: value for key, value in item.options.items() if key != DTYPE}
        chosen = item.model_copy(update={"weights": item.weights or fusion.weights, "options": options})
        encoder: Any = build_encoder(name, chosen, device=torch.device("cpu"), seed=seed)
        if not hasattr(encoder, "prepare"):
            raise ProfileError(
                f"train_encoders: '{name}' is of kind '{item.kind}', which cannot be trained; cnn-image, "
                "cnn-sound, torchvision, vggish and those of transformers can"
            )
        for layer in _layers(name, encoder)[-layers:]:
            layer.requires_grad_(True)
        found[name] = encoder
    return found


def _layers(name: str, encoder: Trainable) -> list[nn.Module]:
    """Return the modules that hold weights and that features depend on, in their order.

    Raises:
        ProfileError: the network on prepared data returns other features than the encoder.
    """
    data, network = noise()[encoder.modality], encoder.network.requires_grad_(True)
    prepared = encoder.prepare(data)[None]
    features = network(prepared.float() if prepared.is_floating_point() else prepared)
    expected = encoder(data).features
    if not (features[0] - expected).norm() <= MAX_ERROR * expected.norm():
        raise ProfileError(
            f"train_encoders: '{name}' cannot be trained: its preprocessing is not separate from its network"
        )
    weights = list(network.parameters())
    slopes = torch.autograd.grad(features.sum(), weights, allow_unused=True)
    reached = {weight for weight, slope in zip(weights, slopes, strict=True) if slope is not None}
    network.requires_grad_(False)
    return [module for module in network.modules() if reached.intersection(module.parameters(recurse=False))]


class Prepared:
    """In place of an encoder to train: returns the input of its network instead of features."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.dim: int = encoder.dim
        self.modality: str = encoder.modality

    def __call__(self, data: Any, /) -> Encoding:
        """Prepare one input."""
        return Encoding(self._encoder.prepare(data))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return nothing: training will change the weights, so no cached data depends on them."""
        return {}


def save(folder: Path, fusion: FusionConfig, networks: Mapping[str, nn.Module]) -> None:
    """Write each encoder to FOLDER/encoders/NAME, in the form that it loads."""
    for name, encoder in trainable(fusion, networks, 0).items():
        encoder.network.load_state_dict(networks[name].state_dict())
        place = folder / ENCODERS / name
        place.mkdir(parents=True, exist_ok=True)
        if hasattr(encoder, "save_pretrained"):
            encoder.save_pretrained(place)
            continue
        state = {key: value.contiguous() for key, value in encoder.weights().items()}
        save_file(state, place / "model.safetensors")
