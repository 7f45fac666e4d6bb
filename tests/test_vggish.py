"""VGGish, checked against its definition in plain functional calls, in both published layouts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from perception.errors import WeightsError
from perception.models.vggish import Pca, VGGish, load_pca, load_vggish, random_vggish

State = dict[str, torch.Tensor]
CONVOLUTIONS = {0: (64, 1), 3: (128, 64), 6: (256, 128), 8: (256, 256), 11: (512, 256), 13: (512, 512)}
DENSE = {0: (4096, 12_288), 2: (4096, 4096), 4: (128, 4096)}


def filled(shape: tuple[int, ...], limit: float, seed: int) -> torch.Tensor:
    """Noise that repeats after a prime number of values: 72 million draws would take seconds."""
    size = math.prod(shape)
    block = torch.empty(4099).uniform_(-limit, limit, generator=torch.Generator().manual_seed(seed))
    return block.repeat(size // 4099 + 1)[:size].reshape(shape)


def published_state(features: str, embeddings: str) -> State:
    """A state dict with exactly the keys and shapes of a published checkpoint."""
    state: State = {}
    for index, (outputs, inputs) in CONVOLUTIONS.items():
        limit = (6 / (9 * inputs)) ** 0.5
        state[f"{features}.{index}.weight"] = filled((outputs, inputs, 3, 3), limit, seed=index)
        state[f"{features}.{index}.bias"] = filled((outputs,), 0.1, seed=50 + index)
    for index, shape in DENSE.items():
        limit = (6 / shape[1]) ** 0.5
        state[f"{embeddings}.{index}.weight"] = filled(shape, limit, seed=100 + index)
        state[f"{embeddings}.{index}.bias"] = filled(shape[:1], 0.1, seed=150 + index)
    return state


@pytest.fixture(scope="module")
def state() -> State:
    return published_state("features", "embeddings")


@pytest.fixture(scope="module")
def model(state: State) -> VGGish:
    return load_vggish(state, "test").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def log_mel() -> torch.Tensor:
    return torch.empty(2, 96, 64).uniform_(-4.6, 2.0, generator=torch.Generator().manual_seed(1))


def by_definition(state: State, log_mel: torch.Tensor) -> torch.Tensor:
    x = log_mel.reshape(-1, 1, 96, 64)
    for index in CONVOLUTIONS:
        x = F.relu(F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
        if index in (0, 3, 8, 13):
            x = F.max_pool2d(x, 2)
    rows = [[pixel for line in maps.permute(1, 2, 0) for pixel in line] for maps in x]
    y = torch.stack([torch.cat(pixels) for pixels in rows])
    for index in DENSE:
        y = F.linear(y, state[f"embeddings.{index}.weight"], state[f"embeddings.{index}.bias"])
        y = y if index == 4 else F.relu(y)
    return y


def test_it_has_the_published_number_of_parameters(model: VGGish) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) == 72_141_184


def test_it_computes_its_definition(model: VGGish, state: State, log_mel: torch.Tensor) -> None:
    embedding = model(log_mel)
    assert embedding.shape == (2, 128)
    assert embedding.min() < 0
    torch.testing.assert_close(embedding, by_definition(state, log_mel), atol=1e-4, rtol=1e-4)


def test_torchaudios_layout_gives_the_same_network(
    model: VGGish, state: State, log_mel: torch.Tensor
) -> None:
    names = {"features.": "features_network.", "embeddings.": "embedding_network."}
    published = {
        names[key[: key.index(".") + 1]] + key[key.index(".") + 1 :]: value for key, value in state.items()
    }
    loaded = load_vggish(published, "test").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(log_mel), model(log_mel), atol=0, rtol=0)


def test_after_the_relu_nothing_is_negative(model: VGGish, state: State, log_mel: torch.Tensor) -> None:
    with torch.no_grad():
        post = load_vggish(state, "test", "post").eval()(log_mel)
    torch.testing.assert_close(post, model(log_mel).clamp_min(0), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"embeddings.4.bias": None}, "embeddings.4.bias is missing"),
        ({"embeddings.4.bias": torch.zeros(527)}, r"embeddings.4.bias is \(527,\) instead of \(128,\)"),
        ({"classifier.weight": torch.zeros(1)}, "classifier.weight is unknown"),
    ],
)
def test_another_layout_is_one_clear_error(
    state: State, change: dict[str, torch.Tensor | None], complaint: str
) -> None:
    changed = {key: value for key, value in {**state, **change}.items() if value is not None}
    with pytest.raises(WeightsError, match=f"somewhere.*{complaint}"):
        load_vggish(changed, "somewhere")


def test_random_weights_follow_their_seed_and_keep_the_scale(log_mel: torch.Tensor) -> None:
    before = torch.get_rng_state()
    model = random_vggish(7)
    torch.testing.assert_close(torch.get_rng_state(), before)
    first = model.features[0].weight
    assert isinstance(first, torch.Tensor)
    bound = (6 / 9) ** 0.5
    assert bound * 0.9 < first.abs().max() <= bound
    with torch.no_grad():
        assert 0.5 < model.eval()(log_mel).std() < 10


def pca_arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.standard_normal((128, 128)).astype(np.float32) * 0.1, rng.standard_normal(128).astype(
        np.float32
    )


def test_post_processing_whitens_clips_and_quantises_downwards() -> None:
    vectors, means = pca_arrays()
    embeddings = np.random.default_rng(3).standard_normal((5, 128)).astype(np.float32) * 2
    expected = np.clip(np.stack([vectors @ (row - means) for row in embeddings]), -2, 2)
    arrays = {"pca_eigen_vectors": torch.tensor(vectors), "pca_means": torch.tensor(means)}
    whitened = load_pca(arrays)(torch.tensor(embeddings))
    np.testing.assert_allclose(whitened.numpy(), expected, atol=1e-5)
    assert (np.abs(expected) == 2).any()
    quantised = load_pca(arrays, quantise=True)(torch.tensor(embeddings))
    assert quantised.dtype == torch.uint8
    assert (quantised.min(), quantised.max()) == (0, 255)
    steps = (expected + 2) * 63.75 - quantised.numpy()
    assert steps.min() > -0.01
    assert steps.max() < 1.01


def test_post_processing_loads_from_npz_tensors_and_torchvggishs_module(tmp_path: Path) -> None:
    vectors, means = pca_arrays()
    np.savez(tmp_path / "pca.npz", pca_eigen_vectors=vectors, pca_means=means)
    tensors = {"pca_eigen_vectors": torch.tensor(vectors), "pca_means": torch.tensor(means)}
    save_file(tensors, tmp_path / "pca.safetensors")
    torch.save(tensors, tmp_path / "pca.pth")
    module = {"pproc.pca_matrix": torch.tensor(vectors), "pproc.pca_means": torch.tensor(means)[:, None]}
    files = [load_pca(tmp_path / name) for name in ("pca.npz", "pca.safetensors", "pca.pth")]
    for pca in (*files, load_pca(module)):
        np.testing.assert_array_equal(pca.eigen_vectors.numpy(), vectors)
        np.testing.assert_array_equal(pca.means.numpy(), means)


def test_what_would_have_to_be_unpickled_is_refused(tmp_path: Path) -> None:
    vectors, means = pca_arrays()
    np.savez(tmp_path / "objects.npz", pca_eigen_vectors=np.array([vectors, "x"], object), pca_means=means)
    torch.save({"pca_eigen_vectors": vectors, "pca_means": means}, tmp_path / "arrays.pth")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("objects.npz", "arrays.pth", "text.npz", "absent.npz", "absent.pth"):
        with pytest.raises(WeightsError, match=name):
            load_pca(tmp_path / name)


def test_incomplete_post_processing_is_refused() -> None:
    with pytest.raises(WeightsError, match="means is missing"):
        load_pca({"pca_eigen_vectors": torch.eye(128)})


def test_untrained_post_processing_only_clips() -> None:
    torch.testing.assert_close(
        Pca()(torch.linspace(-3, 3, 128)[None]), torch.linspace(-3, 3, 128).clamp(-2, 2)[None]
    )
