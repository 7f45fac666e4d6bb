"""Any transformers audio model as an encoder: AST, CLAP's audio half, wav2vec 2 and similar ones."""

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from perception.errors import ProfileError
from perception.features.resample import resample
from perception.models.encoder import AudioInput, Encoding
from perception.models.options import TransformersAudioOptions
from perception.models.transformers_encoder import (
    Loaded,
    TransformersEncoder,
    load_preprocessing,
    stored_folder,
)
from perception.models.weights import load_transformer, seeded

SAMPLE_RATE_HZ: Final = 16_000


_MASK: Final = "attention_mask"


class AudioNetwork(nn.Module):
    """An audio model on preprocessed windows, as pictures (n, channels, frames, bands).

    A waveform has frames of one band.

    Args:
        model: of transformers.
        example: output of the preprocessing for one sound.
        bands: of its spectrogram; for a model that takes (bands, frames) they are transposed.
    """

    def __init__(self, model: Any, example: Mapping[str, torch.Tensor], bands: int) -> None:
        super().__init__()
        self.model = model
        self._encode = getattr(model, "get_audio_features", model)
        self.main = str(model.main_input_name)
        if self.main not in example:
            (self.main,) = (name for name in example if name.startswith("input_"))
        shape = example[self.main].shape[1:]
        self._rank = len(shape)
        self._bands_first = len(shape) == 2 and shape[0] == bands != shape[1]
        self._constant = {name: x for name, x in example.items() if name not in (self.main, _MASK)}

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return features (n, dim) float32 of preprocessed inputs."""
        dtype = next(self.model.parameters()).dtype
        output = self._encode(**{k: x.to(dtype) if x.is_floating_point() else x for k, x in inputs.items()})
        pooled = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
        features: torch.Tensor = output.last_hidden_state.float().mean(dim=1) if pooled is None else pooled
        return features.float()

    def picture(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return one window's (channels, frames, bands)."""
        if not inputs.get(_MASK, torch.ones(1)).all():
            raise ProfileError(
                "its preprocessing pads the sound, which cannot be trained; give the profile's input the "
                "length that the model is made for"
            )
        x = inputs[self.main][0]
        x = x[:, None] if self._rank == 1 else x
        x = x if self._rank == 3 else x[None]
        return x.transpose(1, 2) if self._bands_first else x

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Encode (n, channels, frames, bands) into (n, dim) float32."""
        x = pictures.transpose(2, 3) if self._bands_first else pictures
        x = x if self._rank == 3 else x[:, 0]
        x = x[:, :, 0] if self._rank == 1 else x
        constant = {k: v.to(x.device).expand(len(x), *v.shape[1:]) for k, v in self._constant.items()}
        return self.encode({self.main: x, **constant})


class TransformersAudioEncoder(TransformersEncoder):
    """The pooled output of an audio model, or else the mean over its positions.

    The model's own preprocessing runs on the window's waveform, resampled if it needs another rate than
    16 kHz (nothing above 8 kHz is in it). AST and CLAP are made for 10 s: give the input that length.
    `weights = "random"` is an AST or CLAP of the real size.
    """

    Options: TypeAlias = TransformersAudioOptions
    modality: ClassVar[str] = "microphone"

    def __init__(self, options: Options, *, device: torch.device, **others: Any) -> None:
        super().__init__(partial(_load_audio, options, **others), _encoder_half, device, options.dtype)
        second = np.zeros(SAMPLE_RATE_HZ, np.float32)
        example = self._inputs(second, SAMPLE_RATE_HZ)
        self.network = AudioNetwork(self.model, example, self._processor.feature_size)
        self.dim = self.features(second, SAMPLE_RATE_HZ).numel()

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Encode the waveform."""
        return Encoding(self.features(data.waveform, SAMPLE_RATE_HZ))

    def prepare(self, data: AudioInput, /) -> torch.Tensor:
        """Return the network's input for training: (channels, frames, bands) float16 on the CPU."""
        return self.network.picture(self._inputs(data.waveform, SAMPLE_RATE_HZ)).half().cpu()

    @torch.no_grad()
    def features(self, waveform: npt.NDArray[np.float32], rate_hz: int) -> torch.Tensor:
        """Encode (samples,) mono at any rate into (dim,); raise ValueError if empty or not finite."""
        return self.network.encode(self._inputs(waveform, rate_hz))[0]

    def _inputs(self, waveform: npt.NDArray[np.float32], rate_hz: int) -> dict[str, torch.Tensor]:
        if not waveform.size or not np.isfinite(waveform).all():
            raise ValueError("an audio model takes finite samples, at least one")
        model_rate_hz = self._processor.sampling_rate
        samples = resample(waveform, rate_hz, model_rate_hz)
        # CLAP's preprocessing cuts longer sound at a random place; the newest part must be used here
        longest = getattr(self._processor, "nb_max_samples", None)
        samples = samples[-longest:] if longest else samples
        inputs = self._processor(samples, sampling_rate=model_rate_hz, return_tensors="pt").to(self._device)
        return dict(inputs)


def _load_audio(options: TransformersAudioOptions, seed: int, weights: str | None = None) -> Loaded:
    """Return model and preprocessing, on the CPU in float32."""
    folder = stored_folder(options.model, options.revision, weights)
    if folder is None:
        return _random_audio(options.architecture, seed)
    return load_transformer(folder, seed), load_preprocessing("AutoFeatureExtractor", folder)


def _encoder_half(model: Any) -> Any:
    # its masks are drawn from numpy's global generator: [augment] has masks of its own
    if getattr(model.config, "apply_spec_augment", False):
        model.config.apply_spec_augment = False
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _random_audio(architecture: Literal["ast", "clap"], seed: int) -> tuple[Any, Any]:
    from transformers import (
        ASTConfig,
        ASTFeatureExtractor,
        ASTModel,
        ClapConfig,
        ClapFeatureExtractor,
        ClapModel,
    )

    with seeded(seed):
        if architecture == "ast":
            return ASTModel(ASTConfig()), ASTFeatureExtractor()
        return ClapModel(ClapConfig()), ClapFeatureExtractor(truncation="rand_trunc")
