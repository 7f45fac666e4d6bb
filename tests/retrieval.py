"""Tiny random CLIP, CLAP and sentence models as folders of the Hub hold them, tokenizers included."""

from pathlib import Path
from string import ascii_lowercase
from typing import Any

from perception.models.weights import seeded

SMALL: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]


def clip(folder: Path, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    vocab = ["<|startoftext|>", "<|endoftext|>", *LETTERS]
    text = {**SMALL, "hidden_size": 16, "vocab_size": len(vocab), "bos_token_id": 0, "eos_token_id": 1}
    vision = {**SMALL, "hidden_size": 16, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    with seeded(seed):
        CLIPModel(config).save_pretrained(folder)
    size = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    CLIPTokenizer(vocab={word: index for index, word in enumerate(vocab)}, merges=[]).save_pretrained(folder)
    return folder


def clap(folder: Path, seed: int = 0) -> Path:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    vocab = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *ascii_lowercase, "Ġ"]
    text = {**SMALL, "hidden_size": 16, "vocab_size": len(vocab), "max_position_embeddings": 80}
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
    with seeded(seed):
        config = ClapConfig(text_config=text, audio_config=audio, projection_dim=24)
        ClapModel(config).save_pretrained(folder)
    ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="rand_trunc").save_pretrained(folder)
    tokens = {word: index for index, word in enumerate(vocab)}
    RobertaTokenizer(vocab=tokens, merges=[]).save_pretrained(folder)
    return folder


def sentences(folder: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "come", "here", "stop", "look", "at", "me"]
    with seeded(seed):
        BertModel(BertConfig(hidden_size=16, vocab_size=len(vocab), **SMALL)).save_pretrained(folder)
    BertTokenizer(vocab={word: index for index, word in enumerate(vocab)}).save_pretrained(folder)
    return folder
