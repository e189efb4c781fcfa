"""States of levels across depth, of local ones, and of such as adapt."""

import jax
import numpy as np
import pytest

from nl_jax.continual import (
    consolidate,
    fork,
    inspect,
    load_state,
    reset_level,
    reset_rows,
    save_state,
)
from tests.continual.conftest import (
    advance,
    apply,
    assert_same,
    equal,
    make,
)

KINDS = {
    "depth": {"objective": "next_token", "placement": "depth"},
    # A level by itself is steeper than the model is in it.
    "local": {"objective": "local", "rate": 0.03},
    "adaptive": {
        "objective": "next_token",
        "adaptive": "surprise",
        "token_periods": (4, 16),
    },
}


@pytest.fixture(scope="module", params=KINDS)
def case(request):
    levels = {"token_periods": (4, 8), "rate": 0.3} | KINDS[request.param]
    return make("hope-attention", cms=levels)


@pytest.fixture(scope="module")
def state(case):
    """Two rows, 18 tokens: inside a chunk and inside a slower period."""
    return read(case, case.tokens[:, :18])


def read(case, tokens, state=None):
    """Six tokens a call: one program, which no period divides."""
    state = state or case.model.init_state(case.variables, 2)
    for piece in np.split(tokens, tokens.shape[1] // 6, 1):
        _, state = apply(case.model, case.variables, piece, state)
    return state


def test_a_saved_state_goes_on_as_if_it_had_not_stopped(case, state, tmp_path):
    model, variables, tokens = case
    save_state(tmp_path / "state", model, state)
    loaded = load_state(tmp_path / "state", model, variables)
    assert equal(loaded, state)
    end = read(case, tokens[:, 18:], loaded)
    assert_same(end, read(case, tokens), 1e-5)
    one, two = (fork(loaded, [index]) for index in (1, 0))
    both = fork(loaded, [1, 0])
    joined = jax.tree.map(lambda *a: np.concatenate(a), one, two)
    assert equal(both, joined)


@pytest.mark.slow
def test_pieces_end_where_one_call_does(case):
    whole = advance(case, case.tokens)
    assert_same(read(case, case.tokens), whole, 1e-5)


def test_a_level_is_reset_and_the_other_keeps_every_bit(case, state):
    model, variables, _ = case
    start = model.init_state(variables, 2)
    found = reset_level(model, variables, state, 2)
    assert equal(found.cms.fast[1], start.cms.fast[1])
    assert not equal(found.cms.fast[1], state.cms.fast[1])
    assert equal(found.cms.fast[0], state.cms.fast[0])
    anew = reset_rows(model, variables, state, [1])
    for index, other in enumerate((state, start)):
        one, two = (
            jax.tree.map(lambda a: a[index], s)  # noqa: B023
            for s in (anew, other)
        )
        assert equal(one, two)


def test_a_consolidated_level_begins_the_next_context(case, state):
    model, variables, _ = case
    for level in (1, 2):
        new = consolidate(model, variables, state, level, row=1)
        fresh, old = (model.init_state(v, 1).cms.fast for v in (new, variables))
        for index in (0, 1):
            learned = jax.tree.map(lambda a: a[1:], state.cms.fast[index])
            expected = learned if index == level - 1 else old[index]
            assert equal(fresh[index], expected)
            assert not equal(learned, old[index])
        distance = inspect(model, new, state).levels[level - 1].distance
        assert distance[1] == 0 < distance[0]
