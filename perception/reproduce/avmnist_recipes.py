"""Encoders of avMNIST, each trained alone, as in published runs, then frozen: a new recipe, and SMIL's.

SMIL: every third sample, 20 MFCC on 20 frames, LeNet-5, 60 epochs of Adam at 1e-3, nothing augmented. The
paper does not state how the picture of MFCC is scaled; here a batch norm at the input scales it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn
from torchaudio.transforms import MFCC

from perception.features.logmel import log_mel
from perception.features.resample import resample
from perception.io.beside import replace_file
from perception.models.checkpoint import config_hash
from perception.models.fusion import FeatureFusion
from perception.models.networks import ConvEncoder
from perception.reproduce.avmnist_data import CLASSES, RATE_HZ, Pairs
from perception.training import augment
from perception.training.augment import Disturbance
from perception.training.examples import Examples
from perception.training.fit import Augment, fit
from perception.training.fit_config import TrainingConfig
from perception.training.imbalance import Imbalance
from perception.training.model import FusionModel

INPUTS: Final = {"audio": "audio", "image": "image"}
"""By branch: its input, of the same name."""
DIM: Final = 64
BANDS: Final = 48
"""The mel bands up to 4 kHz, all that 8 kHz sound has."""
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to compute the features of pairs."""

    name: str
    pictures_of_sound: Callable[[torch.Tensor], torch.Tensor]
    """From waveforms (N, SAMPLES) to (N, 1, H, W)."""
    encoder: Callable[[str], nn.Module]
    """Untrained, by branch: (N, 1, H, W) to (N, DIM)."""
    training: TrainingConfig
    disturbances: Mapping[str, Disturbance]

    def examples(self, pairs: Pairs) -> Examples:
        """Return the inputs of the encoders."""
        inputs = {"image": pairs.images, "audio": self.pictures_of_sound(pairs.waveforms)}
        return Examples.of(inputs, pairs.labels, CLASSES)

    def untrained(self, branch: str) -> FusionModel:
        """Return the untrained encoder of one branch with a linear head."""
        return FusionModel(FeatureFusion({branch: DIM}, CLASSES), {branch: self.encoder(branch)})

    def train(self, branch: str, data: Examples, seed: int, remedy: Imbalance) -> FusionModel:
        """Return the encoder of one branch, trained on the rows where it is present."""
        torch.manual_seed(seed)
        model = self.untrained(branch)
        own = data.rows(data.present[:, data.branches.index(branch)]).select([branch])
        few = own.rows(torch.arange(min(len(own), 10)))  # the last epoch is kept, so their loss is not used
        config = self.training.model_copy(update={"seed": seed, "imbalance": remedy})
        fit(model, own, few, config, augment=self._augmentation(branch))
        return model

    def _augmentation(self, branch: str) -> Augment | None:
        change = self.disturbances.get(branch)
        return augment.per_branch({branch: change}) if change else None

    def trained(
        self, folder: Path, key: str, branch: str, data: Examples, seed: int, remedy: Imbalance | None = None
    ) -> FusionModel:
        """Return a trained encoder, loaded if an earlier run has trained it; `key` names its data."""
        remedy = remedy or Imbalance()
        plan = {"training": self.training.model_dump(), "key": key, "remedy": remedy.remedy}
        file = folder / f"{self.name}-{key}-{seed}-{branch}-{config_hash(plan)[:8]}.safetensors"
        if file.exists():
            model = self.untrained(branch)
            model.load_state_dict(load_file(file))
            return model.eval()
        model = self.train(branch, data, seed, remedy)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, save(model.state_dict()))
        _LOG.info("trained %s", file.stem)
        return model


@torch.no_grad()
def featured(encoders: Mapping[str, FusionModel], data: Examples) -> Examples:
    """Return the examples with features in place of pictures and sounds."""
    features = {branch: _encoded(encoders[branch].eval(), branch, data) for branch in sorted(encoders)}
    return replace(data, features=features)


def _encoded(model: FusionModel, branch: str, data: Examples) -> torch.Tensor:
    parts = torch.split(data.features[branch], 256)
    present = [torch.ones(len(x), 1, dtype=torch.bool) for x in parts]
    return torch.cat([model.encode({branch: x}, p)[branch] for x, p in zip(parts, present, strict=True)])


def spectrograms(waveforms: torch.Tensor) -> torch.Tensor:
    """Return log-mel pictures (N, 1, 48, 48): VGGish's front end, pairs of frames averaged, mean removed."""
    frames = [log_mel(resample(wave.numpy(), RATE_HZ, 16_000)) for wave in waveforms]
    stacked = torch.from_numpy(np.stack([frame[:96, :BANDS] for frame in frames]))
    pooled = stacked.view(len(stacked), 48, 2, BANDS).mean(dim=2)
    return ((pooled - pooled.mean(dim=(1, 2), keepdim=True)) / 2)[:, None]


def mfcc_pictures(waveforms: torch.Tensor) -> torch.Tensor:
    """Return 20 MFCC on 20 frames (N, 1, 20, 20), with the default settings of librosa."""
    mel = {"n_fft": 2048, "hop_length": 512, "n_mels": 128, "mel_scale": "slaney", "norm": "slaney"}
    pictures = MFCC(sample_rate=16_000, n_mfcc=20, melkwargs=mel)(waveforms[:, None, ::3])
    return F.pad(pictures, (0, 20 - pictures.shape[-1]))


def _convolutional(branch: str) -> nn.Module:
    if branch == "audio":
        return ConvEncoder(1, (16, 32, 64), DIM, (3, 3), dropout=0.2, first_stride=2)
    return ConvEncoder(1, (12, 24, 48), DIM, (3, 3), dropout=0.2)


def _lenet(branch: str) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; its last hidden layer has DIM units, not 84."""
    flat = 16 * (5 * 5 if branch == "image" else 3 * 3)
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    hidden = [nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, DIM), nn.ReLU()]
    return nn.Sequential(nn.BatchNorm2d(1), *convolutions, *hidden)


def _augment_audio(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shifted = augment.time_shifted(x[:, 0], generator, 0.12)
    return augment.spec_augmented(shifted, generator, 0.2, 0.2)[:, None]


def _augment_image(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return augment.moved(x, generator, shift=0.08)


OURS: Final = Recipe(
    "ours",
    spectrograms,
    _convolutional,
    TrainingConfig(
        epochs=30,
        batch=64,
        learning_rate=5e-3,
        schedule="one-cycle",
        select="last",
        auxiliary=0,
        input_dropout=0,
    ),
    {"audio": _augment_audio, "image": _augment_image},
)
SMIL: Final = Recipe(
    "SMIL",
    mfcc_pictures,
    _lenet,
    TrainingConfig(
        epochs=60,
        batch=64,
        learning_rate=1e-3,
        weight_decay=0,
        select="last",
        auxiliary=0,
        input_dropout=0,
    ),
    {},
)
