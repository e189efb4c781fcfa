"""Documents side by side in a batch: each is read as if it were alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.models import build

LENGTH, VOCAB = 24, 11
MODELS = {
    "mamba": {},
    "transformer": {
        "n_layers": 1,
        "attention": {"window": 5, "persistent": 2},
    },
    "retnet": {"n_layers": 1, "matrix": {"chunk_size": 4}},
    "linear-attention": {"matrix": {"chunk_size": 4}},
    "gated-deltanet": {"matrix": {"chunk_size": 4}},
    "longhorn": {"matrix": {"chunk_size": 4}},
    "comba": {"matrix": {"chunk_size": 4}},
    "oja": {"matrix": {"chunk_size": 4}},
    "gla": {},
    "rwkv7": {},
    "hope-attention": {"attention": {"window": 5}},
    "samba": {"samba": {"attention": {"window": 5}}},
    "srwm": {"srwm": {"chunk_size": 4}},
    "lstm": {},
    "titans": {
        "n_layers": 1,
        "deep": {"chunk_size": 4, "architecture": "linear"},
    },
    "dla": {"deep": {"chunk_size": 4}},
    "ttt-linear": {"deep": {"chunk_size": 4}},
    "ttt-mlp": {"deep": {"chunk_size": 4}},
    "miras-moneta": {"deep": {"chunk_size": 4}},
    "miras-yaad": {"deep": {"chunk_size": 4}},
    "miras-memora": {"deep": {"chunk_size": 4}},
    "atlas": {"deep": {"chunk_size": 4}},
    "hope": {"titans": {"chunk_size": 4, "memory_chunk_size": 2}},
    "hope-paper": {"titans": {"chunk_size": 4}},
    "titans-mag": {
        "titans_attention": {
            "memory": {"chunk_size": 4},
            "attention": {"window": 5},
        }
    },
    "titans-mal": {"titans_attention": {"memory": {"chunk_size": 4}}},
}
"""Overrides of each model's configuration; what has a grid crosses chunks."""
QUICK = ("mamba", "transformer", "retnet", "titans")
every_model = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in MODELS
    ],
)
IDS = {
    "cuts": [[5] * 6 + [6] * 6 + [9] * 12, [1] * 12 + [2] * 6 + [3] * 6],
    "padding": [
        [0] * 3 + [1] * 6 + [0] * 2 + [2] * 12 + [0],
        [0] * LENGTH,
    ],
}
"""Documents of few lengths, for which few programs are compiled."""


@functools.cache
def _model(name):
    sizes = {"d_model": 8, "n_heads": 2, "n_layers": 2, "dtype": "float64"}
    model = build(name, **(sizes | MODELS[name]))
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda a: jnp.asarray(
            a.astype(np.float64) + 0.02 * rng.normal(size=a.shape)
        ),
        variables,
    )


@functools.cache
def _apply(name, gradient=False):
    model, _ = _model(name)

    def apply(variables, tokens, state, ids):
        return model.apply(variables, tokens, state, segment_ids=ids)

    def loss(variables, tokens, weights, ids):
        logits, _ = model.apply(variables, tokens, segment_ids=ids)
        return (jnp.sin(logits) * weights[..., None]).sum()

    return jax.jit(jax.grad(loss) if gradient else apply)


def _tokens(shape=(2, LENGTH)):
    return np.random.default_rng(1).integers(0, VOCAB, shape)


def _documents(ids):
    """Yields the row and the columns of each document."""
    for row, names in enumerate(ids):
        for name in np.unique(names[names > 0]):
            yield row, np.flatnonzero(names == name)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("case", IDS)
@every_model
def test_documents_equal_each_alone(name, case):
    _, variables = _model(name)
    tokens, ids = _tokens(), np.array(IDS[case])
    logits, state = _apply(name)(variables, tokens, None, ids)
    plain = functools.partial(_apply(name), state=None, ids=None)
    for row, columns in _documents(ids):
        alone, after = plain(variables, tokens[row : row + 1, columns])
        np.testing.assert_allclose(
            logits[row, columns], alone[0], rtol=1e-9, atol=1e-9
        )
        if columns[-1] != np.flatnonzero(ids[row])[-1]:
            continue
        kept = state._replace(segment=None)
        for a, b in zip(*map(jax.tree.leaves, (kept, after)), strict=True):
            np.testing.assert_allclose(a[row], b[0], rtol=1e-8, atol=1e-9)


@every_model
def test_gradients_are_the_sum_over_documents(name):
    _, variables = _model(name)
    tokens, ids = _tokens(), np.array(IDS["padding"])
    weights = np.random.default_rng(2).normal(size=ids.shape) * (ids > 0)
    gradient = _apply(name, gradient=True)
    packed = gradient(variables, tokens, weights, ids)
    alone = [
        gradient(
            variables,
            tokens[row : row + 1, columns],
            weights[row : row + 1, columns],
            None,
        )
        for row, columns in _documents(ids)
    ]
    total = jax.tree.map(lambda *a: sum(a), *alone)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8),
        packed,
        total,
    )


@every_model
def test_a_stream_may_be_cut_anywhere(name):
    _, variables = _model(name)
    tokens, ids = _tokens(), np.array(IDS["cuts"])
    whole, end = _apply(name)(variables, tokens, None, ids)
    state, parts = None, []
    for start, stop in ((0, 11), (11, 12), (12, 13), (13, LENGTH)):
        cut = slice(start, stop)
        logits, state = _apply(name)(
            variables, tokens[:, cut], state, ids[:, cut]
        )
        parts.append(logits)
    np.testing.assert_allclose(
        np.concatenate(parts, 1), whole, rtol=1e-9, atol=1e-9
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9),
        state,
        end,
    )
