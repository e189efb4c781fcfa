"""Wrong arguments of what goes on learning: one line says what is needed."""

import jax.numpy as jnp
import pytest

from nl_jax.continual import Sampler, consolidate, reset_level, stream
from nl_jax.errors import InputError


def test_consolidation_names_what_is_wrong(learning, static):
    model, variables, _ = learning
    state = model.init_state(variables, 2)
    for arguments, message in (
        ({"share": "1"}, "share='1' must be a finite number"),
        ({"weights": ["a", 1]}, r"weights=\['a', 1\] must be numbers"),
    ):
        with pytest.raises(InputError, match=message):
            consolidate(model, variables, state, 1, **arguments)
    model, variables, _ = static
    state = model.init_state(variables, 2)
    with pytest.raises(InputError, match="'mixer' must be 'mixers': no MLP"):
        consolidate(model, variables, state, "mixer")


def test_parameters_are_not_variables(learning):
    model, variables, tokens = learning
    state = model.init_state(variables, 2)
    params = variables["params"]
    for use in (
        lambda: consolidate(model, params, state, 1, row=0),
        lambda: reset_level(model, params, state, "mixers"),
        lambda: model.apply(params, tokens),
        lambda: next(stream(model, params, tokens)),
        lambda: Sampler(model, params),
    ):
        with pytest.raises(InputError, match="variables are not those of a m"):
            use()


def test_the_state_of_another_model_is_refused(static, learning):
    other = learning.model.init_state(learning.variables, 2)
    larger = static.model.init_state(static.variables, 2)
    larger = larger._replace(mixers=jnp.ones((2, 2, 2, 9, 9)))
    for state in (other, larger):
        with pytest.raises(InputError, match="not one of this deltanet"):
            static.model.apply(static.variables, static.tokens, state)


def test_what_is_no_sequence_is_not_read(static):
    model, variables, _ = static
    with pytest.raises(InputError, match=r"tokens is int64\[\]; needs integ"):
        Sampler(model, variables).feed(5)
    with pytest.raises(InputError, match="seed='a' must be an integer"):
        Sampler(model, variables, seed="a")
    with pytest.raises(InputError, match="the source is 5; needs"):
        next(stream(model, variables, 5))
