"""Bits per byte, against code lengths that are known without the library."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import stream
from nl_jax.data import (
    CONTEXTS,
    BPETokenizer,
    Document,
    DocumentsInMemory,
    make_iterator,
    pieces,
)
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.training import LossSums, PositionTable, bits_per_byte, evaluate
from nl_jax.training.step import predict
from tests.training.conftest import LENGTHS, draw
from tests.training.test_tokenizers import BPE, added, changed

TEXT = "naïve words, then more words and 日本; ".encode() * 9
BYTES = np.frombuffer(TEXT, np.uint8).astype(np.int32)


def split(tokens, sizes):
    parts = np.split(tokens[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [Document(part) for part in parts]


DOCUMENTS = {
    sizes: split(BYTES, sizes) for sizes in ((11, 5, 30, 2, 1), (0, 7), (50,))
}


@dataclasses.dataclass(frozen=True)
class Code:
    """Model that expects each id with probability 2^-bits, whatever it reads.

    The first ``few`` ids cost ``short`` bits each, and all others the same.
    """

    vocab: int = 256
    few: int = 0
    short: int = 3

    @functools.cached_property
    def bits(self):
        rest = self.vocab - self.few
        left = 1 - self.few * 2.0**-self.short
        return [self.short] * self.few + [-math.log2(left / rest)] * rest

    def apply(self, variables, tokens, state):
        logits = -math.log(2) * jnp.array(self.bits)
        return jnp.broadcast_to(logits, (*tokens.shape, self.vocab)), state

    def init_state(self, variables, rows):
        return jnp.zeros(rows)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_uniform_model_has_eight_bits(context):
    found = evaluate(
        Code(), {}, DOCUMENTS[11, 5, 30, 2, 1], LENGTHS, context=context
    )
    assert found.total() == pytest.approx(8, abs=1e-6)
    # The first byte of each document is not predicted, or that of all.
    expected = 48 if context == "stream" else 44
    assert found.tokens == sum(r["bytes"] for r in found.rows()) == expected


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("special", [False, True])
def test_known_code_lengths_of_bpe(context, special):
    """Special tokens, at the start and within, are no text and cost nothing."""
    mark = "<|end|>"
    tokenizer = BPETokenizer(changed(added_tokens=added(mark, special=special)))
    model = Code(tokenizer.vocab_size, few=5)
    ids = tokenizer.encode(mark.encode() + TEXT + mark.encode() + TEXT)
    assert (ids == BPE.vocab_size).sum() == 2
    found = evaluate(
        model,
        {},
        [Document(ids)],
        tokenizer.byte_lengths,
        context=context,
        length=16,
    )
    bits, n_bytes = 0.0, 0
    for token in ids[1:].tolist():
        if token != BPE.vocab_size:
            bits, n_bytes = bits + model.bits[token], n_bytes + 1
    assert n_bytes == len(tokenizer.encode(TEXT)) * 2
    n_bytes = 2 * len(TEXT)
    if not special:  # The second mark is text, and the first begins the file.
        bits, n_bytes = bits + model.bits[BPE.vocab_size], n_bytes + len(mark)
    assert found.total() == pytest.approx(bits / n_bytes, rel=1e-6)


@pytest.fixture(scope="module")
def trained(tiny):
    model = LanguageModel(tiny("hope").model)
    return model, draw(model, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens):
    return model.apply(variables, tokens)


def from_nothing(trained, tokens):
    """Nats of all but the first token, in float64."""
    # One program for all lengths: what follows a token changes nothing.
    inputs = np.resize(tokens[:-1], 64)
    logits, _ = apply(*trained, inputs[None])
    logits = np.asarray(logits[0, : len(tokens) - 1], np.float64)
    chosen = np.take_along_axis(logits, tokens[1:, None], 1)[:, 0]
    return np.log(np.exp(logits).sum(1)) - chosen


def test_each_context_is_what_it_says(trained):
    """Against one call of the model for each window, document and stream."""
    documents = DOCUMENTS[11, 5, 30, 2, 1]
    texts = [document.tokens for document in documents]
    windows = [
        text[start : start + 9]
        for text in texts
        for start in range(0, len(text), 8)
    ]
    for context, parts in (
        ("window", windows),
        ("document", texts),
        ("stream", [np.concatenate(texts)]),
    ):
        nats = [from_nothing(trained, part) for part in parts if len(part) > 1]
        nats = np.concatenate(nats)
        found = evaluate(
            *trained, documents, LENGTHS, context=context, length=8, rows=2
        )
        bits = nats.sum() / math.log(2) / len(nats)
        assert found.tokens == len(nats)
        assert found.total() == pytest.approx(bits, rel=1e-6)


def test_contexts_agree_where_they_are_the_same(trained):
    """One document that fits in a window, and the library's stream of it."""
    (document,) = DOCUMENTS[(50,)]
    reads = stream(*trained, document.tokens, chunk=16)
    nats = sum(float(read.nats.sum(dtype=np.float64)) for read in reads)
    for context in CONTEXTS:
        found = evaluate(
            *trained, [document], LENGTHS, context=context, length=64, rows=1
        )
        expected = nats / math.log(2) / 49
        assert found.total() == pytest.approx(expected, rel=1e-6)


