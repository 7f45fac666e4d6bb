"""Inputs and results of encoders: one modality of a window in, a feature vector out."""

from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from perception.messages import BranchState
from perception.models.options import EncoderOptions

MadeT = TypeVar("MadeT")
OptionsT = TypeVar("OptionsT", bound=EncoderOptions)


class ImageInput(msgspec.Struct, frozen=True):
    """A camera's newest frame, and the one a hop before it if there is one."""

    image: npt.NDArray[np.uint8]
    """(height, width, 3) BGR."""
    previous: npt.NDArray[np.uint8] | None = None
    _made: dict[Hashable, Any] = msgspec.field(default_factory=dict)

    def shared(self, key: Hashable, make: Callable[[], MadeT]) -> MadeT:
        """Return a result that several encoders share, made once; callers must not write to it."""
        if key not in self._made:
            self._made[key] = make()
        made: MadeT = self._made[key]
        return made


class AudioInput(msgspec.Struct, frozen=True):
    """A window of sound at the encoders' rate, with its log-mel frames."""

    waveform: npt.NDArray[np.float32]
    """(samples,) mono at 16 kHz, in [-1, 1]."""
    log_mel: npt.NDArray[np.float32]
    """(96, 64): VGGish's front end over the same window."""


class TextInput(msgspec.Struct, frozen=True):
    """The command in force."""

    text: str
    language: str = ""


EncoderInput = ImageInput | AudioInput | TextInput
InputT = TypeVar("InputT", bound=EncoderInput, contravariant=True)


Branch = BranchState | Callable[[], BranchState]
_SILENT: Final = BranchState()


class Encoding:
    """An encoder's result."""

    __slots__ = ("_branch", "features")

    def __init__(self, features: torch.Tensor, branch: Branch = _SILENT) -> None:
        """`branch` may be a function: the first read of `branch` calls it, and may wait for the device."""
        self.features = features
        """(dim,) float32 on the encoder's device, or on the CPU if it is `cpu_only`."""
        self._branch = branch

    @property
    def branch(self) -> BranchState:
        """Labels, scores and boxes of the encoder, if it has any."""
        if not isinstance(self._branch, BranchState):
            self._branch = self._branch()
        return self._branch


class Untrained(Generic[OptionsT]):
    """Base of encoders that compute on the CPU and were not trained."""

    cpu_only: ClassVar[bool] = True

    def __init__(
        self, options: OptionsT, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        self._options = options

    def weights(self) -> dict[str, torch.Tensor]:
        """Return none: nothing was trained."""
        return {}


class Encoder(Protocol[InputT]):
    """Stateless: the same input gives the same bytes, independent of earlier inputs.

    An encoder that uses `ImageInput.previous` has an attribute `uses_previous = True`: the others are not run
    again for an unchanged frame. An encoder that can encode several inputs in one pass has `encode_batch`,
    which accepts None for a missing input and returns None for a missing or refused one. An encoder that
    computes on the CPU on every device has `cpu_only = True`; its features stay there.
    """

    dim: int

    def __call__(self, data: InputT, /) -> Encoding:
        """Encode one input; raise ValueError if the input itself is unusable."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the parameters that decide the result, for the weights hash; empty if there are none."""
