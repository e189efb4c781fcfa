"""Sources of documents: what is read is what was written, and masked."""

import json

import numpy as np
import pytest

from nl_jax.data import (
    ByteTokenizer,
    DataConfig,
    Document,
    DocumentsInMemory,
    load_corpus,
    prepare,
    tokenize,
)
from nl_jax.errors import InputError


def test_documents_join_to_the_text(tmp_path):
    """A document that the held-out part begins in is in both, cut there."""
    for i in range(6):
        text = "".join(f"{i} {line}\n" for line in range(40 + i))
        (tmp_path / f"{i}.txt").write_text(text)
    found = load_corpus(DataConfig(paths=(str(tmp_path),), held_out=0.3))
    for part in ("train", "held_out"):
        texts = [d.text for d in getattr(found, f"{part}_documents")]
        assert b"\n".join(texts).strip() == getattr(found, part).strip()
        assert all(texts)
    assert len(found.train_documents + found.held_out_documents) in (6, 7)


def test_a_prompt_is_no_target(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"ask": f"{i}+{i}=", "say": f"{2 * i}, naïve"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, pairs)))
    config = DataConfig(
        paths=(str(path),), text_field="say", prompt_field="ask"
    )
    found = load_corpus(config)
    source = DocumentsInMemory(
        tokenize(document, ByteTokenizer())
        for document in found.train_documents
    )
    prompts = {f"{p['ask']}{p['say']}".encode(): len(p["ask"]) for p in pairs}
    whole = 0
    for i, length in enumerate(source.lengths):
        tokens, weights = source[i]
        assert len(tokens) == length and tokens.dtype == np.int32
        prompt = prompts.get(tokens.astype(np.uint8).tobytes())
        if prompt:  # The last may be cut.
            whole += 1
            assert weights.tolist() == [0] * prompt + [1] * (length - prompt)
    assert whole >= len(source) - 1 > 10
    # Neither is it when the held-out documents are evaluated, joined.
    expected: list[int] = []
    for text, prompt in found.held_out_documents:
        expected += [1] * bool(expected)  # The newline between documents.
        expected += [0] * prompt + [1] * (len(text) - prompt)
    held_out = prepare(config, 16).held_out
    assert held_out.weights.tolist() == [1, *expected]
    assert bytes(held_out.tokens[1:].tolist()) == found.held_out
    path.write_text('{"say": "2"}')
    with pytest.raises(InputError, match=r"'ask'; .* data.prompt_field"):
        load_corpus(config)


def test_empty_documents_are_left_out():
    documents = [Document(np.arange(n, dtype=np.int32)) for n in (2, 0, 3)]
    source = DocumentsInMemory(documents)
    assert source.lengths.tolist() == [2, 3] and len(source) == 2
