r"""What delta gradient descent needs of a level's matrices (eq. 57).

A level that descends, by any optax transformation, gathers the sum of its
gradients (eq. 71 of arXiv 2512.24695). One that takes delta gradient descent
needs its layers' inputs too: for every matrix ``y = x W`` of the MLP, every
token and the slope :math:`\delta = \nabla_y L` at the weights of the period's
start,

.. math:: W \leftarrow W - \eta' x^\top (x W) - \eta' x^\top \delta,
   \qquad \eta' = \frac{\eta}{1 + \eta \|x\|^2},

token after token, in the chunk form of the delta memory; it gathers how far
that has taken ``W``. The input of ``gate`` and ``up`` is what the level reads,
that of ``down`` the hidden activations between them. Each factor is a
contraction, whatever the rate and the input.

Inputs and slopes are computed as gradients of probes, arrays of zeros that are
added to a level's weights as further entries.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory import chunk_step


@jax.custom_vjp
def _probed_matmul(x, w, probe):
    del probe
    return x @ w


def _forward(x, w, probe):
    del probe
    return x @ w, (x, w)


def _backward(kept, slope):
    _, pull = jax.vjp(jnp.matmul, *kept)
    return (*pull(slope), (kept[0], slope))


_probed_matmul.defvjp(_forward, _backward)


def matmul(weights: Any, name: str, x: jax.Array) -> jax.Array:
    """Returns ``x W``; the gradient of a probe is ``x`` and the slope there."""
    w = weights[name].astype(x.dtype)
    if "probes" not in weights:
        return x @ w
    return _probed_matmul(x, w, weights["probes"][name])


def probed(config: Any, fast: Any, length: int, dtype: Any) -> Any:
    """Lays probes of ``length`` tokens in levels that need their inputs."""

    def lay(level):
        probes = {}
        for name, w in level.items():
            *lead, d_in, d_out = w.shape
            probes[name] = tuple(
                jnp.zeros((*lead, length, d), dtype) for d in (d_in, d_out)
            )
        return level | {"probes": probes}

    return tuple(
        lay(level) if delta else level
        for level, delta in zip(fast, config.deltas, strict=True)
    )


def writes(config: Any, gradient: Any) -> Any:
    """Returns the part of a gradient at probed weights that levels gather."""
    if config.first_order:
        gradient = jax.lax.stop_gradient(gradient)
    return tuple(level.get("probes", level) for level in gradient)


def gather_deltas(
    rate: jax.Array, new: Any, weights: Any, gathered: Any, valid: Any
) -> Any:
    """Returns the change of a level's weights by delta gradient descent.

    Args:
        rate: ``[blocks]``.
        new: for each matrix its inputs ``[B, blocks, T, d_in]`` and slopes
            ``[B, blocks, T, d_out]``.
        weights: at the period's start, ``[B, blocks, d_in, d_out]``.
        gathered: change so far, which a step subtracts from the weights.
        valid: ``[B, T]``, False where a slot holds no token; ``None`` if all
            slots do.
    """
    keep = None if valid is None else valid[:, None]

    def one(w, gone, x, slope):
        x, slope = x.astype(w.dtype), slope.astype(w.dtype)
        eta = rate[:, None]
        beta = eta / (1 + eta * jnp.square(x).sum(-1))
        _, after, _ = chunk_step(
            w - gone,
            None,
            x,
            -beta[..., None] * slope,
            None,
            jnp.zeros_like(beta),
            beta,
            valid=keep,
        )
        return w - after

    return {
        name: one(w, gathered[name], *new[name]) for name, w in weights.items()
    }
