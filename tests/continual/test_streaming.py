"""Streams: cut in any way, alone or side by side, stopped and gone on."""

import gc
import itertools
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nl_jax.continual import stream, streaming
from nl_jax.errors import InputError
from tests.continual.conftest import VOCAB, apply, assert_same


def read(case, source, **choices):
    """All of a stream: targets, losses, last chunk."""
    chunks = list(stream(case.model, case.variables, source, **choices))
    return (
        np.concatenate([chunk.targets for chunk in chunks], 1),
        np.concatenate([chunk.nats for chunk in chunks], 1),
        chunks[-1],
    )


def copy(tree):
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


@pytest.mark.parametrize(
    "name",
    [
        "static",
        pytest.param("learning", marks=pytest.mark.slow),
        pytest.param("hope", marks=pytest.mark.slow),
    ],
)
def test_a_stream_is_one_call_of_the_model(request, name):
    case = request.getfixturevalue(name)
    logits, state = apply(case.model, case.variables, case.tokens, None)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], case.tokens[:, 1:]
    )
    targets, nats, last = read(case, [case.tokens], chunk=8)
    np.testing.assert_array_equal(targets, case.tokens[:, 1:])
    np.testing.assert_allclose(nats, losses, atol=1e-4)
    np.testing.assert_allclose(last.logits, logits[:, -1], atol=1e-4)
    assert_same(last.state, state, 1e-4)


ROW = np.random.default_rng(0).integers(0, VOCAB, 30)


