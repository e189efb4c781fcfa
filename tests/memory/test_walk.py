"""The walk through time, and scans that keep few carries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.memory.state import fresh
from nl_jax.memory.walk import chunk_scan, remat_scan

STEPS, WIDTH = 100, 64
XS = jax.random.normal(jax.random.key(0), (STEPS, WIDTH))
TOKENS, SIZE = 11, 4
STREAM = np.random.default_rng(0).integers(-9, 9, (TOKENS, 2)).astype("f4")


def body(carry, x):
    carry = jnp.tanh(0.5 * carry + 0.1 * x[:, None] * x)
    return carry, carry.sum(0)


def loss(xs, every):
    carry, ys = remat_scan(body, jnp.eye(WIDTH), xs, every=every)
    return jnp.sum(carry**2) + jnp.sum(ys**2)


def plain(xs):
    carry, ys = jax.lax.scan(body, jnp.eye(WIDTH), xs)
    return jnp.sum(carry**2) + jnp.sum(ys**2)


@pytest.mark.parametrize("every", [None, 0, 1, 7, 10, 99, 100, 1000])
def test_values_and_gradients_are_those_of_a_scan(every):
    """7 leaves a remainder, 99 one group and a step, 1000 no whole group."""
    wanted = jax.value_and_grad(plain)(XS)
    found = jax.value_and_grad(loss)(XS, every)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_memory_grows_with_the_root_of_the_length():
    """Four times the steps: twice the carries, where a scan keeps all."""

    def bytes_of(every, steps):
        xs = jax.ShapeDtypeStruct((steps, WIDTH), jnp.float32)
        step = jax.jit(jax.grad(lambda xs: loss(xs, every)))
        return step.lower(xs).compile().memory_analysis().temp_size_in_bytes

    carry = 4 * WIDTH**2
    inputs = 4 * WIDTH * 6  # Generous: copies of inputs and outputs per step.
    for every, kept in ((1, 1600), (None, 2 * 40)):
        assert bytes_of(every, 1600) < carry * (kept + 16) + inputs * 1600
    assert bytes_of(1, 1600) > 5 * bytes_of(None, 1600)


def test_a_negative_distance_is_refused():
    """The message names the argument."""
    with pytest.raises(ValueError, match=r"every=-1 must be .* >= 0"):
        remat_scan(body, jnp.eye(WIDTH), XS, every=-1)


def chunk_sums(state, x, valid, closes):
    """A memory in small: outputs depend on the chunk's start; time first.

    Rows, if any, are the second axis; the state is ``(start, now)``.
    """
    start, now = state
    rows = x.ndim == 3
    if valid is not None:
        assert valid.shape == x.shape[:-1]
        x = jnp.where(valid[..., None], x, 0)
    sums = now + jnp.cumsum(x, 0)
    closes = jnp.asarray(closes)
    if rows:
        closes = closes[..., None]
    return (jnp.where(closes, sums[-1], start), sums[-1]), sums - 2 * start


def by_definition(xs, position):
    """``chunk_sums`` in NumPy, from any place in a chunk; exact integers."""
    start = now = np.zeros_like(xs[0])
    out = []
    for t, x in enumerate(xs):
        now = now + x
        out.append(now - 2 * start)
        if (position + t + 1) % SIZE == 0:
            start = now
    return (start, now), np.stack(out)


@functools.partial(jax.jit, static_argnames=("axis", "remat"))
def walk(state, xs, position, axis=0, remat=1):
    def step(state, x, valid, closes):
        if valid is not None and axis and valid.ndim == 2:
            valid = valid.T
        state, out = chunk_sums(state, jnp.moveaxis(x, axis, 0), valid, closes)
        return state, jnp.moveaxis(out, 0, axis)

    return chunk_scan(
        step, state, xs, size=SIZE, position=position, axis=axis, remat=remat
    )


@given(st.sets(st.integers(1, TOKENS - 1)), st.integers(0, 2 * SIZE))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_any_split_of_a_stream_is_the_whole(cuts, position):
    wanted = by_definition(STREAM, position)
    state = (np.zeros(2, "f4"),) * 2
    parts = []
    for at, to in zip([0, *sorted(cuts)], [*sorted(cuts), TOKENS], strict=True):
        at_position = jnp.int32(position + at)
        state, out = walk(state, STREAM[at:to], at_position)
        parts.append(out)
    found = state, np.concatenate(parts)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@given(st.integers(1, TOKENS), st.sampled_from([0, 1, 2, None]))
@settings(deadline=None, max_examples=8, derandomize=True)
def test_a_walk_from_a_boundary_needs_no_masks(length, remat):
    masks = []

    def step(state, x, valid, closes):
        masks.append((valid, closes, x.shape[0]))
        return chunk_sums(state, x, valid, closes)

    found = chunk_scan(
        step, (jnp.zeros(2),) * 2, STREAM[:length], size=SIZE, remat=remat
    )
    rest = (None, False, length % SIZE)
    assert set(masks) <= {(None, True, SIZE), rest}
    wanted = by_definition(STREAM[:length], 0)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    later = chunk_scan(step, (jnp.zeros(2),) * 2, STREAM, size=SIZE, position=6)
    wanted = by_definition(STREAM, 6)
    jax.tree.map(np.testing.assert_array_equal, later, wanted)


@pytest.mark.parametrize("axis", [0, 1, -2])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_rows_stand_at_places_of_their_own(axis, length):
    places = np.array([0, 3, 1, 6])
    xs = np.stack([STREAM[at : at + 9][:length] for at in (0, 1, 2, 0)])
    given_xs = np.moveaxis(xs, 1, axis)
    state = (jnp.zeros((4, 2)),) * 2
    (start, now), out = walk(state, given_xs, jnp.asarray(places), axis=axis)
    out = np.moveaxis(out, axis, 1)
    for row, place in enumerate(places):
        wanted = by_definition(xs[row], place)
        found = (start[row], now[row]), out[row]
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_whole_chunks_keep_a_memory_once_for_the_backward_pass():
    """At a boundary the start is the weights; one copy a chunk is kept."""
    width, chunks = 64, 50

    def step(memory, x, valid, closes):
        (start,), (w,) = memory.start, memory.weights
        y = jnp.tanh(x @ start)
        w = 0.9 * w + x.mT @ y
        return memory._replace(start=(w,), weights=(w,)), y

    def loss(w, xs):
        state, y = chunk_scan(
            step, fresh((w,), False), xs, size=4, drop_start=True
        )
        return (y**2).sum() + (state.start[0] * state.weights[0]).sum()

    arrays = jnp.eye(width), jnp.ones((4 * chunks, width))
    used = jax.jit(jax.grad(loss)).lower(*arrays).compile()
    kept = used.memory_analysis().temp_size_in_bytes
    assert kept < 4 * width**2 * 1.5 * chunks
