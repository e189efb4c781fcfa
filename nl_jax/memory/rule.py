"""How one step of a memory's learning is taken, retention included.

Every rule here is a choice of what the delta memory
(:func:`pallas_kernels.delta_memory.delta_scan`) is fed with for each layer:
the input ``x``, the write ``g`` and the strength ``beta`` of the delta term.

* gradient descent: ``W <- alpha W - eta x^T delta``;
* delta gradient descent (DGD, arXiv 2512.24695, eq. 57 and 88), layer by layer
  with each layer's own input: ``W <- W (alpha I - eta x^T x) - eta x^T delta``.

Read literally, DGD on an MLP whose targets it generates itself overflows
float32 within a few chunks, because each write is scaled by the size of the
layer's input. ``normalized`` makes every write an NLMS step, whose change of
the layer's output is at most ``eta * delta`` whatever the input.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, PerToken, Values
from nl_jax.memory.architecture import Architecture, Weights
from nl_jax.memory.objective import Objective

__all__ = ["RULES", "Gates", "LearningRule", "Write", "dgd", "gd"]


class Gates(NamedTuple):
    """Per-token scalars of the inner optimisation, each ``[..., T]``."""

    eta: PerToken
    """Step size."""
    log_alpha: PerToken
    """Logarithm of the retention; 0 keeps everything."""
    log_mu: PerToken | None = None
    """Logarithm of the momentum's decay; ``None`` for no momentum."""


class Write(NamedTuple):
    """What one layer's delta memory is fed with, see ``delta_scan``."""

    x: Keys
    g: Values
    beta: PerToken | None


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """A step of (delta) gradient descent for every layer of a memory.

    Attributes:
        name: what users type.
        delta: subtract what the layer holds at its input (DGD).
        delta_layers: ``"all"`` layers have the delta term, or the ``"input"``
            layer alone.
        normalized: NLMS steps; the step is shared evenly over the layers,
            inner surprises are scaled down to the norm of the output's, and
            momentum averages (its writes carry ``1 - mu``).
    """

    name: str
    delta: bool = True
    delta_layers: Literal["all", "input"] = "all"
    normalized: bool = True

    def writes(
        self,
        architecture: Architecture,
        objective: Objective,
        weights: Weights,
        k: Keys,
        v: Values,
        gates: Gates,
    ) -> tuple[Write, ...]:
        """Returns what each layer is fed with for the pairs ``(k, v)``.

        Args:
            architecture: the memory's function.
            objective: its loss.
            weights: where surprises are taken, those at the chunk's start.
            k: keys, ``[..., T, d_in]``.
            v: values, ``[..., T, d_out]``.
            gates: ``eta`` and, with momentum, ``log_mu``.
        """
        y, inputs, pullback = architecture.linearize(weights, k)
        surprise = objective.gradient(y, v.astype(y.dtype))
        deltas = pullback(surprise)
        bound = _norm(surprise)
        eta = gates.eta
        damping: jax.Array | float = 1.0
        if self.normalized:
            eta = eta / len(weights)
            if gates.log_mu is not None:
                damping = -jnp.expm1(gates.log_mu)
        writes = []
        for index, (x, delta) in enumerate(zip(inputs, deltas, strict=True)):
            step = eta * damping
            if self.normalized:
                size = _norm(x)
                x = x / size[..., None].astype(x.dtype)
                step = step / jnp.maximum(size, 1.0)
                step = step * jnp.minimum(1.0, bound / _norm(delta))
            has_delta = self.delta and (
                self.delta_layers == "all" or index == 0
            )
            g = -step[..., None].astype(delta.dtype) * delta
            writes.append(Write(x, g, eta if has_delta else None))
        return tuple(writes)


def _norm(x: jax.Array) -> jax.Array:
    square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return jnp.sqrt(square.sum(-1) + 1e-12)


dgd = LearningRule("dgd")
gd = LearningRule("gd", delta=False)

RULES = {r.name: r for r in (dgd, gd)}
