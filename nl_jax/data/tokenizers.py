"""Byte and byte-level BPE tokenizers; both represent any text exactly."""

import hashlib
import heapq
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from nl_jax.data.byte_level import audit, byte_alphabet
from nl_jax.errors import InputError

_PROBE = "  Ab\t c\r\n\n e\u0301\u00a0ﬁ ½ naïve 日本 😀 1234 they're."
"""Text that tokenizers which change anything are likely to change."""


class Tokenizer(Protocol):
    """Conversion of text to ids and back."""

    vocab_size: int
    """Number of ids, which start at 0."""
    byte_lengths: np.ndarray
    """Bytes of text that each id spells, int32 ``[vocab_size]``; 0 for special
    tokens, such as BOS."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids of a text, int32."""

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

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the bytes as int32."""
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32)

    def decode(self, tokens) -> bytes:
        """Returns the ids as bytes, with ``?`` for unknown ids."""
        return bytes(t if 0 <= t < 256 else 63 for t in map(int, tokens))

    def to_json(self) -> dict:
        """Returns a description for :func:`from_json`, with its hash."""
        return {"kind": "byte", "hash": "byte"}


class BPETokenizer:
    """Byte-level BPE of the package ``tokenizers`` (extra ``experiments``).

    Ids spell exactly the bytes that were encoded, valid UTF-8 or not. So do the
    ids of ``a`` followed by those of ``b``, even if ``a + b`` has other ids.
    Nothing is added, not even BOS. Text that spells an added token, such as
    ``<|endoftext|>``, becomes that token.
    """

    def __init__(self, model: str):
        """Makes a tokenizer from the package's JSON.

        What would change text is switched off; see
        :func:`~nl_jax.data.byte_level.audit`.

        Raises:
            InputError: if the package is missing or cannot read the JSON, or
                the tokenizer would change text.
        """
        package = _package()
        try:
            self._model = audit(json.loads(model))
            # One form of all equal descriptions, for the hash.
            canonical = json.dumps(self._model, sort_keys=True)
            self._tokenizer = package.Tokenizer.from_str(canonical)
        except InputError:
            raise
        except Exception as error:  # The package raises nothing narrower.
            raise InputError(
                "the tokenizer is damaged, or of a kind that the installed "
                f"package tokenizers does not read ({error})"
            ) from error
        self._hash = hashlib.sha256(canonical.encode()).hexdigest()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        owners = {token: content for content, token in ids.items()}
        for content, token in ids.items():
            if owners[token] != content:
                raise InputError(
                    f"the tokenizer's tokens {content!r} and "
                    f"{owners[token]!r} share the id {token}"
                )
        self.vocab_size = max(ids.values()) + 1
        added = {t["content"]: t["id"] for t in self._model["added_tokens"]}
        alphabet = byte_alphabet()
        for content, token in added.items():
            shown = content in self._model["model"]["vocab"]
            shown &= alphabet.keys() >= {*content} and not content.isascii()
            if shown or ids.get(content) != token:
                raise InputError(
                    f"the tokenizer's added token {content!r} cannot have the "
                    f"id {token}; ids of added tokens follow on the others "
                    "without a gap, and their text must not stand for bytes"
                )
        self._bytes = [b"?"] * self.vocab_size
        for content, token in ids.items():
            plain = content not in added and alphabet.keys() >= {*content}
            self._bytes[token] = (
                bytes(alphabet[c] for c in content)
                if plain
                else content.encode()
            )
        lengths = [len(spelled) for spelled in self._bytes]
        self.byte_lengths = np.asarray(lengths, np.int32)
        special = [
            t["id"] for t in self._model["added_tokens"] if t.get("special")
        ]
        self.byte_lengths[special] = 0
        self._single = {
            byte: ids[shown] for shown, byte in alphabet.items() if shown in ids
        }
        if self.decode(self.encode(_PROBE)) != _PROBE.encode():
            raise InputError(
                "the tokenizer changes text; give a byte-level BPE, such as "
                "GPT-2's"
            )

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BPETokenizer":
        """Reads a ``tokenizer.json``.

        Raises:
            InputError: if it cannot be read, or as for the constructor.
        """
        try:
            file = pathlib.Path(path).expanduser()
            if file.exists() and not file.is_file():
                raise InputError("it is not a file; give a tokenizer.json")
            return cls(file.read_text("utf-8-sig"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot read the tokenizer {path} ({why})"
            ) from error

    @classmethod
    def train(cls, text: bytes, vocab_size: int) -> "BPETokenizer":
        """Trains a BPE of at most ``vocab_size`` ids on ``text``.

        Takes over 100 times its size in memory; see :func:`bounded_sample`.
        """
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

    def encode(self, text: str | bytes) -> np.ndarray:
        """Returns the ids of a text, int32.

        Raises:
            InputError: if the tokenizer has no token for one of its bytes.
        """
        text = as_bytes(text)
        absent = {*text} - self._single.keys()
        if absent:
            raise InputError(
                f"the tokenizer has no token for the byte 0x{min(absent):02x} "
                "in the text; leave it out, or use another tokenizer"
            )
        ids: list[int] = []
        # Bytes that are not UTF-8 are spelled one by one.
        decoded = text.decode("utf-8", "surrogateescape")
        for part in re.split("([\udc80-\udcff]+)", decoded):
            if "\udc80" <= part[:1] <= "\udcff":
                ids += [self._single[ord(char) - 0xDC00] for char in part]
            else:
                ids += self._tokenizer.encode(part).ids
        return np.asarray(ids, np.int32)

    def decode(self, tokens) -> bytes:
        """Returns the bytes of the ids, with ``?`` for unknown ids."""
        spelled = self._bytes
        return b"".join(
            spelled[t] if 0 <= t < len(spelled) else b"?"
            for t in map(int, tokens)
        )

    def to_json(self) -> dict:
        """Returns the package's JSON and its hash."""
        return {"kind": "bpe", "hash": self._hash, "model": self._model}


