"""Pretrained transformers as models of this library.

A folder of Hugging Face's layout (``config.json`` and safetensors) or a GGUF
file becomes a :class:`~nl_jax.models.LanguageModel` and its parameters. Files
are only read; pickles are refused.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from nl_jax.data import BPETokenizer, ByteTokenizer, Tokenizer
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.pretrained.gguf_source import MAGIC, open_gguf
from nl_jax.pretrained.gpt2 import hf_gpt2
from nl_jax.pretrained.llama import gguf_llama, hf_llama
from nl_jax.pretrained.own_layout import KIND, read_own
from nl_jax.pretrained.safetensors_source import (
    INDEX,
    open_safetensors,
    read_json,
    refuse_pickle,
)
from nl_jax.pretrained.tokenizer_json import (
    BYTES_JSON,
    check_byte_level,
    gguf_tokenizer,
)

_ARCHITECTURES: dict[str, dict[str, Callable]] = {
    "safetensors": {
        "llama": hf_llama,
        "mistral": hf_llama,
        "qwen2": hf_llama,
        "gpt2": hf_gpt2,
        KIND: read_own,
    },
    "gguf": {"llama": gguf_llama, "qwen2": gguf_llama},
}
"""Functions from tensors, configuration and window to a model and its
parameters, by file format and by the architecture's name in files."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained model with its parameters and its tokenizer."""

    model: LanguageModel
    """The model, without parameters."""
    variables: Any
    """The model's parameters, float32."""
    tokenizer_json: str | None = None
    """Its tokenizer as JSON of the package ``tokenizers``; ``None`` unless it
    is a byte-level BPE."""

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer (extra ``experiments``).

        Raises:
            InputError: if there is none, the package is missing, or the
                tokenizer would change text.
        """
        if self.tokenizer_json is None:
            raise InputError(
                "the pretrained model came without a byte-level BPE "
                "tokenizer; give token ids of your own"
            )
        if self.tokenizer_json == BYTES_JSON:
            return ByteTokenizer()
        return BPETokenizer(self.tokenizer_json)


def load_pretrained(
    path: str | os.PathLike, *, window: int | None = None
) -> Pretrained:
    """Loads a pretrained transformer (extra ``pretrained``).

    Reads Llama and Qwen2 from safetensors or GGUF, Mistral and GPT-2 from
    safetensors, and what :func:`save_pretrained` has saved. bfloat16, float16
    and quantised weights become float32. Logits are those of the original model
    up to rounding in float32.

    Args:
        path: a folder with ``config.json``, ``model.safetensors`` or its shards
            and, optionally, ``tokenizer.json``; or a ``.safetensors`` or GGUF
            file, or the index of shards.
        window: number of tokens that attention sees, and whose keys and values
            a state holds; ``None`` for the model's whole context.

    Returns:
        The model, its parameters and its tokenizer.

    Raises:
        InputError: if a file is a pickle, missing, truncated or damaged, the
            architecture is not supported, a tensor is missing or of another
            shape, the tokenizer has ids that the model lacks, or the window is
            larger than the model's context.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    refuse_pickle(path)
    if path.name == INDEX:
        path = path.parent
    if path.is_file() and path.suffix != ".safetensors":
        return _from_gguf(path, window)
    source, config = open_safetensors(path)
    kind = config.get("model_type")
    model, variables = _load(path, "safetensors", kind, source, config, window)
    folder = path if path.is_dir() else path.parent
    text = None
    if (folder / "tokenizer.json").is_file():
        file = folder / "tokenizer.json"
        found = read_json(file)
        byte_level = check_byte_level(file, found, model.config.vocab_size)
        text = json.dumps(found) if byte_level else None
    return Pretrained(model, variables, text)


def _from_gguf(path, window):
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path} is neither a safetensors nor a GGUF file")
    source, facts = open_gguf(path)
    kind = facts.get("general.architecture")
    model, variables = _load(path, "gguf", kind, source, facts, window)
    found = gguf_tokenizer(facts)
    if found is not None:
        check_byte_level(path, found, model.config.vocab_size)
    text = None if found is None else json.dumps(found)
    return Pretrained(model, variables, text)


def _load(path, form, kind, source, facts, window):
    known = _ARCHITECTURES[form]
    if kind not in known:
        raise InputError(
            f"{path} holds the architecture {kind!r}; from {form} this "
            f"version reads {', '.join(known)}"
        )
    try:
        return known[kind](source, facts, window)
    except InputError:
        raise
    except ValueError as error:  # A configuration that no model can have.
        raise InputError(f"{path}: {error}") from error
