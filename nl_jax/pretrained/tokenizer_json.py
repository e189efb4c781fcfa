"""Tokenizers that come with pretrained weights, as data.

They are checked and rebuilt as JSON of the package ``tokenizers``, which is
needed only by who uses them.
"""

from collections.abc import Mapping
from typing import Any

from nl_jax.errors import InputError

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [],
    "smollm": [{"type": "Digits", "individual_digits": True}],
}
"""What comes before GPT-2's pattern, by GGUF's ``tokenizer.ggml.pre``."""
_NORMAL = 1
"""GGUF's type of a token that text is cut into; others stand for themselves."""


def check_byte_level(
    path: object, tokenizer: Mapping[str, Any], vocab_size: int
) -> bool:
    """Checks that a model has a row for each id.

    Args:
        path: how messages call the file.
        tokenizer: JSON of the package ``tokenizers``.
        vocab_size: rows of the embedding.

    Returns:
        Whether it is a byte-level BPE.

    Raises:
        InputError: if an id is beyond the model's, or the file is no
            tokenizer.
    """
    try:
        vocab = tokenizer["model"]["vocab"]
        # Of a Unigram ids are places.
        ids = set(
            range(len(vocab)) if isinstance(vocab, list) else vocab.values()
        )
        ids |= {token["id"] for token in tokenizer.get("added_tokens") or ()}
        whole = bool(ids) and all(type(i) is int and i >= 0 for i in ids)
        kind = (tokenizer.get("decoder") or {}).get("type")
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
    return kind == "ByteLevel" and len(ids) == most + 1


def gguf_tokenizer(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rebuilds the tokenizer of a GGUF file's metadata.

    Returns:
        JSON of the package ``tokenizers``; ``None`` if the file has none, or
        one of another kind than byte-level BPE with GPT-2's pattern.
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
