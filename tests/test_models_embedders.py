"""Embedders give what transformers itself gives for the same input, as unit vectors."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from perception.errors import WeightsError
from perception.features.resample import resample
from perception.models.embedders import (
    PictureEmbedder,
    SentenceEmbedder,
    SoundEmbedder,
    Vectors,
)
from perception.models.lexical import lexical_similarity
from tests.retrieval import clap, clip, sentences

CPU = torch.device("cpu")
TEXTS = ["a red cup", "come here"]


def unit(features: torch.Tensor) -> Vectors:
    vectors: Vectors = (features / features.norm(dim=-1, keepdim=True)).detach().numpy()
    return vectors


def test_pictures_and_texts_are_embedded_as_clip_does(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    embedder = PictureEmbedder(str(clip(tmp_path)), device=CPU)
    images = [np.random.default_rng(n).integers(0, 256, (40, 40 + 20 * n, 3), np.uint8) for n in range(2)]
    model = CLIPModel.from_pretrained(tmp_path).eval()
    rgb = [torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1) for image in images]
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(images=rgb, return_tensors="pt")
    expected = unit(model.get_image_features(**pixels).pooler_output)
    np.testing.assert_allclose(embedder.pictures(images), expected, atol=1e-6)
    tokens = CLIPTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    assert len(set(tokens["input_ids"][0].tolist())) > 5
    expected = unit(model.get_text_features(**tokens).pooler_output)
    np.testing.assert_allclose(embedder.texts(TEXTS), expected, atol=1e-6)
    assert abs(expected[0] @ expected[1]) < 0.999


def test_sounds_and_texts_are_embedded_as_clap_does(tmp_path: Path) -> None:
    from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

    embedder = SoundEmbedder(str(clap(tmp_path)), device=CPU)
    sound = np.random.default_rng(1).standard_normal(12_000).astype(np.float32) * 0.1
    model = ClapModel.from_pretrained(tmp_path).eval()
    inputs = ClapFeatureExtractor.from_pretrained(tmp_path)(
        resample(sound, 16_000, 48_000), sampling_rate=48_000, return_tensors="pt"
    )
    expected = unit(model.get_audio_features(**inputs).pooler_output)
    np.testing.assert_allclose(embedder.sound(sound, 16_000), expected, atol=1e-6)
    tokens = RobertaTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    expected = unit(model.get_text_features(**tokens).pooler_output)
    np.testing.assert_allclose(embedder.texts(TEXTS), expected, atol=1e-6)
    assert abs(expected[0] @ expected[1]) < 0.9999


def test_a_sentence_is_the_mean_of_its_states(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    embedder = SentenceEmbedder(str(sentences(tmp_path)), device=CPU)
    tokens = AutoTokenizer.from_pretrained(tmp_path)(["come here", "stop"], padding=True, return_tensors="pt")
    states = AutoModel.from_pretrained(tmp_path).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    expected = unit((states * mask).sum(dim=1) / mask.sum(dim=1))
    np.testing.assert_allclose(embedder.texts(["come here", "stop"]), expected, atol=1e-6)
    assert embedder.texts([]).shape == (0, 16)


def test_other_weights_have_another_hash(tmp_path: Path) -> None:
    for make, embedder in ((clip, PictureEmbedder), (clap, SoundEmbedder), (sentences, SentenceEmbedder)):
        folders = [str(make(tmp_path / f"{make.__name__}-{seed}", seed)) for seed in (1, 2)]
        hashes = [embedder(folder, device=CPU).hash for folder in (*folders, folders[0])]
        assert hashes[0] == hashes[2] != hashes[1]


def test_a_model_without_the_space_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "clip")
    sentences(tmp_path / "sentences")
    with pytest.raises(WeightsError, match="a BertModel has no common space with image"):
        PictureEmbedder(str(tmp_path / "sentences"), device=CPU)
    with pytest.raises(WeightsError, match="neither a folder here nor a Hub name"):
        PictureEmbedder("/no/such/folder", device=CPU)


def test_without_a_model_words_and_spelling_count() -> None:
    commands = ["come here", "stop", "look at me", "come over here please"]
    assert lexical_similarity("come here", commands).argmax() == 0
    assert lexical_similarity("stopp", commands).argmax() == 1
    assert lexical_similarity("xyz", commands).tolist() == [0, 0, 0, 0]
    assert lexical_similarity("come", ["", "?"]).tolist() == [0, 0]


def test_words_and_spelling_count_alike() -> None:
    commands, query = ["come here", "stop", "look at me", "come over here please"], ["come here"]
    kinds = (
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
    )
    cosines = [cosine_similarity(k.fit_transform(commands), k.transform(query))[:, 0] for k in kinds]
    np.testing.assert_allclose(lexical_similarity(query[0], commands), np.mean(cosines, axis=0), atol=1e-6)
