"""Small encoders that are trained from scratch together with a head."""

from collections.abc import Sequence

import torch
from torch import nn


class ConvEncoder(nn.Module):
    """Convolutions with batch norm, each halves the picture, then one vector per example.

    The vector is normalised over its features (zero mean, unit variance), so that zero means "unknown" and a
    head needs no statistics of features that change while they are trained.

    Args:
        channels: of the input; inputs are (B, channels, H, W).
        widths: channels after each convolution.
        dim: features.
        pool: sides of the map that is flattened at the end.
        dropout: before the features.
        first_stride: of the first convolution, for large inputs.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        dim: int,
        pool: tuple[int, int] = (1, 1),
        dropout: float = 0.0,
        first_stride: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            stride = first_stride if index == 0 else 1
            layers += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.layers = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(pool),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(channels * pool[0] * pool[1], dim),
            nn.LayerNorm(dim, elementwise_affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (B, dim)."""
        features: torch.Tensor = self.layers(x)
        return features
