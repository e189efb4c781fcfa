"""Documents side by side in a batch: each is read as if it were alone.

Every model reads rows of documents and padding in one program of one shape.
The same documents alone, one per row and without segment ids, are another: by
causality what follows a document does not matter. A third reads them as a
stream, in pieces of any length with padding anywhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nl_jax.errors import InputError
from nl_jax.layers import CMSObjective
from nl_jax.models import build, names

LENGTH, MORE, WIDTH, ROWS, VOCAB = 24, 3, 12, 8, 11
"""Tokens of a row, of what goes on behind it and of a piece of a stream; rows
of a batch of documents alone."""
_LOCAL = {"objective": "local", "token_periods": (3, 6), "rate": 0.3}
_NEXT = _LOCAL | {"objective": "next_token"}
_MATRIX = {"matrix": {"chunk_size": 4}}
_WINDOW = {"window": 5, "persistent": 2}
_BOTH = {"memory": {"chunk_size": 4}, "attention": _WINDOW}
_TITANS = {"titans": {"chunk_size": 4, "memory_chunk_size": 2}}
_MODELS = {
    "mamba": {},
    "transformer": {"n_layers": 1, "attention": _WINDOW},
    "retnet": {"n_layers": 1, **_MATRIX},
    "linear-attention": _MATRIX,
    "gated-deltanet": _MATRIX,
    "deltanet": _MATRIX,
    "longhorn": _MATRIX,
    "comba": _MATRIX,
    "oja": _MATRIX,
    "gla": {},
    "rwkv7": {},
    "hope": _TITANS,
    "hope-paper": _TITANS,
    "hope-attention": {"attention": {"window": 5}},
    **{
        name: {"deep": {"chunk_size": 4}}
        for name in (
            *("titans", "dla", "ttt-linear", "ttt-mlp", "atlas"),
            *("miras-moneta", "miras-yaad", "miras-memora"),
        )
    },
    **{
        name: {"titans_attention": _BOTH}
        for name in ("titans-mac", "titans-mag", "titans-mal")
    },
    "samba": {"samba": {"attention": {"window": 5}}},
    "srwm": {"srwm": {"chunk_size": 4}},
    "lstm": {},
}
"""All models; what has a grid crosses chunks, and attention its window."""
_LOCAL = {"objective": "local", "token_periods": (3, 6), "rate": 0.3}
_NEXT = _LOCAL | {"objective": "next_token"}
_CMS = {
    "mamba, local levels": _LOCAL | {"inner": ("dgd", "momentum")},
    "mamba, next_token levels": _NEXT | {"form": "nested"},
    "mamba, levels side by side": _NEXT
    | {"form": "independent", "inner": ("dgd", "adamw")},
    "mamba, levels across depth": _NEXT | {"placement": "depth"},
    "mamba, local levels across depth": _LOCAL
    | {"placement": "depth", "mlp": "gelu"},
    "mamba, adaptive levels": _NEXT
    | {"adaptive": "surprise", "token_periods": (3, 12)},
    "hope, next_token levels": _NEXT | {"token_periods": (4, 8)},
    "transformer, next_token levels": _NEXT,
}
"""Levels that learn in context."""
_CACHE = {"segment": 8, "segments": 2}
MODELS = (
    _MODELS
    | {
        label: {**_MODELS[label.split(",")[0]], "cms": cms}
        for label, cms in _CMS.items()
    }
    | {
        f"{name}, cached": _MODELS[name] | {"cache": cache}
        for name, cache in {
            "hope": _CACHE,
            "titans": _CACHE | {"restart": True},
            "linear-attention": _CACHE | {"restart": True, "top_k": 1},
            "mamba": _CACHE,
        }.items()
    }
)
"""Overrides of configurations, by the model's name and what is special."""


def _each(*quick):
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "label",
        [pytest.param(m, marks=() if m in quick else slow) for m in MODELS],
        scope="module",  # Tests of a model follow each other: one compiles.
    )


class Case(NamedTuple):
    """Rows of documents, and how they are cut as a stream."""

    ids: np.ndarray
    """Segment ids, ``[2, LENGTH]``."""
    cuts: list[int]
    """Ends of the pieces of the stream."""
    pads: list[int]
    """Padding in front of each piece, in units of what there is room for."""


