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

A rule may also descend on a window of tokens, or orthogonalise its steps, see
:mod:`nl_jax.memory.token_wise`.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, PerToken, Values
from nl_jax.checks import check_count
from nl_jax.memory.architecture import Architecture, Weights
from nl_jax.memory.objective import Objective
from pallas_kernels.arithmetic import divide, one_minus_exp


class Gates(NamedTuple):
    """Per-token numbers of the inner optimisation, each ``[..., T]``."""

    eta: PerToken
    """Step size."""
    log_alpha: PerToken
    """Logarithm of the retention; 0 keeps everything. ``[..., T, d_in]`` with
    a retention by channel."""
    log_mu: PerToken | None = None
    """Logarithm of the momentum's decay; ``None`` for no momentum."""
    share: PerToken | None = None
    """Weight of a token in the losses of a window; ``None`` is 1."""
    threshold: PerToken | None = None
    """Number per token of an objective that takes one."""


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
        window: tokens whose losses a step descends on, weighted by
            ``gates.share``; 1 for the present one (Omega rule, ATLAS).
        orthogonal: orthogonalise each step by Newton-Schulz (Muon).

    Raises:
        ValueError: for a ``window`` below 1, or a delta term with more.
    """

    name: str
    delta: bool = True
    delta_layers: Literal["all", "input"] = "all"
    normalized: bool = True
    window: int = 1
    orthogonal: bool = False

    @property
    def words(self) -> str:
        """What the level table calls the step."""
        return "Muon" if self.orthogonal else "DGD" if self.delta else "GD"

    def __post_init__(self):
        check_count("window", self.window)
        if self.delta and self.window > 1:
            raise ValueError(
                f"window={self.window} goes with delta=False: what a delta "
                "term erases is one token's"
            )

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
        surprise = objective.gradient(y, v.astype(y.dtype), gates.threshold)
        deltas = pullback(surprise)
        bound = _norm(surprise)
        eta = gates.eta
        damping: jax.Array | float = 1.0
        if self.normalized:
            eta = eta / len(weights)
            if gates.log_mu is not None:
                damping = one_minus_exp(gates.log_mu)
        writes = []
        for index, (x, delta) in enumerate(zip(inputs, deltas, strict=True)):
            step = eta * damping
            if self.normalized:
                size = _norm(x)
                # One quotient a token; as many as channels cost time.
                x = x * divide(1.0, size)[..., None].astype(x.dtype)
                step = divide(step, jnp.maximum(size, 1.0))
                excess = divide(bound, _norm(delta))
                step = step * jnp.minimum(1.0, excess)
            has_delta = self.delta and (
                self.delta_layers == "all" or index == 0
            )
            g = -step[..., None].astype(delta.dtype) * delta
            writes.append(Write(x, g, eta if has_delta else None))
        return tuple(writes)

    def affine_writes(
        self,
        architecture: Architecture,
        objective: Objective,
        weights: Weights,
        k: Keys,
        v: Values,
        gates: Gates,
    ) -> tuple[Write, ...]:
        """As :meth:`writes`, with surprises at every token's own weights.

        Where the memory is affine in its one matrix and the gradient is
        ``curvature * y - v``, what depends on the weights is one more delta
        term: ``step * curvature * |x|`` along the unit input.
        """
        nothing = tuple(jnp.zeros_like(w) for w in weights)
        (write,) = self.writes(architecture, objective, nothing, k, v, gates)
        _, (x,), _ = architecture.linearize(nothing, k)
        erase = gates.eta * jnp.asarray(objective.curvature)
        if self.normalized:
            size = _norm(x)
            erase = erase * size / jnp.maximum(size, 1.0)
        if write.beta is not None:
            erase = erase + write.beta
        return (write._replace(beta=erase),)


def _norm(x: jax.Array) -> jax.Array:
    square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return jnp.sqrt(square.sum(-1) + 1e-12)


dgd = LearningRule("dgd")
gd = LearningRule("gd", delta=False)
muon = LearningRule("muon", delta=False, orthogonal=True)


def omega(window: int = 4, *, orthogonal: bool = False) -> LearningRule:
    """Returns gradient descent on the losses of the last ``window`` tokens.

    The Omega rule of ATLAS (arXiv 2505.23735, eq. 9); with ``orthogonal`` and
    momentum it is ATLAS itself.

    Example:
        >>> omega(8).window
        8
    """
    return dataclasses.replace(
        muon if orthogonal else gd, name="omega", window=window
    )


RULES = {r.name: r for r in (dgd, gd, muon)}
"""By name, each on the present token alone."""
