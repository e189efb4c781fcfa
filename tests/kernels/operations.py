"""A memory with the operations that functions of one's own may be made of."""

import jax
import jax.numpy as jnp

CHUNK = WIDTH = 128


def _shape(*sizes):
    return (jax.ShapeDtypeStruct((4, *sizes), jnp.float32),)


ARRAYS = {
    "state": _shape(WIDTH, WIDTH),
    "tokens": _shape(2 * CHUNK, WIDTH),
    "gates": _shape(2 * CHUNK),
}


def step(state, tokens, gates, valid, inverse):
    """A chunk step, as ``memory_scan`` takes it."""
    (w,), (x,), (eta,) = state, tokens, gates
    _, pull = jax.vjp(lambda y: jnp.sin(y) * jnp.cos(y), x)
    o = _mixed(x @ w) + pull(x)[0]
    return o, (w - x.mT @ (eta[..., None] * o),)


def _mixed(x):
    positive = jnp.abs(x) + jnp.square(x) + 1
    column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 2)
    functions = (
        *(jnp.sin, jnp.cos, jnp.tan, jnp.tanh, jnp.exp, jnp.exp2),
        *(jnp.floor, jnp.round, jnp.sign, jax.lax.erf),
        *(jax.nn.relu, jax.nn.silu, jax.nn.softmax, jax.nn.softplus),
        lambda x: jnp.atan2(x, 1 / positive) + jnp.fmod(x, 2.0) + x**3,
        lambda x: jnp.log(positive) * jax.lax.rsqrt(positive),
        lambda x: jnp.power(positive, x) + jnp.sqrt(positive),
        lambda x: x * jnp.argmax(x, -1)[..., None],
        lambda x: x - x.min(-1, keepdims=True) + x.sum(-1, keepdims=True),
        lambda x: jnp.where(jnp.isfinite(x) & (x >= 0), x, -x),
        lambda x: jnp.where(~(x > 1) & (x <= 2) | (x == 1), x, -x),
        lambda x: jnp.where(column < 9, x, -x),
        lambda x: jnp.concatenate([x[..., 64:], x[..., :64]], -1).mT.mT,
        lambda x: jnp.clip(x, -1, 1).reshape(-1, WIDTH).reshape(x.shape),
    )
    return sum(function(x) for function in functions)
