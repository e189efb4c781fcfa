"""Pretrained weights: file formats, model families and tokenizers."""

from nl_jax.pretrained.loading import Pretrained, load_pretrained
from nl_jax.pretrained.saving import DTYPES, save_pretrained
from nl_jax.pretrained.tokenizer_json import tokenizer_text

__all__ = [
    "DTYPES",
    "Pretrained",
    "load_pretrained",
    "save_pretrained",
    "tokenizer_text",
]
