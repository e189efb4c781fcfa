"""Tokenizers of pretrained models, as JSON of the package ``tokenizers``.

The package itself is needed only to run them.
"""

import json
from collections.abc import Mapping
from typing import Any

from nl_jax.data import Tokenizer
from nl_jax.data.byte_level import byte_alphabet, is_byte_level
from nl_jax.errors import InputError

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
BYTES_JSON = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": _BYTE_LEVEL,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": byte_alphabet(), "merges": []},
    }
)
"""A tokenizer whose ids are bytes."""
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
}
"""Splits before GPT-2's pattern, by GGUF's ``tokenizer.ggml.pre``."""
_NORMAL = 1
"""GGUF's type of ordinary tokens; all others are treated as special tokens."""


def tokenizer_text(tokenizer: Tokenizer) -> str:
    """Returns a tokenizer as JSON of the package ``tokenizers``.

    Example:
        >>> from nl_jax.data import ByteTokenizer
        >>> json.loads(tokenizer_text(ByteTokenizer()))["model"]["vocab"]["a"]
        97
    """
    saved = tokenizer.to_json()
    if saved["kind"] == "byte":
        return BYTES_JSON
    # Other programs decode by it.
    return json.dumps(saved["model"] | {"decoder": _BYTE_LEVEL})


def check_byte_level(
    path: object, tokenizer: Mapping[str, Any], vocab_size: int
) -> bool:
    """Checks a tokenizer, and returns whether it is a byte-level BPE.

    Args:
        path: name of the file in error messages.
        tokenizer: JSON of the package ``tokenizers``.
        vocab_size: number of ids of the model.

    Raises:
        InputError: if it has ids that the model lacks, or is no tokenizer.
    """
    try:
        vocab = tokenizer["model"]["vocab"]
        # The ids of a Unigram model are indices into its list.
        ids = set(
            range(len(vocab)) if isinstance(vocab, list) else vocab.values()
        )
        ids |= {token["id"] for token in tokenizer.get("added_tokens") or ()}
        whole = bool(ids) and all(type(i) is int and i >= 0 for i in ids)
        byte_level = is_byte_level(tokenizer)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged or no tokenizer")
    most = max(ids)
    if most >= vocab_size:
        raise InputError(
            f"{path}: the tokenizer does not match the model; its largest id "
            f"is {most}, the model has 0 to {vocab_size - 1}"
        )
    return byte_level


def gguf_tokenizer(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Builds a tokenizer from the metadata of a GGUF file.

    Returns:
        JSON of the package ``tokenizers``; ``None`` unless the file has a
        byte-level BPE with GPT-2's pattern.
    """
    tokens = facts.get("tokenizer.ggml.tokens")
    merges = facts.get("tokenizer.ggml.merges")
    kinds = facts.get("tokenizer.ggml.token_type") or []
    before = _SPLITS.get(facts.get("tokenizer.ggml.pre", "gpt-2"))
    bpe = facts.get("tokenizer.ggml.model") == "gpt2"
    if not (bpe and tokens and merges) or before is None:
        return None
    whole = ("single_word", "lstrip", "rstrip", "normalized")
    special = [
        {"id": index, "content": token}
        | dict.fromkeys(whole, False)
        | {"special": True}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
        if kind != _NORMAL
    ]
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*before, _BYTE_LEVEL],
        },
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
