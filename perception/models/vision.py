"""Vision encoders: any torchvision classifier, any transformers vision model."""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar, Final, Literal, TypeAlias

import cv2
import torch
import torchvision.models
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from perception.errors import WeightsError
from perception.messages import BranchState
from perception.models.device import Forward, upload
from perception.models.encoder import Encoding, ImageInput
from perception.models.images import check_bgr
from perception.models.options import TorchvisionOptions, TransformersVisionOptions
from perception.models.transformers_encoder import (
    Loaded,
    TransformersEncoder,
    load_preprocessing,
    stored_folder,
)
from perception.models.weights import (
    State,
    load_into,
    load_transformer,
    local_state,
    seeded,
    source_of,
    url_state,
)

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)
MAX_ASPECT: Final = 16
"""Largest ratio of the sides: more elongated images become too large when their short side is resized."""


def to_model_input(
    data: ImageInput,
    size: int,
    device: torch.device,
    *,
    resize: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
) -> torch.Tensor:
    """Return a frame as the input of a model: (1, 3, size, size) float32 RGB, normalised, on the device.

    The frame is copied to the device as uint8, then resized (antialiased), cropped and normalised there. It
    equals torchvision's `ImageClassification` transform to within one grey level per pixel, which is
    1 / 255 / std, and a quarter of one on average: the two round the resized pixels differently.

    Args:
        data: the frame; encoders with the same parameters share the result.
        size: side of the centre crop.
        device: of the model.
        resize: the short side before the crop; None: 256/224 of `size`.
        mean: per RGB channel, of values in [0, 1].
        std: likewise.
        interpolation: bilinear or bicubic.
    """
    height, width = check_bgr(data.image).shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"a frame of {width}x{height} is too elongated for an image model")
    short_side = resize or round(size * 256 / 224)

    def prepare() -> torch.Tensor:
        rgb = rgb_on_device(data, device)[None]
        pixels = transforms.resize(rgb, [short_side], interpolation, antialias=True)
        pixels = transforms.center_crop(pixels, [size, size])
        scale, offset = _normalisation(mean, std, device)
        return torch.addcmul(offset, pixels.float(), scale)

    return data.shared((size, short_side, mean, std, interpolation, device), prepare)


