"""What an encoder takes and gives: one modality of a window in, a feature vector out."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from perception.messages import BranchState


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A camera's newest frame, and the one a hop before it where there is one."""

    image: npt.NDArray[np.uint8]
    """(height, width, 3) BGR."""
    previous: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class AudioInput:
    """A window of sound, already at the encoders' rate, with its log-mel frames."""

    waveform: npt.NDArray[np.float32]
    """(samples,) mono at 16 kHz, in [-1, 1]."""
    log_mel: npt.NDArray[np.float32]
    """(96, 64): VGGish's front end over the same window."""


@dataclass(frozen=True, slots=True)
class TextInput:
    """The command in force."""

    text: str
    language: str = ""


EncoderInput = ImageInput | AudioInput | TextInput
InputT = TypeVar("InputT", bound=EncoderInput, contravariant=True)


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoder's result."""

    features: torch.Tensor
    """(dim,) float32 on the encoder's device."""
    branch: BranchState = BranchState()
    """Labels, scores and boxes of its own, where it has them."""


class Encoder(Protocol[InputT]):
    """Stateless: the same input gives the same bytes, whatever came before.

    An encoder that looks at `ImageInput.previous` says so by an attribute `uses_previous = True`: the
    others are not run again for an unchanged frame.
    """

    dim: int

    def __call__(self, data: InputT, /) -> Encoding:
        """Encode one input. Raises ValueError if the input itself is unusable."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the parameters that decide the result, for the weights hash; empty if none."""
