"""Silero's voice activity network, for whole windows at once."""

import importlib.util
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from perception.errors import WeightsError
from perception.models.weights import State, load_into, local_state


class SileroNetwork(nn.Module):
    """The 16 kHz network of silero-vad 6 (github.com/snakers4/silero-vad, MIT).

    Each chunk of 512 samples, with the 64 before it, has one spectrum vector; an LSTM runs over those.
    All chunks of a window go through the convolutions at once.
    """

    CHUNK: ClassVar[int] = 512
    CONTEXT: ClassVar[int] = 64

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the probability of speech in each whole chunk at the end of (samples,) at 16 kHz."""
        count = waveform.shape[0] // self.CHUNK
        start = waveform.shape[0] - count * self.CHUNK
        padded = F.pad(waveform, (max(0, self.CONTEXT - start), 0))
        padded = padded[-(count * self.CHUNK + self.CONTEXT) :]
        chunks = padded.unfold(0, self.CHUNK + self.CONTEXT, self.CHUNK)  # (count, 576)
        x = self.stft_conv(F.pad(chunks[:, None], (0, 64), mode="reflect"))  # (count, 258, 4)
        x = torch.sqrt(x[:, :129].square() + x[:, 129:].square())
        for convolution in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = convolution(x).relu()  # in the end (count, 128, 1)
        hidden, _ = self.lstm(x[:, :, 0])  # (count, 128)
        speech: torch.Tensor = self.final_conv(hidden.relu()[:, :, None])
        return speech.sigmoid()[:, 0, 0]


def load_silero(file: Path) -> SileroNetwork:
    """Return the network with weights in the layout of the package's safetensors file."""
    network = SileroNetwork()
    load_into(network, _as_layer(local_state(file)), file)
    return network


def packaged_file() -> Path:
    """Return the file of the package's weights; not imported, as that changes torch's thread count."""
    spec = importlib.util.find_spec("silero_vad")
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "data" / "silero_vad_16k.safetensors"
        if file.is_file():
            return file
    raise WeightsError("silero_vad_16k.safetensors: not found; install the package silero-vad, 6.2 or newer")


def _as_layer(state: State) -> State:
    """Return the state with the LSTM cell renamed to an LSTM layer, which runs a window in one call."""
    prefix = "lstm_cell."
    return {
        f"lstm.{name.removeprefix(prefix)}_l0" if name.startswith(prefix) else name: tensor
        for name, tensor in state.items()
    }
