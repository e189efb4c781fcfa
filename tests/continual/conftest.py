"""One model whose levels learn in context, and one whose do not."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import stream
from nl_jax.models import build
from tests.training.conftest import draw

VOCAB = 13


class Case(NamedTuple):
    model: Any
    variables: Any
    tokens: np.ndarray
    """Two rows of 30."""


def make(name, **fields):
    sizes = {"vocab_size": VOCAB, "d_model": 8, "n_layers": 2, "n_heads": 2}
    model = build(name, **sizes | fields)
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 30))
    variables = draw(model, jax.random.key(1), jnp.zeros((1, 1), jnp.int32))
    return Case(model, variables, tokens)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens, state):
    """The model, compiled once for each shape of tokens."""
    return model.apply(variables, tokens, state)


LEVELS = {
    "objective": "next_token",
    "token_periods": (4, 8),
    "rate": 0.3,
    "layers": 1,
}


def in_use(state):
    """Without places of the unfinished chunk that are not filled yet."""
    cms = getattr(state, "cms", None)
    if cms is None or not jax.tree.leaves(cms.tokens):
        return state
    place = cms.position % cms.tokens.shape[1]
    filled = jnp.arange(cms.tokens.shape[1]) < place[:, None]
    return state._replace(
        cms=cms._replace(tokens=jnp.where(filled, cms.tokens, 0))
    )


def assert_same(found, expected, atol=0.0):
    pairs = zip(
        jax.tree.leaves(in_use(found)),
        jax.tree.leaves(in_use(expected)),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)


def equal(found, expected):
    """To the bit, types too."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def advance(case, tokens, state=None):
    for chunk in stream(*case[:2], tokens, state, chunk=8):
        state = chunk.state
    return state


@pytest.fixture(scope="session")
def learning():
    return make("hope-attention", cms=LEVELS)


@pytest.fixture(scope="session")
def hope():
    titans = {"chunk_size": 4, "memory_chunk_size": 2}
    return make("hope", n_layers=1, titans=titans, cms=LEVELS | {"rate": 0.1})


@pytest.fixture(scope="session")
def static():
    return make("deltanet")
