"""Byte and byte-level BPE tokenizers; both represent any text exactly."""

import hashlib
import json
from typing import Protocol

import numpy as np

from nl_jax.errors import InputError


class Tokenizer(Protocol):
    """Conversion of text to ids and back."""

    vocab_size: int
    """Number of ids, which start at 0."""
    byte_lengths: np.ndarray
    """Number of bytes that each id stands for, int32 ``[vocab_size]``."""

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids of UTF-8 text, int32."""

    def decode(self, tokens) -> bytes:
        """Returns the bytes of ids."""

    def to_json(self) -> dict:
        """Returns a description for :func:`from_json`, with its hash."""


class ByteTokenizer:
    """Tokenizer whose ids are the bytes of the text.

    Example:
        >>> ByteTokenizer().encode(b"ab").tolist()
        [97, 98]
    """

    vocab_size = 256

    def __init__(self):
        self.byte_lengths = np.ones(256, np.int32)

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the bytes as int32."""
        return np.frombuffer(text, np.uint8).astype(np.int32)

    def decode(self, tokens) -> bytes:
        """Returns the ids as bytes, with ``?`` for ids above 255."""
        return bytes(t if t < 256 else 63 for t in map(int, tokens))

    def to_json(self) -> dict:
        """Returns a description for :func:`from_json`, with its hash."""
        return {"kind": "byte", "hash": "byte"}


class BPETokenizer:
    """Byte-level BPE of the package ``tokenizers`` (extra ``experiments``)."""

    def __init__(self, model: str):
        """Makes a tokenizer from the package's JSON.

        Raises:
            InputError: if the package is missing or cannot read the JSON.
        """
        self._json = model
        package = _package()
        try:
            self._tokenizer = package.Tokenizer.from_str(model)
        except Exception as error:  # The package raises nothing narrower.
            raise InputError(
                "the tokenizer is damaged, or of a kind that the installed "
                f"package tokenizers does not read ({error})"
            ) from error
        self.vocab_size = self._tokenizer.get_vocab_size()
        alphabet = _alphabet()
        self._bytes = [
            bytes(alphabet[c] for c in self._tokenizer.id_to_token(token))
            for token in range(self.vocab_size)
        ]
        lengths = [len(spelled) for spelled in self._bytes]
        self.byte_lengths = np.asarray(lengths, np.int32)

    @classmethod
    def train(cls, text: bytes, vocab_size: int) -> "BPETokenizer":
        """Trains a BPE of at most ``vocab_size`` ids on ``text``."""
        package = _package()
        tokenizer = package.Tokenizer(package.models.BPE())
        level = package.pre_tokenizers.ByteLevel
        tokenizer.pre_tokenizer = level(add_prefix_space=False)
        trainer = package.trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=level.alphabet(),
            show_progress=False,
        )
        lines = text.decode("utf-8", "replace").splitlines(keepends=True)
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.to_str())

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids of UTF-8 text, int32."""
        ids = self._tokenizer.encode(text.decode("utf-8", "replace")).ids
        return np.asarray(ids, np.int32)

    def decode(self, tokens) -> bytes:
        """Returns the bytes of the ids, with ``?`` for unknown ids."""
        spelled = self._bytes
        return b"".join(
            spelled[t] if t < len(spelled) else b"?" for t in map(int, tokens)
        )

    def to_json(self) -> dict:
        """Returns the package's JSON and its hash."""
        digest = hashlib.sha256(self._json.encode()).hexdigest()
        return {"kind": "bpe", "hash": digest, "model": json.loads(self._json)}


def from_json(saved: dict) -> Tokenizer:
    """Returns the tokenizer described by ``to_json``.

    Raises:
        InputError: if the description is of an unknown kind.
    """
    if saved.get("kind") == "byte":
        return ByteTokenizer()
    if saved.get("kind") == "bpe":
        return BPETokenizer(json.dumps(saved["model"]))
    raise InputError(
        f"the checkpoint's tokenizer has kind {saved.get('kind')!r}; this "
        "version knows 'byte' and 'bpe'"
    )


def _package():
    try:
        import tokenizers
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise InputError(
            "data.tokenizer='bpe' needs the package tokenizers: "
            'pip install -e ".[experiments]"'
        ) from error
    return tokenizers


def _alphabet() -> dict[str, int]:
    """Returns the byte for each printable character of byte-level BPE."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}