def bounded_sample(texts: Iterable[bytes], most: int) -> bytes:
    """Chooses pieces of texts at random, of at most so many bytes together.

    The choice depends on nothing but the texts; copies, but for space around
    them, count once.

    Args:
        texts: of which a sample and one more are in memory at a time.
        most: number of bytes.

    Example:
        >>> bounded_sample([b"one", b"two", b"three"], 11)
        b'twoonethree'
        >>> bounded_sample([b"one", b"two", b"three"], 9)
        b'twoonethr'
        >>> bounded_sample([b"one", b"two", b" one", b"three"], 11)
        b'twoonethree'
    """
    kept: list[tuple[int, bytes]] = []
    ranks: set[int] = set()
    size = 0
    for text in texts:
        for piece in _pieces(text.lstrip()):
            # Those of the least hashes are kept; a heap begins with its least.
            digest = hashlib.sha256(piece.strip()).digest()
            rank = int.from_bytes(digest[:8], "big")
            if rank in ranks:
                continue
            ranks.add(rank)
            heapq.heappush(kept, (-rank, piece))
            size += len(piece)
            while size - len(kept[0][1]) >= most:
                # A copy of it is dropped again: its hash is still the greatest.
                last, dropped = heapq.heappop(kept)
                ranks.remove(-last)
                size -= len(dropped)
    return b"".join(piece for _, piece in sorted(kept, reverse=True))[:most]


def _pieces(text: bytes, size: int = 1 << 16) -> Iterator[bytes]:
    """Cuts a text at lines' ends, if there are any."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = (text.rfind(b"\n", start, end) + 1) or end
        yield text[start:end]
        start = end


def from_json(saved: dict) -> Tokenizer:
    """Returns the tokenizer described by ``to_json``.

    Raises:
        InputError: if the description is of an unknown kind.
    """
    if saved.get("kind") == "byte":
        return ByteTokenizer()
    if saved.get("kind") == "bpe":
        return BPETokenizer(json.dumps(saved.get("model")))
    raise InputError(
        f"the checkpoint's tokenizer has kind {saved.get('kind')!r}; this "
        "version knows 'byte' and 'bpe'"
    )


def as_bytes(text: str | bytes) -> bytes:
    """Returns text as UTF-8.

    Bytes of the command line that were not UTF-8 come back as they were.

    Raises:
        InputError: if the text has another lone surrogate.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text has a lone surrogate, {text[error.start]!r}, at "
            f"character {error.start}, which UTF-8 cannot hold; leave it out"
        ) from error


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
