"""Bytes, or a byte-level BPE: both spell any text and lose nothing."""

import hashlib
import json
from typing import Protocol

import numpy as np

from nl_jax.errors import InputError


class Tokenizer(Protocol):
    """Text to ids and back."""

    vocab_size: int
    """Ids are below this."""
    byte_lengths: np.ndarray
    """Bytes that each id stands for, int32 ``[vocab_size]``."""

    def encode(self, text: bytes) -> np.ndarray:
        """Returns the ids of UTF-8 text, int32."""

    def decode(self, tokens) -> bytes:
        """Returns the bytes of ids."""

    def to_json(self) -> dict:
        """Returns what :func:`from_json` reads, and a hash of it."""


class ByteTokenizer:
    """Each byte is its own id.

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
        """Returns ids as bytes; those of a wider model as ``?``."""
        return bytes(t if t < 256 else 63 for t in map(int, tokens))

    def to_json(self) -> dict:
        """Returns a description to save beside a model."""
        return {"kind": "byte", "hash": "byte"}


class BPETokenizer:
    """Byte-level BPE of the ``tokenizers`` package (extra ``experiments``)."""

    def __init__(self, model: str):
        """Reads the package's own JSON.

        Raises:
            InputError: if the package cannot.
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
        """Learns at most ``vocab_size`` entries from ``text``."""
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
        """Returns the bytes of ids."""
        spelled = self._bytes
        return b"".join(
            spelled[t] if t < len(spelled) else b"?" for t in map(int, tokens)
        )

    def to_json(self) -> dict:
        """Returns the package's JSON and its hash."""
        digest = hashlib.sha256(self._json.encode()).hexdigest()
        return {"kind": "bpe", "hash": digest, "model": json.loads(self._json)}


def from_json(saved: dict) -> Tokenizer:
    """Returns the tokenizer that ``to_json`` described.

    Raises:
        InputError: if the description is of no known kind.
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
    """The printable character that byte-level BPE writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}
