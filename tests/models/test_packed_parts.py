"""What a user hands in beside segment ids: rules, mixers, states."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.errors import InputError
from nl_jax.layers import MatrixMemory, MatrixMemoryConfig, MixerConfig
from nl_jax.memory import MatrixRule, delta_scan
from nl_jax.memory.packed import goes_on
from nl_jax.models import build

SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": 16}
TOKENS = jnp.array([[3, 1, 4, 1]])


def erasing(state, q, k, v, gates, *, resets=None, **options):
    """Writes at rate 1 and erases at a rate that is one for all tokens."""
    o, w, _ = delta_scan(
        state[..., 0, :, :],
        None,
        k,
        v,
        q,
        gates["log_alpha"],
        jnp.broadcast_to(gates["erase"], k.shape[:-1]),
        read="after",
        resets=resets,
        **options,
    )
    return o, w[..., None, :, :]


def deaf(state, q, k, v, gates, **options):
    """Would ignore the first tokens of documents."""
    del q, k, gates, options
    return v, state


ERASING = MatrixRule("erasing", "l2", erasing, gates=("erase",))


def test_padding_changes_no_memory_of_a_rule_of_ones_own():
    config = MatrixMemoryConfig(rule=ERASING, decay="fixed", conv_width=1)
    layer = MatrixMemory(config, 8, 2)
    x = jax.random.normal(jax.random.key(0), (1, 4, 8))
    variables = layer.init(jax.random.key(1), x)
    _, state = layer.apply(variables, x)
    packed = goes_on(jnp.array([0]), 4)  # Padding only.
    _, after = layer.apply(variables, x, state, packed=packed)
    assert np.abs(state.memory).max() > 0.01
    np.testing.assert_array_equal(after.memory, state.memory)


class Deaf(nn.Module):
    """A mixer that would ignore which documents there are."""

    def initial_state(self, rows):
        return jnp.zeros((rows, 1))

    def __call__(self, x, state=None, **_):
        return x, self.initial_state(len(x)) if state is None else state


@dataclasses.dataclass(frozen=True)
class DeafConfig(MixerConfig):
    """Configuration of ``Deaf``."""

    def build(self, d_model, n_heads, dtype):
        return Deaf()

    def levels(self, params, state):
        return []


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "deltanet",
            {"matrix": {"rule": MatrixRule("deaf", "l2", deaf)}},
            "the scan of rule 'deaf' .* keyword resets by name",
        ),
        (
            "hope",
            {"mixer": DeafConfig()},
            "Deaf.__call__ .* keyword packed by name",
        ),
    ],
)
def test_what_ignores_documents_is_named(name, fields, message):
    model = build(name, **SMALL, **fields)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(
            lambda v: model.apply(v, TOKENS, segment_ids=TOKENS * 0 + 1),
            model.parameter_shapes(),
        )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gla", {"matrix": {"conv_width": 2}}),
        ("linear-attention", {"matrix": {"conv_width": 2}}),
        ("transformer", {"attention": {"window": 4}}),
    ],
)
def test_nothing_of_a_spoilt_state_is_in_the_next_document(name, fields):
    model = build(name, **SMALL, **fields)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    apply = jax.jit(model.apply)

    def spoil(a):
        return jnp.full_like(a, jnp.nan if a.dtype == jnp.float32 else 1)

    state = jax.tree.map(spoil, model.init_state(variables, 1))
    state = state._replace(segment=jnp.ones(1, jnp.int32))
    ids = 2 * jnp.ones_like(TOKENS)
    alone, fresh = apply(variables, TOKENS, segment_ids=ids)
    found, after = apply(variables, TOKENS, state, segment_ids=ids)
    np.testing.assert_allclose(found, alone, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (after, fresh)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    same, _ = apply(variables, TOKENS, state, segment_ids=ids - 1)
    assert np.isnan(same).all()  # It goes on.


@pytest.mark.parametrize(
    ("segment", "kind"), [(jnp.ones(1), "float32"), ([1], "list")]
)
def test_a_segment_that_is_no_integer_is_named(segment, kind):
    model = build("lstm", **SMALL)

    def apply(v):
        state = model.init_state(v, 1)._replace(segment=segment)
        return model.apply(v, TOKENS, state)

    with pytest.raises(InputError, match=f"segment is {kind}, not int32"):
        jax.eval_shape(apply, model.parameter_shapes())
