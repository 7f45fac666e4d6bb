"""Vision encoders: reference preprocessing, features before the last layer, weights by the real path."""

from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision.models
from PIL import Image as Pillow
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights
from torchvision.transforms._presets import ImageClassification

from perception.errors import ProfileError, WeightsError
from perception.models import build_encoder, weights_hash
from perception.models.encoder import ImageInput
from perception.models.vision import IMAGENET_STD, to_model_input
from perception.models.weights import seeded
from perception.profile import EncoderConfig
from perception.units.arrays import Image
from tests import tiny_models

CPU = torch.device("cpu")
ONE_GREY_LEVEL = 1 / 255 / min(IMAGENET_STD)


def build(weights: str, kind: str = "torchvision", **options: object) -> Any:
    config = EncoderConfig(input="front", kind=kind, weights=weights, options=options)
    return build_encoder("eye", config, device=CPU, seed=0)


def rgb(image: Image) -> torch.Tensor:
    """(3, H, W) uint8, the input of torchvision and transformers."""
    return torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)


def picture(height: int = 120, width: int = 160) -> Image:
    """Smooth colours with some noise, so that resizing matters but does not alias wildly."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noisy: Image = np.clip(smooth + rng.normal(0, 10, smooth.shape), 0, 255).astype(np.uint8)
    return noisy


@pytest.mark.parametrize("shape", [(480, 640), (360, 270), (64, 64), (1080, 1920)])
@pytest.mark.parametrize("source", ["tensor", "pillow"])
def test_preprocessing_is_torchvisions_to_within_one_grey_level(shape: tuple[int, int], source: str) -> None:
    image = picture(*shape)
    found = to_model_input(ImageInput(image), 224, CPU)
    reference = ImageClassification(crop_size=224)
    expected = reference(Pillow.fromarray(image[:, :, ::-1].copy()) if source == "pillow" else rgb(image))
    assert found.shape == (1, 3, 224, 224)
    assert found.dtype == torch.float32
    assert (found[0] - expected).abs().max() <= ONE_GREY_LEVEL * 1.001
    assert (found[0] - expected).abs().mean() <= ONE_GREY_LEVEL / 4


def test_a_frame_too_elongated_or_no_image_is_refused_and_a_read_only_one_taken() -> None:
    with pytest.raises(ValueError, match="too elongated"):
        to_model_input(ImageInput(np.zeros((4, 400, 3), np.uint8)), 224, CPU)
    with pytest.raises(ValueError, match="not a BGR image"):
        to_model_input(ImageInput(np.zeros((40, 40), np.uint8)), 224, CPU)
    image = picture()
    image.flags.writeable = False
    assert to_model_input(ImageInput(image), 32, CPU).shape == (1, 3, 32, 32)


def test_resnet18_gives_the_pooled_features_and_the_classes_of_the_same_weights(tmp_path: Path) -> None:
    with seeded(5):
        model = torchvision.models.resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    encoder = build(str(tmp_path / "resnet18.pth"))
    encoding = encoder(ImageInput(picture()))

    pixels = ResNet18_Weights.DEFAULT.transforms()(rgb(picture()))
    pooled = torch.nn.Sequential(*list(model.children())[:-1])(pixels[None]).flatten().detach()
    assert encoder.dim == 512
    torch.testing.assert_close(encoding.features, pooled, rtol=0.02, atol=0.02)  # one grey level apart

    best = model.fc(encoding.features).softmax(dim=0).topk(5)
    names = [ResNet18_Weights.DEFAULT.meta["categories"][index] for index in best.indices.tolist()]
    assert list(encoding.branch.labels) == names
    assert encoding.branch.scores == pytest.approx(best.values.tolist(), rel=1e-4)
    assert weights_hash(encoder.weights()) == weights_hash(model.state_dict())


@pytest.mark.parametrize(
    ("name", "dim"), [("squeezenet1_1", 512), ("mobilenet_v3_small", 1024), ("shufflenet_v2_x0_5", 1024)]
)
def test_any_torchvision_classifier_gives_the_input_of_its_last_layer(name: str, dim: int) -> None:
    encoder = build("random", model=name, size=64)
    encoding = encoder(ImageInput(picture()))
    assert encoder.dim == dim
    assert encoding.features.shape == (dim,)
    assert encoding.branch.labels == ()  # random weights know no classes
    assert torch.equal(encoder(ImageInput(picture())).features, encoding.features)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first, second = (build("random", model="squeezenet1_1") for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert weights_hash(first.weights()) == weights_hash(second.weights())


def test_a_classifier_with_classes_of_its_own_loads_from_safetensors(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    options: dict[str, Any] = {"model": "mobilenet_v3_small", "size": 64}
    encoder = build(str(tmp_path), classes=["cup", "ball", "dog"], **options)
    encoding = encoder(ImageInput(picture()))
    assert set(encoding.branch.labels) == {"cup", "ball", "dog"}
    assert sum(encoding.branch.scores) == pytest.approx(1, abs=1e-5)

    with pytest.raises(WeightsError, match=r"classifier\.3\.weight is \(3, 1024\) instead of \(1000, 1024\)"):
        build(str(tmp_path), **options)


def test_the_dotted_names_of_torchvisions_densenet_files_are_understood(tmp_path: Path) -> None:
    model = torchvision.models.densenet121()
    dotted = {
        name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        if "denselayer" in name
        else name: value
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(dotted, tmp_path / "model.safetensors")
    encoder = build(str(tmp_path), model="densenet121", size=32)
    assert weights_hash(encoder.weights()) == weights_hash(model.state_dict())


def test_half_precision_stays_close() -> None:
    full, half = (
        build("random", model="resnet18", size=96, dtype=dtype)(ImageInput(picture()))
        for dtype in ("float32", "bfloat16")
    )
    assert half.features.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(full.features, half.features, dim=0) > 0.999


def test_an_unknown_classifier_suggests_close_ones() -> None:
    with pytest.raises(ProfileError, match=r"options\.model: .*did you mean .*resnet18"):
        build("random", model="resnet81")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with its image processor, saved without a pooling layer."""
    folder = tmp_path_factory.mktemp("vit")
    tiny_models.vit(folder)
    return folder


