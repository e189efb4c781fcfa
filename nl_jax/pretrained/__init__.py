"""Pretrained weights: file formats, model families and tokenizers."""

from nl_jax.pretrained.loading import Pretrained, load_pretrained

__all__ = ["Pretrained", "load_pretrained"]
