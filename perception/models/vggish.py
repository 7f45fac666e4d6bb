"""VGGish (Hershey et al., ICASSP 2017): 128 numbers for 0.96 s of sound, from (96, 64) log-mel frames.

Layer sizes from tensorflow/models, research/audioset/vggish; 72,141,184 parameters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from perception.errors import WeightsError
from perception.models.options import EMBEDDING as EMBEDDING
from perception.models.weights import State, load_into, local_state, seeded

PRETRAINED_URL: Final = (
    "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
)
_CONVOLUTIONS: Final = (
    (1, 64),
    "pool",
    (64, 128),
    "pool",
    (128, 256),
    (256, 256),
    "pool",
    (256, 512),
    (512, 512),
    "pool",
)
# torchaudio's layout, and that of a trained encoder's file, -> torchvggish's, which is used here
_PREFIXES: Final = {"features_network.": "features.", "embedding_network.": "embeddings.", "0.": ""}
_PCA: Final = {
    "pca_eigen_vectors": "eigen_vectors",
    "pca_means": "means",
    "pproc.pca_matrix": "eigen_vectors",
    "pproc.pca_means": "means",
    "1.eigen_vectors": "eigen_vectors",
    "1.means": "means",
}
"""Names of `Pca`'s tensors in Google's npz, torchvggish's modules and a trained encoder's file."""


class VGGish(nn.Module):
    """The network. Google's release ends before a ReLU ("pre"), torchvggish's and torchaudio's after it."""

    def __init__(self, activation: Literal["pre", "post"] = "pre") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for layer in _CONVOLUTIONS:
            if isinstance(layer, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(*layer, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(6 * 4 * 512, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, EMBEDDING),
            nn.ReLU(inplace=True) if activation == "post" else nn.Identity(),
        )

    def forward(self, log_mel: torch.Tensor) -> torch.Tensor:
        """Map (N, 96, 64) log-mel frames to (N, 128), both float32 for weights of any type."""
        maps = self.features(log_mel[:, None].to(next(self.parameters()).dtype))  # (N, 512, 6, 4)
        # the dense layers were trained on TensorFlow's order: channels last
        embedding: torch.Tensor = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return embedding.float()


class Pca(nn.Module):
    """Google's post-processing: whiten, clip to [-2, 2] and, if requested, quantise to 8 bits."""

    eigen_vectors: torch.Tensor
    means: torch.Tensor

    def __init__(self, *, quantise: bool = False) -> None:
        super().__init__()
        self.quantise = quantise
        self.register_buffer("eigen_vectors", torch.eye(EMBEDDING))
        self.register_buffer("means", torch.zeros(EMBEDDING))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Map (N, 128) to (N, 128): float32 in [-2, 2], or uint8 if quantised (unsigned, rounded down)."""
        whitened = ((embeddings - self.means) @ self.eigen_vectors.T).clamp(-2.0, 2.0)
        return ((whitened + 2.0) * (255.0 / 4.0)).to(torch.uint8) if self.quantise else whitened


def random_vggish(seed: int, activation: Literal["pre", "post"] = "pre") -> VGGish:
    """Return He-initialised weights of this seed, which keep the scale of their input through all layers."""
    model = _empty(activation)
    with seeded(seed), torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
            else:
                parameter.zero_()
    return model


def load_vggish(
    state: Mapping[str, torch.Tensor], where: object, activation: Literal["pre", "post"] = "pre"
) -> VGGish:
    """Return the network with weights in torchvggish's or torchaudio's layout.

    Args:
        state: the state dict; post-processing in it is left out.
        where: names the source in the WeightsError if the layout is another one.
        activation: whether the embedding ends before or after its ReLU; the weights are the same.
    """
    own = {_own_name(name): tensor for name, tensor in state.items() if name not in _PCA}
    model = _empty(activation)
    load_into(model, own, where)
    return model


def load_pca(source: Path | Mapping[str, torch.Tensor], *, quantise: bool = False) -> Pca:
    """Return the post-processing from Google's `vggish_pca_params.npz`, a tensor file, or a state dict.

    Raises:
        WeightsError: the file is missing, is not one of these, or contains pickled objects.
    """
    state = source if isinstance(source, Mapping) else _pca_state(source)
    where = "the state dict" if isinstance(source, Mapping) else source
    own = {_PCA[name]: tensor.float() for name, tensor in state.items() if name in _PCA}
    if "means" in own:
        own["means"] = own["means"].flatten()
    pca = Pca(quantise=quantise)
    load_into(pca, own, where)
    return pca


def _empty(activation: Literal["pre", "post"]) -> VGGish:
    """Return the network without an initialisation, which takes a second and would be overwritten."""
    with torch.device("meta"):
        model = VGGish(activation)
    return model.to_empty(device="cpu")


def _own_name(name: str) -> str:
    for other, own in _PREFIXES.items():
        if name.startswith(other):
            return own + name.removeprefix(other)
    return name


def _pca_state(path: Path) -> State:
    if path.suffix != ".npz":
        return local_state(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.tensor(arrays[name]) for name in arrays.files}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; expected Google's vggish_pca_params.npz") from error
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not an npz file of plain arrays: {error}") from error
