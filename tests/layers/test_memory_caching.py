"""Memory caching equals the paper's equation, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import consolidate, load_state, save_state
from nl_jax.layers import CacheConfig, CachedConfig, MatrixMemoryConfig
from nl_jax.memory.packed import goes_on
from nl_jax.models import ModelConfig, build, configure, to_json
from nl_jax.nested import describe
from tests.layers.papers_tools import applied, drawn, same

T, D, HEADS, SEGMENT, KEPT = 13, 8, 2, 3, 2
PLAIN = MatrixMemoryConfig(
    rule="hebbian", features="scaled", conv_width=1, chunk_size=3
)
CACHES = {
    "goes on": CacheConfig(SEGMENT, KEPT),
    "restarts, top 1": CacheConfig(SEGMENT, KEPT, top_k=1, restart=True),
}
every_cache = pytest.mark.parametrize("cache", CACHES)


@functools.cache
def made(cache):
    layer = CachedConfig(PLAIN, CACHES[cache]).build(D, HEADS, None)
    return layer, *drawn(layer, (2, T, D))


def silu(x):
    return x / (1 + np.exp(-x))


def paper(config, params, x):
    """One row, ``[T, D]``, by the equation; writes come before reads."""
    inner, d = params["inner"], D // HEADS
    q, k, v = (
        silu(x @ inner[f"w_{n}"] * inner[f"conv_{n}"][0]).reshape(T, HEADS, d)
        for n in "qkv"
    )
    memory, kept, out = np.zeros((HEADS, d, d)), [], []
    for t in range(T):
        start = t - t % SEGMENT
        memory = memory + k[t][:, :, None] * v[t][:, None, :]
        u = x[t] @ params["w_recall"]
        scores = [u @ mean for mean, _ in kept]
        if config.top_k and len(kept) > config.top_k:
            best = sorted(scores)[-config.top_k]
            scores = [s if s >= best else -np.inf for s in scores]
        scores = np.array([*scores, u @ x[start : t + 1].mean(0)])
        gates = np.exp(scores - scores.max())
        gates /= gates.sum()
        read = [m for _, m in kept] + [memory]
        o = sum(
            g * np.einsum("hd,hde->he", q[t] * d**-0.5, m)
            for g, m in zip(gates, read, strict=True)
        )
        o = o / np.sqrt((o**2).mean(-1, keepdims=True) + 1e-5)
        out.append((o * inner["out_scale"]).reshape(D) @ inner["w_out"])
        if t % SEGMENT == SEGMENT - 1:
            kept = [*kept, (x[start : t + 1].mean(0), memory)][-KEPT:]
            memory = np.zeros_like(memory) if config.restart else memory
    return np.stack(out)


@every_cache
def test_tokens_read_the_current_memory_and_those_kept(cache):
    layer, params, x = made(cache)
    with jax.enable_x64(True):
        y, state = applied(layer, "float64")({"params": params}, x)
    expected = [paper(CACHES[cache], params, row) for row in x]
    same(y, expected, 1e-10)
    assert state.held.tolist() == [KEPT] * 2
    assert state.position.tolist() == [T % SEGMENT] * 2


@every_cache
def test_any_split_equals_the_whole(cache):
    layer, params, x = made(cache)
    with jax.enable_x64(True):
        apply, params = applied(layer, "float64"), {"params": params}
        state, outs = None, []
        for piece in np.split(x, [5, 6], 1):
            y, state = apply(params, piece, state)
            outs.append(y)
        y, end = apply(params, x)
    pairs = zip(*map(jax.tree.leaves, (state, end)), strict=True)
    parts = [(a, b) for a, b in pairs if a.size]  # Not empty convolutions.
    same(*zip((jnp.concatenate(outs, 1), y), *parts, strict=True), 1e-12)


def test_a_row_without_tokens_has_a_gradient():
    layer, params, x = made("goes on")
    params = {"params": params}
    state = layer.apply(params, 2, method="initial_state")
    packed = goes_on(jnp.array([0, 2]), SEGMENT)

    def outputs(total):
        begun = state._replace(total=total)
        y, _ = layer.apply(params, x[:, :SEGMENT], begun, packed=packed)
        return y[1, :2].sum()

    # Nothing is kept yet, so that all depends on the current memory.
    assert (jax.jit(jax.grad(outputs))(state.total) == 0).all()


CACHE = {"segment": 8, "segments": 2}
SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "deep": {"chunk_size": 4}}


@functools.cache
def deep():
    """A model with a learned start, its parameters all 1, and a state."""
    model = build("titans", **SMALL, cache=CACHE)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.ones((1, 1), int)
    )
    variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
    return model, variables, model.init_state(variables, 1)


def test_describe_has_a_row_for_what_is_kept():
    rows = {row.name: row for row in describe(deep()[0]).rows}
    # Two states of an MLP of 4 x 16 + 16 x 4 in each of two heads, the sum and
    # means of 8 inputs each, and two counters.
    assert rows["cache"].state_bytes == 4 * (2 * 2 * 128 + 3 * 8 + 2)
    assert rows["cache"].period == 8 and rows["cache"].parameters == 64
    assert "deep.memory" in rows


def test_consolidation_reaches_the_memory_inside(tmp_path):
    model, variables, state = deep()
    learned = jax.tree.map(lambda a: a + jnp.asarray(2, a.dtype), state)
    save_state(tmp_path / "state", model, learned)
    learned = load_state(tmp_path / "state", model, variables)
    new = consolidate(model, variables, learned, "mixers")
    mixer = new["params"]["blocks"]["mixer"]
    assert (mixer["inner"]["memory_0"] == 3).all()
    assert (mixer["w_recall"] == 1).all()


def test_a_configuration_with_a_cache_is_saved():
    config = configure("hope", cache={"segment": 64, "top_k": 4})
    assert configure(ModelConfig(), **to_json(config)) == config


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("lstm", {}, r"cache\.segment=8 must be 0 with this LSTMConfig"),
        ("retnet", {}, "must be 0 with this MatrixMemoryConfig"),
        ("hope", {}, "must be a multiple of 16"),
        ("mamba", {"segments": 0}, r"cache\.segments=0 must be"),
        ("mamba", {"segments": 2, "top_k": 3}, r"top_k=3 must be at most "),
        ("mamba", {"segment": 0, "top_k": 4}, r"cache\.top_k=4 has no effect"),
    ],
)
def test_what_cannot_be_cached_is_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        build(name, cache={"segment": 8} | fields)
