"""Audio models of transformers as encoders, from folders laid out as on the Hub."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    ASTModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from perception.errors import WeightsError
from perception.models.encoder import AudioInput
from perception.models.transformers_audio import TransformersAudioEncoder
from tests.tiny_models import SMALL, ast

CPU = torch.device("cpu")


def clap(folder: Path) -> None:
    audio = {
        "spec_size": 64,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "hidden_size": 16,
        "window_size": 4,
        "num_mel_bins": 16,
        "projection_hidden_size": 24,
    }
    text = {**SMALL, "hidden_size": 16, "vocab_size": 50}
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
    ClapModel(config).save_pretrained(folder)
    extractor = ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc")
    extractor.save_pretrained(folder)


def wav2vec2(folder: Path) -> None:
    config = Wav2Vec2Config(
        hidden_size=16,
        conv_dim=(8, 8),
        conv_stride=(10, 8),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        **SMALL,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)


def sound(samples: int = 15_600, seed: int = 1) -> AudioInput:
    waveform = np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1
    return AudioInput(waveform, np.zeros((96, 64), np.float32))


@pytest.mark.parametrize(("save", "dim"), [(ast, 16), (clap, 24), (wav2vec2, 16)])
def test_a_local_model_encodes_windows_and_keeps_nothing(tmp_path: Path, save: Any, dim: int) -> None:
    save(tmp_path)
    encoder = TransformersAudioEncoder(
        TransformersAudioEncoder.Options(), device=CPU, seed=0, weights=str(tmp_path)
    )
    assert encoder.dim == dim
    first = encoder(sound()).features
    assert (first.shape, first.dtype) == ((dim,), torch.float32)
    assert not torch.equal(first, encoder(sound(seed=2)).features)
    assert torch.equal(first, encoder(sound()).features)
    assert encoder.weights()


def test_of_too_long_a_window_clap_hears_the_newest_part_every_time(tmp_path: Path) -> None:
    clap(tmp_path)
    encoder = TransformersAudioEncoder(
        TransformersAudioEncoder.Options(), device=CPU, seed=0, weights=str(tmp_path)
    )
    long = sound(40_000)
    assert torch.equal(encoder(long).features, encoder(long).features)


def test_ast_equals_the_model_called_by_hand(tmp_path: Path) -> None:
    ast(tmp_path)
    encoder = TransformersAudioEncoder(
        TransformersAudioEncoder.Options(), device=CPU, seed=0, weights=str(tmp_path)
    )
    inputs = ASTFeatureExtractor.from_pretrained(tmp_path)(
        sound().waveform, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = ASTModel.from_pretrained(tmp_path).eval()(**inputs).pooler_output[0]
    torch.testing.assert_close(encoder(sound()).features, expected)


def test_a_folder_without_preprocessing_is_one_clear_error(tmp_path: Path) -> None:
    ast(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match="preprocessor_config"):
        TransformersAudioEncoder(
            TransformersAudioEncoder.Options(), device=CPU, seed=0, weights=str(tmp_path)
        )


def test_sound_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    wav2vec2(tmp_path)
    encoder = TransformersAudioEncoder(
        TransformersAudioEncoder.Options(), device=CPU, seed=0, weights=str(tmp_path)
    )
    data = sound()
    data.waveform[3] = np.inf
    with pytest.raises(ValueError, match="finite"):
        encoder(data)
