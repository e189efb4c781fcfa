"""Audit of byte-level BPE tokenizers: what they encode must decode to itself.

Tokenizers of the package ``tokenizers`` can also cut, pad, normalise and
complete text. What only adds to it or cuts it is switched off; tokenizers that
change text in another way are refused.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from nl_jax.errors import InputError

_SPLITTERS = ("ByteLevel", "Split", "Digits", "Punctuation")
"""Pre-tokenizers that can only split text."""
_CONTROL = (*range(9), 11, 12, *range(14, 32), 127)
_UNNEEDED = frozenset((*_CONTROL, 192, 193, 241, 242, *range(245, 256)))
"""Bytes of no character of Unicode but control characters."""
_WORDS = "give a byte-level BPE, such as GPT-2's"


def byte_alphabet() -> dict[str, int]:
    """Returns the byte for each printable character of byte-level BPE."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def is_byte_level(model: Mapping[str, Any]) -> bool:
    """Returns whether a tokenizer's JSON is that of a byte-level BPE."""
    kinds = [step["type"] for step in _steps(model.get("pre_tokenizer"))]
    return (
        model["model"].get("type", "BPE") == "BPE"
        and isinstance(model["model"]["vocab"], Mapping)
        and "ByteLevel" in kinds
    )


def audit(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer's JSON without what would change text.

    Switched off are truncation, padding, post-processors, which add tokens such
    as BOS, random merges, prefix spaces, and the whitespace that added tokens
    swallow. Normalisation to NFC is too: text in NFC, as nearly all is, has the
    same ids without it.

    Args:
        model: JSON of the package ``tokenizers``.

    Raises:
        InputError: if it is not a byte-level BPE, changes text in another way,
            or lacks bytes that text is made of.
    """
    try:
        return _audited(model)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("the tokenizer is damaged") from error


def _audited(model) -> dict[str, Any]:
    if not is_byte_level(model):
        raise InputError(f"the tokenizer is not a byte-level BPE; {_WORDS}")
    for step in _steps(model.get("normalizer")):
        if step["type"] != "NFC":
            raise InputError(
                f"the tokenizer's normalizer {step['type']} changes text; "
                f"{_WORDS}"
            )
    for step in _steps(model["pre_tokenizer"]):
        behavior = step.get("behavior")
        if step["type"] not in _SPLITTERS or behavior == "Removed":
            raise InputError(
                f"the tokenizer's pre_tokenizer {step['type']} may change "
                f"text; {_WORDS}"
            )
    bpe = model["model"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(name):
            raise InputError(
                f"the tokenizer's {name}={bpe[name]!r} changes text; {_WORDS}"
            )
    missing = [
        f"0x{byte:02x}"
        for character, byte in byte_alphabet().items()
        if character not in bpe["vocab"] and byte not in _UNNEEDED
    ]
    if missing:
        raise InputError(
            f"the tokenizer has no token for {len(missing)} of the bytes that "
            f"text is made of ({', '.join(missing[:3])}, …); {_WORDS}"
        )
    added = [
        token | {"lstrip": False, "rstrip": False}
        for token in model.get("added_tokens") or ()
    ]
    off = ("truncation", "padding", "normalizer", "post_processor", "decoder")
    return {
        **model,
        **dict.fromkeys(off),
        "pre_tokenizer": _without_prefix_space(model["pre_tokenizer"]),
        "added_tokens": added,
        "model": {**bpe, "dropout": None},
    }


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yields the steps of a normaliser or pre-tokenizer."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for part in step.get("normalizers") or step.get("pretokenizers") or ():
            yield from _steps(part)
    else:
        yield step


def _without_prefix_space(step: Mapping[str, Any]) -> dict[str, Any]:
    if step["type"] == "Sequence":
        parts = [_without_prefix_space(part) for part in step["pretokenizers"]]
        return {**step, "pretokenizers": parts}
    off = {"add_prefix_space": False} if step["type"] == "ByteLevel" else {}
    return {**step, **off}
