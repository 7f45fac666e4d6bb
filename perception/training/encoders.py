"""Encoders that are trained together with a head: what they take, what disturbs it, how they are stored."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import nn

from perception.errors import ProfileError
from perception.models.encoder import Encoding
from perception.models.registry import RegisteredEncoder, build_encoder
from perception.profile import FusionConfig, Section
from perception.training import augment
from perception.training.augment import Disturbance
from perception.training.examples import Examples

FOLDER: Final = "encoders"


class Trainable(RegisteredEncoder, Protocol):
    """An encoder whose features are `network(prepare(data))`."""

    network: nn.Module

    def prepare(self, data: Any, /) -> torch.Tensor:
        """Return what the network takes, without the dimension of the batch."""


class Augmentation(Section):
    """`[augment]`: disturbances of what trained encoders take, drawn anew each time; none by default."""

    flip: Annotated[bool, Field(description="mirror half of the pictures")] = False
    shift: Annotated[float, Field(ge=0, lt=1, description="share of a picture's sides")] = 0.0
    turn_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1, description="larger or smaller by this share")] = 0.0
    colour: Annotated[float, Field(ge=0, lt=1, description="contrast and brightness per channel")] = 0.0
    occlusion: Annotated[float, Field(ge=0, le=1, description="share of the sides that is blanked")] = 0.0
    mask_time: Annotated[float, Field(ge=0, le=1, description="SpecAugment: share of the frames")] = 0.0
    mask_bands: Annotated[float, Field(ge=0, le=1, description="SpecAugment: share of the bands")] = 0.0
    sound_shift: Annotated[float, Field(ge=0, lt=1, description="share of the window")] = 0.0

    def pictures(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Disturb pictures (B, 3, H, W) in [0, 1]."""
        if self.flip or self.shift or self.turn_deg or self.scale:
            turn_rad = self.turn_deg * torch.pi / 180
            x = augment.moved(x, generator, self.shift, turn_rad, self.scale, self.flip)
        if self.colour:
            x = augment.recoloured(x, generator, self.colour)
        return augment.occluded(x, generator, self.occlusion) if self.occlusion else x

    def sounds(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Disturb log-mel frames (B, 1, frames, bands)."""
        frames = x[:, 0]
        if self.sound_shift:
            frames = augment.time_shifted(frames, generator, self.sound_shift)
        if self.mask_time or self.mask_bands:
            frames = augment.spec_augmented(frames, generator, self.mask_time, self.mask_bands)
        return frames[:, None]

    def of(self, encoders: Mapping[str, Trainable]) -> Callable[[Examples, torch.Generator], Examples]:
        """Return the augmentation for `fit`."""
        by_modality: dict[str, Disturbance] = {"camera": self.pictures, "microphone": self.sounds}
        return augment.per_branch(
            {name: _over_ticks(by_modality[encoder.modality]) for name, encoder in encoders.items()}
        )


def _over_ticks(change: Disturbance) -> Disturbance:
    def disturb(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return change(x.float().flatten(0, -4), generator).view(x.shape)

    return disturb


def trainable(fusion: FusionConfig, names: Iterable[str], seed: int, layers: int = 0) -> dict[str, Trainable]:
    """Build encoders that can be trained, with the weights their profile names, on the CPU.

    Of each only the last `layers` that hold weights are trained, all if 0.

    Raises:
        ProfileError: there is no such encoder, or it is of a kind that cannot be trained.
        WeightsError: weights are missing.
    """
    found: dict[str, Trainable] = {}
    for name in names:
        if name not in fusion.encoders:
            raise ProfileError(f"train_encoders: no encoder '{name}'; there are {', '.join(fusion.encoders)}")
        item = fusion.encoders[name]
        chosen = item.model_copy(update={"weights": item.weights or fusion.weights})
        encoder: Any = build_encoder(name, chosen, device=torch.device("cpu"), seed=seed)
        if not hasattr(encoder, "prepare"):
            raise ProfileError(
                f"train_encoders: '{name}' is of kind '{item.kind}', which cannot be trained; "
                "cnn-image, cnn-sound, torchvision and vggish can"
            )
        for layer in _layers(encoder.network)[-layers:]:
            layer.requires_grad_(True)
        found[name] = encoder
    return found


def _layers(network: nn.Module) -> list[nn.Module]:
    """Return the modules that hold weights of their own and that features come through, in their order."""
    beside = getattr(network, "beside", ())
    return [
        module
        for module in network.modules()
        if module not in beside and next(module.parameters(recurse=False), None) is not None
    ]


class Prepared:
    """Stands for an encoder that is to be trained: instead of features, what its network takes."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.dim: int = encoder.dim
        self.modality: str = encoder.modality

    def __call__(self, data: Any, /) -> Encoding:
        """Prepare one input."""
        return Encoding(self._encoder.prepare(data))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return nothing: weights that are about to change decide nothing."""
        return {}


def save(folder: Path, fusion: FusionConfig, networks: Mapping[str, nn.Module]) -> None:
    """Write each encoder as FOLDER/encoders/NAME/model.safetensors, as the encoder itself loads it."""
    for name, encoder in trainable(fusion, networks, 0).items():
        encoder.network.load_state_dict(networks[name].state_dict())
        place = folder / FOLDER / name
        place.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in encoder.weights().items()}
        save_file(state, place / "model.safetensors")