def test_a_transformers_vision_model_is_loaded_from_a_folder_with_its_preprocessing(vit: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    encoder = build(str(vit), "transformers-vision")
    features = encoder(ImageInput(picture())).features
    assert encoder.dim == 16

    pixels = AutoImageProcessor.from_pretrained(vit)(images=rgb(picture()), return_tensors="pt")
    model = AutoModel.from_pretrained(vit, add_pooling_layer=False).eval()
    expected = model(**pixels).last_hidden_state[0].mean(dim=0).detach()
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_a_pooling_layer_that_is_not_in_the_weights_is_not_made_up(vit: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights are missing: pooler\.dense"):
        build(str(vit), "transformers-vision", pooling="pooler")


def test_the_vision_tower_of_clip_and_convolutional_models_give_features(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, ResNetConfig, ResNetModel, ViTImageProcessor

    tower = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 10, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 20], depths=[1, 1]))
    for (model, dim), pooling in product([(clip, 12), (resnet, 20)], ["mean", "pooler"]):
        folder = tmp_path / f"{type(model).__name__}-{pooling}"
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
        encoder = build(str(folder), "transformers-vision", pooling=pooling)
        assert encoder.dim == dim
        assert encoder(ImageInput(picture())).features.shape == (dim,)


def test_a_model_without_its_preprocessing_is_named(vit: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((vit / name).read_bytes())
    with pytest.raises(WeightsError, match=r"no usable preprocessor_config\.json there"):
        build(str(tmp_path), "transformers-vision")


def test_an_unknown_architecture_of_random_weights_is_named() -> None:
    with pytest.raises(WeightsError, match="'vitt' is no vision architecture"):
        build("random", "transformers-vision", architecture="vitt")
