"""Disturbances for training, on whole batches: images, log-mel, waveforms, and late modalities.

All randomness comes from the generator passed in. A batch is never changed in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F

from perception.training.examples import Examples

Disturbance = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
MAX_TURN_RAD: Final = 0.26


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def moved(
    images: torch.Tensor,
    generator: torch.Generator,
    shift: float = 0.1,
    turn_rad: float = MAX_TURN_RAD,
    scale: float = 0.1,
    flip: bool = False,
) -> torch.Tensor:
    """Shift, turn, scale and optionally mirror each image (B, C, H, W); shift is a share of the size."""
    count = len(images)
    angle = _uniform((count,), -turn_rad, turn_rad, generator)
    size = _uniform((count,), 1 - scale, 1 + scale, generator)
    mirror = (
        torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    )
    cos, sin = angle.cos() * size, angle.sin() * size
    offset = _uniform((count, 2), -2 * shift, 2 * shift, generator)
    rows = torch.stack([cos * mirror, -sin, offset[:, 0], sin * mirror, cos, offset[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def recoloured(images: torch.Tensor, generator: torch.Generator, amount: float = 0.2) -> torch.Tensor:
    """Scale contrast and add brightness per channel of images (B, C, H, W) in [0, 1]."""
    shape = (*images.shape[:2], 1, 1)
    contrast = _uniform(shape, 1 - amount, 1 + amount, generator)
    return (images * contrast + _uniform(shape, -amount, amount, generator)).clamp(0, 1)


def occluded(
    images: torch.Tensor, generator: torch.Generator, share: float = 0.3, p: float = 0.5
) -> torch.Tensor:
    """Blank a rectangle of up to `share` of each side in about `p` of the images (B, C, H, W)."""
    count, _, height, width = images.shape
    mask = _band(count, height, share, generator)[:, :, None] & _band(count, width, share, generator)[:, None]
    chosen = torch.rand(count, 1, 1, generator=generator) < p
    return images.masked_fill((mask & chosen)[:, None], 0.0)


def spec_augmented(
    log_mel: torch.Tensor, generator: torch.Generator, time: float = 0.2, bands: float = 0.2
) -> torch.Tensor:
    """Fill one range of time and one of bands of (B, frames, bands) with the mean of each example.

    Park et al. 2019, "SpecAugment"; ranges are at most the given shares long.
    """
    count, frames, width = log_mel.shape
    mask = _band(count, frames, time, generator)[:, :, None] | _band(count, width, bands, generator)[:, None]
    return torch.where(mask, log_mel.mean(dim=(1, 2), keepdim=True), log_mel)


def _band(count: int, length: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return masks (count, length) that are true over one random range each."""
    size = (_uniform((count, 1), 0, share, generator) * length).round()
    start = (torch.rand(count, 1, generator=generator) * (length - size)).floor()
    at = torch.arange(length)
    return (at >= start) & (at < start + size)


def time_shifted(x: torch.Tensor, generator: torch.Generator, share: float = 0.1) -> torch.Tensor:
    """Shift each (B, time, ...) by up to `share` of its length; the edge is repeated into the gap."""
    count, length = x.shape[:2]
    shift = (_uniform((count, 1), -share, share, generator) * length).round().long()
    index = (torch.arange(length) - shift).clamp(0, length - 1)
    shape = (count, length, *(1,) * (x.ndim - 2))
    return x.gather(1, index.view(shape).expand_as(x))


def with_noise(
    waveforms: torch.Tensor,
    snr_db: torch.Tensor,
    generator: torch.Generator,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add white noise, or a random part of `noise` (samples,), at a ratio per waveform.

    Args:
        waveforms: (B, samples).
        snr_db: (B,), power of the waveform over power of the noise.
        generator: draws the noise, or the part of `noise`.
        noise: at least as long as the waveforms.
    """
    count, length = waveforms.shape
    if noise is None:
        added = torch.randn(count, length, generator=generator)
    else:
        start = torch.randint(len(noise) - length + 1, (count, 1), generator=generator)
        added = noise[start + torch.arange(length)]
    power = waveforms.square().mean(dim=1) / added.square().mean(dim=1).clamp_min(1e-12)
    return waveforms + added * (power / 10 ** (snr_db / 10)).sqrt()[:, None]


def delayed(data: Examples, branch: str, ticks: int) -> Examples:
    """Return the windows with one branch as it was `ticks` windows earlier in the same source.

    Its age grows by the time between. In the first `ticks` windows of a source, the branch is absent.
    """
    column = data.branches.index(branch)
    then = (torch.arange(len(data)) - ticks).clamp_min(0)
    same = (data.sources[then] == data.sources) & (torch.arange(len(data)) >= ticks)
    present, ages_s = data.present.clone(), data.ages_s.clone()
    present[:, column] = data.present[then, column] & same
    ages_s[:, column] = data.ages_s[then, column] + (data.ends_ns - data.ends_ns[then]).float() / 1e9
    features = data.features | {branch: data.features[branch][then]}
    suspect = data.suspects.clone()
    suspect[:, column] = suspect[then, column]
    return replace(data, features=features, present=present, ages_s=ages_s, suspect=suspect)


def per_branch(disturbances: Mapping[str, Disturbance]) -> Callable[[Examples, torch.Generator], Examples]:
    """Return an augmentation for `fit` that disturbs the inputs of some branches."""

    def augment(batch: Examples, generator: torch.Generator) -> Examples:
        disturbed = {name: change(batch.features[name], generator) for name, change in disturbances.items()}
        return replace(batch, features=batch.features | disturbed)

    return augment
