"""Any transformers audio model as an encoder: AST, CLAP's audio half, wav2vec 2 and their kin."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from perception.errors import WeightsError
from perception.features.resample import resample
from perception.models.encoder import AudioInput, Encoding
from perception.models.weights import State, hub_folder, load_transformer, seeded, source_of
from perception.profile import Section

SAMPLE_RATE_HZ: Final = 16_000


class TransformersAudioEncoder:
    """The pooled output of an audio model, or else the mean over its positions.

    The model's own preprocessing runs on the window's waveform, resampled where it wants another rate than
    16 kHz (then nothing above 8 kHz is in it). AST and CLAP are made for 10 s: give the input that length.
    `weights = "random"` is an AST or CLAP of the real size.
    """

    class Options(Section):
        """`model` is a name on the Hub; a profile's `weights` may name a local folder instead."""

        model: str = "MIT/ast-finetuned-audioset-10-10-0.4593"
        revision: str | None = None
        architecture: Annotated[Literal["ast", "clap"], Field(description="of random weights")] = "ast"
        dtype: Literal["float32", "bfloat16"] = "float32"

    modality: ClassVar[str] = "microphone"

    def __init__(
        self, options: Options, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        source, folder = source_of(weights)
        if source == "random":
            model, self._processor = _random_audio(options.architecture, seed)
        else:
            folder = folder if source == "local" else hub_folder(options.model, options.revision)
            model = load_transformer(folder, seed)
            self._processor = load_feature_extractor(folder)
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        self._device, self._dtype = device, getattr(torch, options.dtype)
        self.model = model.eval().requires_grad_(False).to(device, self._dtype)
        self._encode = getattr(self.model, "get_audio_features", self.model)
        self.dim = self.features(np.zeros(SAMPLE_RATE_HZ, np.float32), SAMPLE_RATE_HZ).numel()

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Encode the waveform."""
        return Encoding(self.features(data.waveform, SAMPLE_RATE_HZ))

    def weights(self) -> State:
        """Return the model's parameters and buffers."""
        state: State = self.model.state_dict()
        return state

    @torch.no_grad()
    def features(self, waveform: npt.NDArray[np.float32], rate_hz: int) -> torch.Tensor:
        """Encode (samples,) mono at any rate into (dim,); ValueError if there are none or not all finite."""
        if not waveform.size or not np.isfinite(waveform).all():
            raise ValueError("an audio model takes finite samples, at least one")
        model_rate_hz = self._processor.sampling_rate
        samples = resample(waveform, rate_hz, model_rate_hz)
        # CLAP's preprocessing cuts longer sound at a random place; the newest part is what counts here
        longest = getattr(self._processor, "nb_max_samples", None)
        samples = samples[-longest:] if longest else samples
        inputs = self._processor(samples, sampling_rate=model_rate_hz, return_tensors="pt").to(self._device)
        floats = {
            name: value.to(self._dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        output = self._encode(**floats)
        pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
        if isinstance(output, torch.Tensor):
            pooled = output
        if pooled is not None:
            return pooled[0].float()
        states: torch.Tensor = output.last_hidden_state[0].float()  # (T, D)
        return states.mean(dim=0)


def load_feature_extractor(folder: Path) -> Any:
    """Load the stored preprocessing of a transformers audio model; WeightsError if there is none."""
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each extractor has failures of its own
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{folder}: no usable preprocessor_config.json there: {reason}") from error


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
