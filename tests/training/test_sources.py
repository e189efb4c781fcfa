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
    # Neither is it when the held-out documents are evaluated, joined, and
    # nothing is put before them.
    expected: list[int] = []
    for text, prompt in found.held_out_documents:
        expected += [1] * bool(expected)  # The newline between documents.
        expected += [0] * prompt + [1] * (len(text) - prompt)
    dataset = prepare(config, 16)
    assert dataset.held_out.weights.tolist() == expected
    assert bytes(dataset.held_out.tokens.tolist()) == found.held_out
    # Gzip gets the bytes that the model is scored on.
    scored = zip(found.held_out[1:], expected[1:], strict=True)
    assert dataset.scored_text() == bytes(byte for byte, one in scored if one)
    path.write_text('{"say": "2"}')
    with pytest.raises(InputError, match=r"'ask'; .* data.prompt_field"):
        load_corpus(config)


@pytest.mark.parametrize(
    ("answers", "held_out", "words"),
    [
        (["", ""], "yes", "the training text is prompts only; give documents"),
        (["yes", ""], "", "the held-out text is prompts only; give documents"),
        (["yes", ""], "yes", ""),
    ],
)
def test_text_without_a_target_is_refused(tmp_path, answers, held_out, words):
    names = ("train", "held_out")
    for name, says in zip(names, (answers, [held_out]), strict=True):
        lines = [
            {"ask": f"{i} of {name}?", "say": s} for i, s in enumerate(says)
        ]
        lines[0]["ask"] += " Or two?"
        text = "\n".join(map(json.dumps, lines))
        (tmp_path / f"{name}.jsonl").write_text(text)
    paths = {"paths": "train", "held_out_paths": "held_out"}
    config = DataConfig(
        **{k: (f"{tmp_path}/{v}.jsonl",) for k, v in paths.items()},
        text_field="say",
        prompt_field="ask",
    )
    if not words:
        assert prepare(config, 4).scored_text() == b"yes"
        return
    with pytest.raises(InputError, match=words):
        prepare(config, 4)


def test_prompts_of_a_text_file_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text('{"text": "an answer", "ask": "a prompt"}')
    config = DataConfig(paths=(f"{tmp_path}/a.txt",), prompt_field="ask")
    with pytest.raises(InputError, match="'ask' has no effect where no docum"):
        prepare(config, 4)


def test_mixed_corpora_are_evaluated_once_on_the_same_files(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    config = DataConfig(
        paths=(f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"),
        weights=(2, 1),
        held_out_paths=(f"{tmp_path}/c.txt",),
    )
    assert bytes(prepare(config, 4).held_out.tokens.tolist()) == b"text of c"


def test_a_held_out_text_of_one_token_is_refused(tmp_path):
    """Nothing comes before it, so that it has no context to be scored in."""
    (tmp_path / "a.txt").write_text("some text")
    config = DataConfig(paths=(f"{tmp_path}/a.txt",), max_held_out_bytes=1)
    with pytest.raises(InputError, match="the held-out text has one token"):
        prepare(config, 2)


def test_empty_documents_are_left_out():
    documents = [Document(np.arange(n, dtype=np.int32)) for n in (2, 0, 3)]
    source = DocumentsInMemory(documents)
    assert source.lengths.tolist() == [2, 3] and len(source) == 2