def test_packed_documents_have_the_bits_of_each_alone(trained):
    documents = DOCUMENTS[11, 5, 30, 2, 1]
    batches = make_iterator(
        [DocumentsInMemory(documents)],
        seq_len=48,
        batch_size=1,
        seed=0,
        reading="packed",
    )
    batch = next(batches)
    batches.close()
    assert np.unique(batch.segment_ids).size > 4
    read = jax.jit(predict, static_argnums=0)
    sums = LossSums.of(
        read(*trained, batch)[0],
        batch.tokens[:, 1:],
        LENGTHS,
        batch.target_weights(),
    )
    found = evaluate(
        *trained, documents, LENGTHS, context="document", length=8, rows=2
    )
    assert float(sums.tokens) == found.tokens == 44
    assert bits_per_byte(sums) == pytest.approx(found.total(), rel=1e-6)


@pytest.mark.parametrize("sizes", DOCUMENTS)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("length", [1, 4, 64])
def test_pieces_have_each_target_once(sizes, context, length):
    # Every token is another one, so that none stands for two.
    documents = split(np.arange(sum(sizes)), sizes)
    targets: list[int] = []
    begun, last = 0, None
    for piece in pieces(documents, context, rows=2, length=length):
        assert piece.tokens.shape == (len(piece.counts), length + 1)
        if piece.begins:
            begun += 1
        else:
            assert (piece.tokens[:, 0] == last)[piece.counts[:, 0]].all()
        last = piece.tokens[:, -1]
        counted = piece.tokens[:, 1:][piece.counts]
        assert (piece.tokens[:, :-1][piece.counts] == counted - 1).all()
        targets += counted.tolist()
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    unseen = {0} if context == "stream" else set(starts)
    assert sorted(targets) == sorted(set(range(sum(sizes))) - unseen)
    assert begun == 1 or context != "stream"


@pytest.mark.parametrize("context", CONTEXTS)
def test_prompts_are_read_but_not_counted(context):
    weights = np.ones(20)
    weights[:7] = 0
    documents = [Document(np.arange(20), weights), Document(np.arange(20, 25))]
    targets = [
        piece.tokens[:, 1:][piece.counts]
        for piece in pieces(documents, context, rows=2, length=4)
    ]
    answer = [*range(7, 20), *range(20 + (context != "stream"), 25)]
    assert sorted(np.concatenate(targets).tolist()) == answer


def test_an_unknown_context_is_refused():
    with pytest.raises(InputError, match="context='file' must be one of"):
        evaluate(Code(), {}, [Document(BYTES)], LENGTHS, context="file")


def test_bits_per_byte_counts_bytes():
    losses = jnp.full((1, 3), np.log(2.0))
    targets = jnp.array([[0, 1, 2]])
    sums = LossSums.of(losses, targets, np.array([1, 3, 0]))
    assert bits_per_byte(sums) == pytest.approx(0.5)
    assert float(sums.tokens) == 2
    weights = jnp.array([[0.0, 1.0, 1.0]])
    sums = LossSums.of(losses, targets, np.array([1, 3, 0]), weights)
    assert bits_per_byte(sums) == pytest.approx(1 / 3)


def test_small_losses_after_a_large_one_are_counted():
    """Sums in float32 would lose them."""
    table = PositionTable()
    table.add(np.float32([2**24]), np.ones(1))
    for _ in range(100):
        table.add(np.full(10, 0.25, np.float32), np.ones(10))
    expected = (2**24 + 250) / math.log(2) / 1001
    assert table.total() == pytest.approx(expected, rel=1e-12)
    assert table.tokens == 1001