@st.composite
def _cases(draw):
    rows = []
    for _ in range(2):
        row = []
        for name in range(1, draw(st.integers(0, 6)) + 1):
            row += [0] * draw(st.integers(0, 2))
            row += [name * 5] * draw(st.integers(1, 9))
        rows.append((row + [0] * LENGTH)[:LENGTH])
    cuts = [0]
    while cuts[-1] < LENGTH:
        cuts.append(min(cuts[-1] + draw(st.integers(1, WIDTH)), LENGTH))
    pads = [draw(st.integers(0, 2)) for _ in cuts[1:]]
    return Case(np.array(rows), cuts[1:], pads)


_MANY = Case(
    np.array([[0, *range(1, 12), *[12] * 12], [3] * LENGTH]),
    [12, LENGTH],
    [0, 0],
)
"""More documents than there are pieces, and one alone."""
_NONE = _MANY._replace(ids=np.array([[0] * LENGTH, [5] * 6 + [0] * 18]))
"""No document in a row, and an unfinished chunk."""


def _examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True)


@functools.cache
def _model(label, dtype="float64"):
    small = {"d_model": 8, "n_heads": 2, "n_layers": 2, "dtype": dtype}
    model = build(label.split(",")[0], **small | MODELS[label])
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    rng = np.random.default_rng(0)

    def noisy(a):
        wide = "float64" if dtype == "float64" else "float32"
        return jnp.asarray(a + 0.02 * rng.normal(size=a.shape), wide)

    return model, jax.tree.map(noisy, variables)


@functools.cache
def _read(label, dtype="float64"):
    """Returns what reads rows from their start."""
    model, variables = _model(label, dtype)

    def read(tokens, ids=None):
        return model.apply(variables, tokens, segment_ids=ids)

    return jax.jit(read)


@functools.cache
def _gradient(label):
    """Returns the gradient of a weighted sum over the logits of rows."""
    model, variables = _model(label)

    def loss(variables, tokens, weights, ids=None):
        logits, _ = model.apply(variables, tokens, segment_ids=ids)
        return (jnp.sin(logits) * weights[..., None]).sum()

    return functools.partial(jax.jit(jax.grad(loss)), variables)


@functools.cache
def _go_on(label):
    model, variables = _model(label)

    def apply(tokens, state, ids):
        return model.apply(variables, tokens, state, segment_ids=ids)

    state = jax.jit(model.init_state, static_argnums=1)(variables, 2)
    state = state._replace(segment=jnp.zeros(2, jnp.int32))
    return jax.jit(apply), state


_DRAW = np.random.default_rng(1)
_TOKENS = _DRAW.integers(0, VOCAB, (2, LENGTH + MORE))
_WEIGHTS = _DRAW.normal(size=(2, LENGTH))


def _documents(ids):
    """Returns the row and the columns of each document."""
    return [
        (row, np.flatnonzero(line == name))
        for row, line in enumerate(ids)
        for name in np.unique(line[line > 0])
    ]


def _alone(ids):
    """Yields batches of documents alone: tokens, weights, and where from.

    Each is followed by the tokens that go on behind the rows.
    """
    documents = _documents(ids)
    for start in range(0, len(documents), ROWS):
        batch = documents[start : start + ROWS]
        tokens = np.zeros((ROWS, LENGTH + MORE), int)
        weights = np.zeros(tokens.shape)
        for slot, (row, columns) in enumerate(batch):
            line = np.append(columns, np.arange(LENGTH, LENGTH + MORE))
            tokens[slot, : len(line)] = _TOKENS[row, line]
            weights[slot, : len(columns)] = _WEIGHTS[row, columns]
        yield tokens, weights, batch


def _check_documents(label, case):
    """Logits, and the state by the logits of what goes on from it."""
    read = _read(label)
    logits, state = read(_TOKENS[:, :LENGTH], case.ids)
    ids = np.zeros((2, WIDTH), int)
    ids[:, 1 : MORE + 1] = np.asarray(state.segment)[:, None]
    tokens = np.zeros(ids.shape, int)
    tokens[:, 1 : MORE + 1] = _TOKENS[:, LENGTH:]
    more, _ = _go_on(label)[0](tokens, state, ids)
    for tokens, _, batch in _alone(case.ids):
        alone, _ = read(tokens)
        for (row, columns), wanted in zip(batch, alone, strict=False):
            count = len(columns)
            _same(logits[row, columns], wanted[:count], 1e-9)
            if columns[-1] == np.flatnonzero(case.ids[row])[-1]:
                assert state.segment[row] == case.ids[row, columns[-1]]
                behind = more[row, 1 : MORE + 1]
                _same(behind, wanted[count : count + MORE], 1e-9)


