"""Scans over documents side by side, against each document alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.errors import InputError
from nl_jax.memory import Gates, associative_memory
from nl_jax.memory.packed import check_segment_ids, lay, pack
from nl_jax.memory.walk import chunk_scan

SIZE, LENGTH = 3, 18
CUTS = {
    "few": [0, 7, LENGTH],
    "one": [0, LENGTH],
    "many": [0, 1, 2, 3, 5, 6, 7, 8, 9, 12, 16, 17, LENGTH],
}


def _step(state, x, valid, closes):
    """Adds tokens to a sum; each sees the sum at its chunk's start."""
    start, total = state
    seen = jnp.broadcast_to(start, x.shape) + x
    if valid is not None:
        seen = jnp.where(valid, seen, 0)
        x = jnp.where(valid, x, 0)
    total = total + jnp.tanh(x).sum(0) * (1 + start)
    return (jnp.where(closes, total, start), total), seen


def _ids(cuts):
    lengths = np.diff(cuts)
    return np.repeat(np.arange(1, len(cuts)), lengths)


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("cuts", CUTS)
def test_documents_equal_each_alone(cuts, rows):
    ids = np.stack([_ids(CUTS[cuts]), _ids(CUTS["few"])])
    ids[1, -2:] = 0
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=ids.shape), jnp.float32)
    x, packed, last = pack(x, jnp.asarray(ids), None, True)
    begin = jnp.full(2, 0.3), jnp.full(2, 0.3)
    layout = lay(packed, jnp.zeros(2, jnp.int32), SIZE)

    if rows:

        def run(x, begin):
            state, y = chunk_scan(
                _step, begin, x.T, size=SIZE, layout=layout, initial=begin
            )
            return state, y.T

    else:

        def run(x, begin):
            def row(x, begin, layout):
                return chunk_scan(
                    _step, begin, x, size=SIZE, layout=layout, initial=begin
                )

            return jax.vmap(row, (0, 0, layout.rows))(x, begin, layout)

    def alone(x, begin):
        parts, ends = [], []
        for row in range(2):
            done = []
            start = begin[0][row], begin[1][row]
            for name in np.unique(ids[row][ids[row] > 0]):
                end, y = chunk_scan(
                    _step, start, x[row, ids[row] == name], size=SIZE
                )
                done.append(y)
            done.append(jnp.zeros(int((ids[row] == 0).sum())))
            parts.append(jnp.concatenate(done))
            ends.append(end)
        return jax.tree.map(lambda *a: jnp.stack(a), *ends), jnp.stack(parts)

    def loss(function, x, begin):
        state, y = function(x, begin)
        y = jnp.where(ids > 0, y, 0)
        return (y**2).sum() + state[1].sum(), (state, y)

    results = [
        jax.value_and_grad(loss, (1, 2), has_aux=True)(function, x, begin)
        for function in (run, alone)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        *results,
    )
    assert last.tolist() == [ids[0, -1], 2]


def test_a_document_goes_on_inside_its_chunk():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, LENGTH)))
    whole, y = chunk_scan(_step, (jnp.zeros(1), jnp.zeros(1)), x.T, size=SIZE)
    state, parts = (jnp.zeros(1), jnp.zeros(1)), []
    segment, position = None, jnp.zeros(1, jnp.int32)
    for a, b in ((0, 4), (4, 5), (5, LENGTH)):
        ids = jnp.ones((1, b - a), jnp.int32)
        piece, packed, segment = pack(x[:, a:b], ids, segment, a == 0)
        layout = lay(packed, position, SIZE)
        position = packed.advance(position)
        start = jnp.zeros(1), jnp.zeros(1)
        state, out = chunk_scan(
            _step, state, piece.T, size=SIZE, layout=layout, initial=start
        )
        parts.append(out)
    assert int(position[0]) == LENGTH
    np.testing.assert_allclose(jnp.concatenate(parts), y, rtol=1e-5)
    np.testing.assert_allclose(state[1], whole[1], rtol=1e-5)


@pytest.mark.parametrize("affine", [False, True])
def test_a_memory_begins_anew_with_each_document(affine):
    memory = associative_memory(
        "linear",
        "l2",
        "gd",
        momentum=not affine,
        chunk_size=1 if affine else 4,
    )
    ids = np.array([[1] * 9 + [2] * 9, [0] * 4 + [3] * 9 + [0] * 5])
    rng = np.random.default_rng(3)
    k, v, q = rng.normal(size=(3, *ids.shape, 2)).astype(np.float32)
    draws = rng.uniform(size=(3, *ids.shape)).astype(np.float32)
    gates = Gates(0.3 * draws[0], -draws[1], None if affine else -draws[2])
    fresh = memory.init(jax.random.key(0), 2, 2)

    def rows(count):
        return jax.tree.map(lambda a: jnp.stack([a] * count), fresh)

    _, packed, _ = pack(jnp.asarray(ids), jnp.asarray(ids), None, True)
    there = np.argsort(ids == 0, 1, kind="stable")
    given = jax.tree.map(
        lambda a: jnp.asarray([x[i] for x, i in zip(a, there, strict=True)]),
        (k, v, q, gates),
    )
    y, state = jax.jit(
        lambda *inputs: memory.scan_rows(
            rows(2),
            *inputs,
            aligned=True,
            packed=packed,
            initial=fresh.memory,
        )
    )(*given)
    own = jax.tree.map(
        lambda a: jnp.stack([a[ids == name] for name in (1, 2, 3)]),
        (k, v, q, gates),
    )
    alone, after = jax.jit(jax.vmap(memory.scan))(rows(3), *own)
    found = y[0, :9], y[0, 9:], y[1, :9]
    np.testing.assert_allclose(jnp.stack(found), alone, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b[jnp.array([1, 2])], rtol=1e-5, atol=1e-5
        ),
        state,
        after,
    )


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.ones((1, 3), int), "needs an integer"),
        (np.ones((1, 4)), "needs an integer"),
        (np.array([[1, -2, 3, 3]]), "contains -2"),
        (np.array([[1, 1, 2**32, 2**32]]), "contains 4294967296"),
        ([[1, 1], [1]], "no array of integers"),
        (np.array([[1, 2, 0, 1]]), "id 1 comes back"),
    ],
)
def test_wrong_segment_ids_are_refused(ids, words):
    with pytest.raises(InputError, match=words):
        check_segment_ids(ids, (1, 4))


def test_a_row_that_waits_keeps_its_document():
    ids = np.zeros((1, 2), np.int32)
    tokens = np.zeros((1, 2), np.int32)
    _, _, waits = pack(tokens, jnp.asarray(ids), None, False)
    _, packed, named = pack(tokens, jnp.asarray(ids + 7), waits, False)
    assert waits.tolist() == [-1] and named.tolist() == [7]
    assert not packed.starts.any()  # It goes on.
    _, packed, _ = pack(tokens, jnp.asarray(ids + 8), named, False)
    assert packed.starts.tolist() == [[True, False]]
