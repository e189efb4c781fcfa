"""What pretrained transformers need of the layers: groups, biases, norms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.layers import (
    AttentionConfig,
    CausalAttention,
    CMSConfig,
    ContinuumMemory,
    NormConfig,
    RopeScaling,
    layer_norm,
)
from nl_jax.models import configure

D, HEADS = 8, 4


@pytest.mark.parametrize("conv_width", [0, 4])
def test_a_group_is_heads_with_the_same_keys_and_values(conv_width):
    single = AttentionConfig(
        window=5, persistent=2, conv_width=conv_width, bias=True, out_bias=True
    )
    shared = dataclasses.replace(single, kv_heads=2)
    grouped = CausalAttention(shared, D, HEADS)
    x = jax.random.normal(jax.random.key(0), (2, 13, D))
    variables = jax.jit(grouped.init)(jax.random.key(1), x)
    params = jax.tree.map(
        lambda a: a + jax.random.normal(jax.random.key(2), a.shape),
        variables["params"],
    )

    def repeat(name, a):
        value = a.unbox() if hasattr(a, "unbox") else a
        if name.startswith("persistent"):
            return jnp.repeat(value, 2, 0)
        if name.endswith(("_k", "_v")):  # Heads of 2 channels, each twice.
            heads = value.reshape(*value.shape[:-1], 2, 2)
            return jnp.repeat(heads, 2, -2).reshape(*value.shape[:-1], D)
        return value

    whole = {name: repeat(name, leaf) for name, leaf in params.items()}
    plain = CausalAttention(single, D, HEADS)
    expected, _ = jax.jit(plain.apply)({"params": whole}, x)
    found, state = jax.jit(grouped.apply)({"params": params}, x)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert state.keys.shape == (2, 5, 2, 2)  # Half of the plain layer's.
    first, state = jax.jit(grouped.apply)({"params": params}, x[:, :7])
    rest, _ = jax.jit(grouped.apply)({"params": params}, x[:, 7:], state)
    streamed = jnp.concatenate([first, rest], 1)
    np.testing.assert_allclose(streamed, found, atol=1e-4)


def test_layer_norm_and_gelu_equal_numpy():
    rng = np.random.default_rng(0)
    x, scale, bias = (rng.normal(size=shape) for shape in ((3, D), D, D))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 0.1
    )
    expected = expected * scale + bias
    found = layer_norm(*map(jnp.asarray, (x, scale, bias)), 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    layer = ContinuumMemory(
        CMSConfig(mlp="gelu"), D, norm=NormConfig("layer", 0.1)
    )
    names = {"scale": D, "bias": D, "up": (D, 16), "up_bias": 16}
    names |= {"down": (16, D), "down_bias": D}
    params = {f"level_1_{n}": rng.normal(size=s) for n, s in names.items()}
    declared = jax.eval_shape(layer.init, jax.random.key(0), x[None])["params"]
    assert declared.keys() == params.keys()
    w = {name.removeprefix("level_1_"): a for name, a in params.items()}
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(
        x.var(-1, keepdims=True) + 0.1
    )
    h = (h * w["scale"] + w["bias"]) @ w["up"] + w["up_bias"]
    h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    expected = x + h @ w["down"] + w["down_bias"]
    params = jax.tree.map(jnp.asarray, params)
    found = layer.apply({"params": params}, jnp.asarray(x)[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NormConfig("batch"), "norm.kind='batch'"),
        (lambda: NormConfig(eps=0.0), "norm.eps=0.0 must be positive"),
        (lambda: CMSConfig(mlp="relu"), "cms.mlp='relu'"),
        (lambda: AttentionConfig(kv_heads=-1), "kv_heads=-1"),
        (lambda: AttentionConfig(head_dim=3), "head_dim=3 must be even"),
        (lambda: RopeScaling("yarn"), "rope_scaling.kind='yarn' must be one"),
        (lambda: RopeScaling("linear", 0.0), "rope_scaling.factor=0.0 must"),
        (lambda: RopeScaling("table", table=3), "table=3 must be a tuple of"),
        (lambda: RopeScaling("table", table="ab"), "table='ab' must be a tup"),
        (lambda: RopeScaling("table"), "goes with kind='table', which needs"),
        (
            lambda: RopeScaling("llama3", 8.0, 4.0, 4.0),
            "low_freq_factor=4.0 must be above 0 and below",
        ),
        (
            lambda: RopeScaling("table", table=(1.0,)).divisors(10.0, 2),
            "has 1 entries; heads of 4 channels need 2",
        ),
        (
            lambda: configure("transformer", attention={"kv_heads": 3}),
            "attention.kv_heads=3 must divide n_heads=4",
        ),
        (
            lambda: configure("hope", learned_positions=True),
            "learned_positions goes with mixer='attention'",
        ),
    ],
)
def test_wrong_choices_are_one_line(make, words):
    with pytest.raises(ValueError, match=words):
        make()
