"""Small convolutional encoders, trained from scratch with a head on the user's own sessions."""

from typing import ClassVar, Final, TypeAlias

import cv2
import torch

from perception.errors import WeightsError
from perception.features.image import fitted
from perception.models.encoder import AudioInput, Encoding, ImageInput
from perception.models.images import check_bgr
from perception.models.networks import ConvEncoder
from perception.models.options import CnnImageOptions, CnnSoundOptions
from perception.models.weights import State, load_into, local_state, seeded, source_of

_LOG_MEL_OFFSET: Final = -4.605
"""Log-mel value of silence, log(0.01)."""


class _CnnEncoder:
    """Base of both: a network on an input of fixed shape."""

    Options: TypeAlias = CnnSoundOptions

    def __init__(
        self,
        options: Options,
        channels: int,
        *,
        device: torch.device,
        seed: int,
        weights: str | None,
    ) -> None:
        source, folder = source_of(weights)
        if source == "pretrained":
            raise WeightsError(
                "there are no published weights: give the folder that `perception train` stored, or 'random'"
            )
        with seeded(seed):
            self.network = ConvEncoder(
                channels, options.widths, options.dim, (options.pool, options.pool), options.dropout
            )
        if source == "local":
            load_into(self.network, local_state(folder), folder)
        self.network.eval().requires_grad_(False).to(device)
        self.dim = options.dim
        self._device = device

    def weights(self) -> State:
        """Return the network's parameters and buffers."""
        return self.network.state_dict()

    @torch.no_grad()
    def _encode(self, prepared: torch.Tensor) -> Encoding:
        return Encoding(self.network(prepared.to(self._device)[None].float())[0])


class CnnImageEncoder(_CnnEncoder):
    """A network on the newest frame, shrunk to a square."""

    Options: TypeAlias = CnnImageOptions
    modality: ClassVar[str] = "camera"

    def __init__(
        self, options: Options, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        super().__init__(options, 3, device=device, seed=seed, weights=weights)
        self._size = options.size
        self._fit = options.fit

    def prepare(self, data: ImageInput, /) -> torch.Tensor:
        """Return the network's input: (3, size, size) float16 RGB in [0, 1]."""
        small = fitted(check_bgr(data.image), (self._size, self._size), self._fit)
        rgb = torch.from_numpy(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
        return (rgb.permute(2, 0, 1).float() / 255).half()

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Encode the newest frame."""
        return self._encode(self.prepare(data))


class CnnSoundEncoder(_CnnEncoder):
    """A network on the window's log-mel frames."""

    modality: ClassVar[str] = "microphone"

    def __init__(
        self, options: CnnSoundOptions, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        super().__init__(options, 1, device=device, seed=seed, weights=weights)

    def prepare(self, data: AudioInput, /) -> torch.Tensor:
        """Return the network's input: (1, 96, 64) float16, zero for silence."""
        return (torch.from_numpy(data.log_mel)[None] - _LOG_MEL_OFFSET).half()

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Encode the window's sound."""
        return self._encode(self.prepare(data))