@st.composite
def sources(draw):
    """The same row of ids, cut and written in any way."""
    cuts = sorted(draw(st.lists(st.integers(0, len(ROW)), max_size=5)))
    ways = (np.array, np.ndarray.tolist, lambda part: part[None], jnp.asarray)
    source = []
    for part in np.split(ROW, cuts):
        if draw(st.booleans()):
            source.append(draw(st.sampled_from(ways))(part))
        else:
            source += [int(token) for token in part]
    return source


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(source=sources())
@example(source=bytes(ROW.tolist()))
@example(source=[jnp.asarray(token) for token in ROW])
def test_how_the_source_is_cut_does_not_matter(static, source):
    whole = read(static, ROW[None], chunk=8)
    found = read(static, source, chunk=8)
    for a, b in zip(found[:2], whole[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same(found[2].state, whole[2].state)


def test_the_size_of_a_call_does_not_matter(learning):
    _, nats, last = read(learning, learning.tokens, chunk=8)
    _, others, end = read(learning, learning.tokens, chunk=1)
    np.testing.assert_allclose(others, nats, atol=1e-5)
    assert_same(end.state, last.state, 1e-5)


def test_a_stream_goes_on_where_it_stopped(learning):
    """Also inside a period, with the loss of the token in between."""
    tokens = learning.tokens
    _, nats, last = read(learning, tokens, chunk=8)
    _, first, stop = read(learning, tokens[:, :11], chunk=8)
    targets, then, end = read(
        learning, tokens[:, 11:], state=stop.state, logits=stop.logits, chunk=8
    )
    np.testing.assert_array_equal(targets, tokens[:, 11:])
    np.testing.assert_allclose(
        np.concatenate([first, then], 1), nats, atol=1e-5
    )
    assert_same(end.state, last.state, 1e-5)
    # To the end of the period first, so that calls are whole chunks again.
    more = stream(*learning[:2], tokens[:, 11:], stop.state, chunk=8)
    assert [chunk.targets.shape[1] for chunk in more] == [0, 8, 8, 2]
    # Without what was predicted, only that loss is missing.
    targets, rest, _ = read(learning, tokens[:, 11:], state=stop.state, chunk=8)
    np.testing.assert_array_equal(targets, tokens[:, 12:])
    np.testing.assert_array_equal(rest, then[:, 1:])


def test_streams_share_nothing(learning):
    """Interleaved as alone; the state given and the parameters stay."""
    model, variables, tokens = learning
    _, _, begun = read(learning, tokens[:, :8], chunk=8)
    before = copy((begun.state, variables))
    other = (tokens[:, ::-1] + 1) % VOCAB
    alone = [
        read(learning, source, state=begun.state, chunk=8)
        for source in (tokens, other)
    ]
    both = [
        stream(model, variables, source, begun.state, chunk=8)
        for source in (tokens, other)
    ]
    pairs = list(zip(*both, strict=True))
    for number in range(2):
        chunks = [pair[number] for pair in pairs]
        nats = np.concatenate([chunk.nats for chunk in chunks], 1)
        np.testing.assert_array_equal(nats, alone[number][1])
        assert_same(chunks[-1].state, alone[number][2].state)
    assert np.abs(alone[0][1] - alone[1][1]).max() > 0.01
    assert_same((begun.state, variables), before)
    # Every chunk's state stays good while the stream goes on.
    kept = [chunk.state for chunk, _ in pairs]
    _, _, again = read(learning, tokens[:, :8], state=begun.state, chunk=8)
    assert_same(kept[0], again.state)


def test_rows_share_nothing(learning):
    changed = learning.tokens.copy()
    changed[1] = (changed[1] + 1) % VOCAB
    _, nats, last = read(learning, learning.tokens, chunk=8)
    _, others, end = read(learning, changed, chunk=8)
    np.testing.assert_array_equal(nats[0], others[0])
    assert np.abs(nats[1] - others[1]).max() > 0.01
    first, second = (
        jax.tree.map(lambda leaf: leaf[:1], chunk.state)
        for chunk in (last, end)
    )
    assert_same(first, second)


def test_two_shapes_are_compiled_and_nothing_again(learning):
    read(learning, learning.tokens, chunk=8)
    compiled = streaming._read._cache_size()
    _, _, stop = read(learning, learning.tokens[:, :13], chunk=8)
    read(learning, learning.tokens, state=stop.state, chunk=8)
    assert streaming._read._cache_size() == compiled


def test_memory_is_constant(static):
    """A thousand calls: no array is kept, on the device or here."""
    sizes, arrays, memory = [], [], []
    endless = itertools.islice(itertools.cycle(static.tokens[0].tolist()), 8000)
    tracemalloc.start()
    for number, chunk in enumerate(
        stream(static.model, static.variables, endless, chunk=8)
    ):
        if number % 100 == 99:
            sizes.append(sum(a.nbytes for a in jax.tree.leaves(chunk.state)))
            gc.collect()
            arrays.append(len(jax.live_arrays()))
            memory.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert len({*sizes}) == len({*arrays}) == 1
    # Each chunk's numbers would be 500 bytes.
    assert memory[-1] < memory[2] + 100_000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("text", "is text; give token ids or bytes"),
        ([1, 0.5], r"piece 1 of the source is float64\[\]; needs integers"),
        ([[1, VOCAB]], "has the id 13; the model has 0 to 12"),
        ([3, -1], "piece 1 of the source has the id -1"),
        ([np.ones((2, 3), int), np.ones(3, int)], "has 1 rows; .* have 2"),
        ([np.ones((1, 1, 1), int)], r"int64\[1, 1, 1\]; needs integers"),
    ],
)
def test_sources_that_are_none(static, source, words):
    reads = stream(static.model, static.variables, source, chunk=8)
    with pytest.raises(InputError, match=words):
        list(reads)


def test_wrong_arguments(static, learning):
    model, variables, tokens = static
    state = model.init_state(variables, 2)
    with pytest.raises(ValueError, match="chunk=0 must be an integer >= 1"):
        stream(model, variables, tokens, chunk=0)
    foreign = learning.model.init_state(learning.variables, 2)
    with pytest.raises(ValueError, match="not one of this deltanet"):
        stream(model, variables, tokens, foreign)
    with pytest.raises(ValueError, match="not one of this deltanet"):
        stream(model, variables, tokens, variables)
    with pytest.raises(ValueError, match="logits are given without the state"):
        stream(model, variables, tokens, logits=jnp.zeros((2, VOCAB)))
    with pytest.raises(ValueError, match=r"logits has shape \(1, 13\)"):
        stream(model, variables, tokens, state, logits=jnp.zeros((1, VOCAB)))
    with pytest.raises(InputError, match="has 1 rows; the state"):
        list(stream(model, variables, tokens[0], state, chunk=8))
