"""The corpora of a configuration: plain files and prepared ones."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nl_jax.data.documents import text_digest
from nl_jax.data.prepared import PreparedCorpus, is_prepared, open_prepared
from nl_jax.data.sources import (
    Document,
    DocumentsInMemory,
    DocumentSource,
    tokenize,
)
from nl_jax.data.text import TEXT_FIELDS, Corpus, DataConfig, load_corpus
from nl_jax.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    bounded_sample,
)
from nl_jax.errors import InputError


class Corpora(NamedTuple):
    """Corpora to train and evaluate on."""

    train: list[DocumentSource]
    """Training documents of each corpus."""
    held_out: list[DocumentsInMemory]
    """Documents of each corpus to evaluate on."""
    tokenizer: Tokenizer
    sha256: str
    """Hash of the text."""


def open_corpora(
    config: DataConfig,
    tokenizer: Tokenizer | None = None,
    *,
    separate: bool = False,
) -> Corpora:
    """Opens prepared corpora, and reads and tokenizes all other files.

    Args:
        config: which text to read, and which tokenizer to use.
        tokenizer: that of a checkpoint, instead of training a BPE.
        separate: whether each path is a corpus of its own. Otherwise, all files
            that are not prepared are one corpus, the first.

    Raises:
        InputError: as for :func:`~nl_jax.data.load_corpus` and
            :func:`~nl_jax.data.open_prepared`, or if prepared corpora have
            another tokenizer, or hold out different shares, or if settings
            have no effect.
    """
    prepared: dict[tuple[str, ...], PreparedCorpus] = {
        (path,): open_prepared(path, verify=config.verify)
        for path in config.paths
        if is_prepared(path)
    }
    if prepared and config.held_out_paths:
        raise InputError(
            "data.held_out_paths do not go with prepared corpora, such as "
            f"{min(prepared)[0]!r}, which hold out a part themselves"
        )
    share = _held_out_share(prepared)
    plain = tuple(p for p in config.paths if (p,) not in prepared)
    if not prepared:
        config.refuse(["verify"], "on text that is not prepared")
    elif plain:
        config.refuse(["held_out"], "beside prepared corpora")
    else:
        config.refuse(
            (*TEXT_FIELDS, "unique_paragraphs", "held_out"),
            "on a corpus that is prepared, which was settled then",
        )
    groups: list[tuple[str, ...]]
    if separate and config.paths:
        groups = [(path,) for path in config.paths]
    else:
        groups = [plain] if plain or not prepared else []
        groups += prepared
    texts = {
        paths: load_corpus(
            dataclasses.replace(config, paths=paths, weights=()), share
        )
        for paths in groups
        if paths not in prepared
    }
    if len(texts) > 1:
        texts = _without_held_out(texts)
    tokenizer = _choose(config, tokenizer, prepared, texts)
    train: list[DocumentSource] = []
    held_out: list[DocumentsInMemory] = []
    hashes = []
    for paths in groups:
        if paths in prepared:
            corpus = prepared[paths]
            train.append(corpus.train)
            most = config.max_held_out_bytes // len(groups)
            held_out.append(_some(corpus.held_out, tokenizer, most))
            hashes.append(corpus.sha256)
        else:
            text = texts[paths]
            # That of data.held_out_paths is the same for all corpora.
            again = config.held_out_paths and held_out
            for part, documents in (
                (train, text.train_documents),
                (held_out, () if again else text.held_out_documents),
            ):
                part.append(
                    DocumentsInMemory(tokenize(d, tokenizer) for d in documents)
                )
            hashes.append(text.sha256)
    if not any(source.weighted for source in (*train, *held_out)):
        config.refuse(["prompt_field"], "where no document has a prompt")
    sha256 = hashes[0]
    if len(hashes) > 1:
        sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Corpora(train, held_out, tokenizer, sha256)


def _held_out_share(
    prepared: Mapping[tuple[str, ...], PreparedCorpus],
) -> float | None:
    """Returns the share that all hold out by hash: none trains on another's."""
    share = None
    for paths, corpus in prepared.items():
        if share is None:
            share, first = corpus.held_out_share, paths[0]
        if corpus.held_out_share != share:
            raise InputError(
                f"data.paths: {first} was prepared with --held_out={share}, "
                f"but {paths[0]} with {corpus.held_out_share}, so one may "
                "train on what the other holds out; prepare both with one"
            )
    return share


def _without_held_out(
    texts: Mapping[tuple[str, ...], Corpus],
) -> dict[tuple[str, ...], Corpus]:
    """Leaves out what one text trains on and another holds out."""
    held_out = set()
    for text in texts.values():
        documents = [document.text for document in text.held_out_documents]
        # The first may be the rest of the last one that is trained on.
        whole = b"".join([text.train_documents[-1].text, *documents[:1]])
        held_out |= {text_digest(found) for found in (*documents, whole)}
    out = {}
    for paths, text in texts.items():
        kept = tuple(
            document
            for document in text.train_documents
            if text_digest(document.text) not in held_out
        )
        if not kept:
            raise InputError(
                f"data.paths: other files hold out all text of {paths[0]} that "
                "is not held out; leave it out"
            )
        out[paths] = text._replace(train_documents=kept)
    return out


def _choose(
    config: DataConfig,
    tokenizer: Tokenizer | None,
    prepared: Mapping[tuple[str, ...], PreparedCorpus],
    texts: Mapping[tuple[str, ...], Corpus],
) -> Tokenizer:
    """Returns the tokenizer of all corpora."""
    if config.tokenizer == "byte":
        chosen: Tokenizer | None = ByteTokenizer()
    elif config.tokenizer.endswith(".json"):
        chosen = BPETokenizer.from_file(config.tokenizer)
    else:
        chosen = tokenizer
    for paths, corpus in prepared.items():
        if config.tokenizer == "bpe":
            raise InputError(
                f"data.tokenizer='bpe' trains a tokenizer, but {paths[0]} of "
                "data.paths has one; leave data.tokenizer at 'auto'"
            )
        own = corpus.tokenizer.to_json()
        chosen = chosen or corpus.tokenizer
        needed = chosen.to_json()
        if own["hash"] != needed["hash"]:
            raise InputError(
                f"data.paths: {paths[0]} has the tokenizer {_words(own)}, but "
                f"the run has {_words(needed)}; leave data.tokenizer at "
                "'auto', or prepare the text with that one"
            )
    if chosen is None and config.tokenizer == "bpe":
        sample = bounded_sample(
            (d.text for text in texts.values() for d in text.train_documents),
            config.bpe_sample_bytes,
        )
        chosen = BPETokenizer.train(sample, config.bpe_vocab_size)
    return chosen or ByteTokenizer()


def _words(saved: Mapping[str, str]) -> str:
    return f"{saved['kind']!r} ({saved['hash'][:12]})"


def _some(
    source: DocumentSource, tokenizer: Tokenizer, most: int
) -> DocumentsInMemory:
    """Reads documents of a source at random, up to a number of bytes."""
    found = []
    # Documents that follow one another are often similar.
    for index in np.random.default_rng(0).permutation(len(source)):
        tokens, weights = source[int(index)]
        ends = np.cumsum(tokenizer.byte_lengths[tokens])
        count = int(np.searchsorted(ends, most, "right"))
        cut = None if weights is None else weights[:count]
        found.append(Document(tokens[:count], cut))
        most -= int(ends[-1])
        if most <= 0:
            break
    return DocumentsInMemory(found)