def _check_gradient(label, case):
    """The gradient is the sum over the documents."""
    weights = _WEIGHTS * (case.ids > 0)
    gradient = _gradient(label)
    found = gradient(_TOKENS[:, :LENGTH], weights, case.ids)
    parts = [gradient(*batch[:2]) for batch in _alone(case.ids)]
    zeros = jax.tree.map(jnp.zeros_like, found)
    _same(found, jax.tree.map(lambda *a: sum(a), zeros, *parts), 1e-7)


def _check_stream(label, case):
    """A stream in pieces, each padded to one width, is the whole."""
    whole, _ = _read(label)(_TOKENS[:, :LENGTH], case.ids)
    step, state = _go_on(label)
    start = 0
    for stop, pad in zip(case.cuts, case.pads, strict=True):
        count = stop - start
        at = slice(pad * (WIDTH - count) // 2, None)
        tokens, ids = np.ones((2, 2, WIDTH), int) * [[[7]], [[0]]]
        tokens[:, at][:, :count] = _TOKENS[:, start:stop]
        ids[:, at][:, :count] = case.ids[:, start:stop]
        logits, state = step(tokens, state, ids)
        valid = case.ids[:, start:stop, None] > 0
        found = np.where(valid, logits[:, at][:, :count], 0)
        _same(found, np.where(valid, whole[:, start:stop], 0), 1e-9)
        start = stop


def _same(found, wanted, tolerance):
    def same(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(same, found, wanted)


@pytest.fixture(autouse=True, scope="module")
def _float64():
    with jax.enable_x64(True):
        yield


@_each("transformer", "mamba, local levels")
@example(_MANY)
@given(_cases())
@_examples(3)
def test_documents_equal_each_alone(label, case):
    _check_documents(label, case)
    _check_stream(label, case)


@_each("retnet")
@example(_MANY)
@given(_cases())
@_examples(3)
def test_gradients_are_the_sum_over_documents(label, case):
    _check_gradient(label, case)


@_each()
@example(_NONE)
@given(_cases())
@_examples(30)
def test_many_cases(label, case):
    _check_documents(label, case)
    _check_stream(label, case)
    _check_gradient(label, case)


@_each()
def test_decoding_token_by_token(label):
    ids = np.array([[0, *[1] * 8, 0, *[2] * 14], [1, *[2] * 4, *[3] * 19]])
    whole, _ = _read(label)(_TOKENS[:, :LENGTH], ids)
    step, state = _go_on(label)
    for at in range(LENGTH):
        own = slice(at, at + 1)
        logits, state = step(_TOKENS[:, own], state, ids[:, own])
        valid = ids[:, own, None] > 0
        _same(logits * valid, whole[:, own] * valid, 1e-9)


@_each()
def test_bfloat16_within_its_rounding(label):
    """As near to float64 as a document read alone in bfloat16 is, times 3.

    Levels that learn by the model's own gradient amplify its rounding.
    """
    read, exactly = _read(label, "bfloat16"), _read(label)
    logits, _ = read(_TOKENS[:, :LENGTH], _MANY.ids)
    for tokens, _, batch in _alone(_MANY.ids):
        alone, exact = (function(tokens)[0] for function in (read, exactly))
        for number, (row, columns) in enumerate(batch):
            wanted = exact[number, : len(columns)]
            rounding = np.abs(alone[number, : len(columns)] - wanted).max()
            least = 0.01 * np.abs(wanted).max()
            error = np.abs(logits[row, columns] - wanted).max()
            assert error <= 3 * max(rounding, least)


class Deaf(CMSObjective):
    """An objective of one's own, which does not know of documents."""

    name = "deaf"

    def read_layer(self, config, levels, x, state, *, aligned):
        raise AssertionError("not reached")


def test_an_objective_without_documents_is_named():
    cms = {"objective": Deaf(), "token_periods": (2,)}
    model = build("mamba", d_model=4, n_heads=1, n_layers=1, cms=cms)
    variables = model.parameter_shapes()
    tokens = jnp.ones((1, 2), jnp.int32)
    with pytest.raises(InputError, match=r"Deaf.read_layer .* keyword packed"):
        jax.eval_shape(
            lambda v: model.apply(v, tokens, segment_ids=tokens), variables
        )


def test_every_model_is_here():
    assert {label.split(",")[0] for label in MODELS} == set(names())