def rgb_on_device(data: ImageInput, device: torch.device) -> torch.Tensor:
    """Return the frame as (3, height, width) uint8 RGB on the device; it is copied there only once."""

    def convert() -> torch.Tensor:
        if device.type == "cpu":
            return torch.from_numpy(cv2.cvtColor(data.image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)
        return upload(data.image, device).flip(-1).permute(2, 0, 1)

    return data.shared(device, convert)


@lru_cache(maxsize=16)
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and offset (1, 3, 1, 1): (x / 255 - mean) / std = x * scale + offset."""
    mean_, std_ = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    return 1 / (255 * std_), -mean_ / std_


class _Features(nn.Module):
    """A classifier that returns the input of its last layer; `logits` are those of the last batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits = torch.empty(0)
        self._last_input = torch.empty(0)
        last = _last_layer(model)
        last.register_forward_pre_hook(self._keep)
        self.dim = last.in_features if isinstance(last, nn.Linear) else last.in_channels

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (B, dim) of pixels (B, 3, H, W)."""
        self.logits = self.model(pixels)
        features = self._last_input
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features  # SqueezeNet: per position

    def _keep(self, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._last_input = inputs[0]


class PictureNetwork(nn.Module):
    """A network on pictures (B, 3, H, W) in [0, 1], with its normalisation.

    Args:
        network: returns features (B, dim) of normalised pictures.
        mean: per RGB channel.
        std: likewise.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self._mean, self._std = list(mean), list(std)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return features (B, dim)."""
        features: torch.Tensor = self.network(transforms.normalize(pictures, self._mean, self._std))
        return features


class TorchvisionEncoder:
    """A torchvision classifier: the input of its last layer as features, its best classes as scores.

    Weights: torchvision's default ones for the model, a local file of them or of a classifier with `classes`
    of its own, or random ones without class names.
    """

    Options: TypeAlias = TorchvisionOptions
    modality: ClassVar[str] = "camera"

    def __init__(
        self, options: Options, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        entry = torchvision.models.get_model_weights(options.model).DEFAULT
        source, path = source_of(weights)
        self._classes = options.classes or tuple(entry.meta["categories"])
        with seeded(seed):
            model = _classifier(options.model, len(self._classes))
        if source == "random":
            self._classes = ()
        else:
            state = local_state(path) if source == "local" else url_state(entry.url)
            load_into(model, _renamed(state), path if source == "local" else entry.url)
        self._preset = entry.transforms()
        self._size = options.size or self._preset.crop_size[0]
        self._short_side = round(self._size * self._preset.resize_size[0] / self._preset.crop_size[0])
        self._top_k = min(options.top_k, len(self._classes))
        self._device, self._dtype = device, getattr(torch, options.dtype)
        self._model = model.eval().requires_grad_(False).to(device, self._dtype)
        self._model.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
        self._features = _Features(self._model)
        self.network = PictureNetwork(self._features, self._preset.mean, self._preset.std)
        self.dim = self._features.dim
        self.forward = Forward(options.model, self._infer, device=device)

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Encode the newest frame."""
        features, logits = self.forward(self._pixels(data))
        return Encoding(features[0], lambda: self._best(logits[0]))

    def encode_batch(self, batch: Sequence[ImageInput | None]) -> list[Encoding | None]:
        """Encode the newest frames of several cameras in one pass.

        The pass is always as large as the batch, so a frame's bits do not depend on the others.
        """
        empty = torch.zeros(1, 3, self._size, self._size, device=self._device)
        rows: list[torch.Tensor | None] = []
        for data in batch:
            try:
                rows.append(None if data is None else self._pixels(data))
            except ValueError:
                rows.append(None)
        features, logits = self.forward(torch.cat([empty if row is None else row for row in rows]))
        return [
            None if row is None else Encoding(features[at], partial(self._best, logits[at]))
            for at, row in enumerate(rows)
        ]

    def prepare(self, data: ImageInput, /) -> torch.Tensor:
        """Return the network's input for training: (3, size, size) float16 in [0, 1] on the CPU."""
        return self._pixels(data, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))[0].half().cpu()

    def _pixels(
        self, data: ImageInput, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> torch.Tensor:
        return to_model_input(
            data,
            self._size,
            self._device,
            resize=self._short_side,
            mean=mean or tuple(self._preset.mean),
            std=std or tuple(self._preset.std),
            interpolation=self._preset.interpolation,
        )

    def _infer(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (N, 3, size, size) to features (N, dim) and logits (N, classes), both float32."""
        features = self._features(pixels.to(self._dtype, memory_format=torch.channels_last))
        return features.float(), self._features.logits.float()

    def weights(self) -> State:
        """Return the classifier's parameters and buffers."""
        return self._model.state_dict()

    def _best(self, logits: torch.Tensor) -> BranchState:
        if not self._top_k:
            return BranchState()
        scores, indices = logits.softmax(dim=0).topk(self._top_k)
        labels = tuple(self._classes[index] for index in indices.tolist())
        return BranchState(labels=labels, scores=tuple(scores.tolist()))


def _classifier(name: str, classes: int) -> nn.Module:
    """Build the architecture; the two Inceptions scale their inputs as their weights were trained."""
    inception = name in ("googlenet", "inception_v3")
    options = {"init_weights": True, "transform_input": True} if inception else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    return model


def _last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _renamed(state: State) -> State:
    """Remove the dots that torchvision's DenseNet files have inside layer names (`norm.1.weight`)."""
    for name in list(state):
        modern = re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)", r"\1", name)
        if modern != name:
            state[modern] = state.pop(name)
    return state


class _Pooled(nn.Module):
    """A vision model of transformers, its output as one float32 vector per picture."""

    def __init__(self, model: nn.Module, pooling: Literal["mean", "pooler"]) -> None:
        super().__init__()
        self.model = model
        self._pooling = pooling

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (B, dim) of normalised pixels (B, 3, H, W)."""
        output = self.model(pixel_values=pixels.to(next(self.model.parameters()).dtype))
        if self._pooling == "pooler":
            features: torch.Tensor = output.pooler_output.float()
            return features.flatten(1)
        states: torch.Tensor = output.last_hidden_state.float()  # (B, T, D) or (B, D, H, W)
        return states.mean(dim=1) if states.ndim == 3 else states.mean(dim=(2, 3))


class TransformersVisionEncoder(TransformersEncoder):
    """A transformers vision model with its stored preprocessing; of CLIP and similar ones, the vision tower.

    Weights: a Hub name in the options, a local folder, or random ones of an `architecture`.
    """

    Options: TypeAlias = TransformersVisionOptions
    modality: ClassVar[str] = "camera"

    def __init__(self, options: Options, *, device: torch.device, **others: Any) -> None:
        super().__init__(partial(_load_vision, options, **others), _vision_half, device, options.dtype)
        self._pooled = _Pooled(self.model, options.pooling)
        mean, std = self._processor.image_mean, self._processor.image_std
        plain = not self._processor.do_normalize
        self.network = self._pooled if plain else PictureNetwork(self._pooled, mean, std)
        self.dim = self._features(torch.zeros(3, 64, 64, dtype=torch.uint8, device=device)).numel()

    def __call__(self, data: ImageInput, /) -> Encoding:
        """Encode the newest frame."""
        check_bgr(data.image)
        return Encoding(self._features(rgb_on_device(data, self._device)))

    def prepare(self, data: ImageInput, /) -> torch.Tensor:
        """Return the network's input for training: (3, H, W) float16 in [0, 1] on the CPU."""
        check_bgr(data.image)
        return self._pixels(rgb_on_device(data, self._device), do_normalize=False)[0].half().cpu()

    @torch.no_grad()
    def _features(self, rgb: torch.Tensor) -> torch.Tensor:
        """Encode (3, H, W) uint8 on the device into (dim,)."""
        features: torch.Tensor = self._pooled(self._pixels(rgb))[0]
        return features

    def _pixels(self, rgb: torch.Tensor, **changed: bool) -> torch.Tensor:
        """Return (1, 3, H', W'), the output of the model's own preprocessing for (3, H, W) uint8."""
        inputs = self._processor(images=rgb, return_tensors="pt", device=self._device, **changed)
        pixels: torch.Tensor = inputs["pixel_values"]
        return pixels


def _load_vision(options: TransformersVisionOptions, seed: int, weights: str | None = None) -> Loaded:
    """Return model and preprocessing, on the CPU in float32."""
    folder = stored_folder(options.model, options.revision, weights)
    if folder is None:
        return _random_vision(options.architecture, seed)
    model = load_transformer(folder, seed, pooler=options.pooling == "pooler")
    return model, load_preprocessing("AutoImageProcessor", folder)


def _vision_half(model: Any) -> Any:
    return getattr(model, "vision_model", model)


def _random_vision(architecture: str, seed: int) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    try:
        config = AutoConfig.for_model(architecture)
        with seeded(seed):
            model = AutoModel.from_config(config)
    except ValueError as error:
        raise WeightsError(f"'{architecture}' is no vision architecture of transformers") from error
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return model, ViTImageProcessor(size={"height": size, "width": size})
