"""Weights that others trained: file formats, model families, tokenizers."""

from nl_jax.pretrained.loading import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]
