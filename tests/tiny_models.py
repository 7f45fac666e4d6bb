"""Transformers models with random weights, as small as possible, in folders in the layout of the Hub."""

from pathlib import Path
from typing import Any, Final

from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SMALL: Final[dict[str, Any]] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "come", "here", "stop", "##s", "please")


def ast(folder: Path) -> None:
    """Write an audio model for 1.28 s of sound."""
    ASTModel(ASTConfig(hidden_size=16, max_length=128, num_mel_bins=32, **SMALL)).save_pretrained(folder)
    ASTFeatureExtractor(max_length=128, num_mel_bins=32).save_pretrained(folder)


def bert(folder: Path) -> None:
    """Write a text model with a vocabulary of a few words."""
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, **SMALL | {"num_hidden_layers": 2})
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer(**options: Any) -> BertTokenizer:
    """Return one with a vocabulary of a few words."""
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, **options)


def vit(folder: Path) -> None:
    """Write an image model without a pooling layer."""
    config = ViTConfig(hidden_size=16, image_size=32, patch_size=8, **SMALL)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
