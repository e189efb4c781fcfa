"""Learning rules: how a memory takes one step, retention included.

For each layer, a rule chooses the inputs of the delta memory
(:func:`pallas_kernels.delta_memory.delta_scan`): the input ``x``, the write
``g`` and the strength ``beta`` of the delta term.

* gradient descent: ``W <- alpha W - eta x^T delta``;
* delta gradient descent (DGD, arXiv 2512.24695, eq. 57 and 88), per layer with
  that layer's input: ``W <- W (alpha I - eta x^T x) - eta x^T delta``.

DGD as printed overflows float32 within a few chunks on an MLP that generates
its own targets, because each write scales with the layer's input.
``normalized`` makes every write an NLMS step, which changes the layer's output
by at most ``eta * delta`` whatever the input. Windows of tokens and
orthogonalised steps are in :mod:`nl_jax.memory.token_wise`.
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
    """Per-token coefficients of the inner optimisation, each ``[..., T]``."""

    eta: PerToken
    """Step size."""
    log_alpha: PerToken
    """Log retention; 0 keeps everything. ``[..., T, d_in]`` if per channel."""
    log_mu: PerToken | None = None
    """Logarithm of the momentum decay; ``None`` for no momentum."""
    share: PerToken | None = None
    """Weight of a token in the loss of a window; ``None`` for 1."""
    threshold: PerToken | None = None
    """Per-token threshold, for objectives that take one."""

    def widen(self, channels: bool) -> "Gates":
        """Moves tokens to the second-to-last axis of all gates.

        Args:
            channels: whether ``log_alpha`` is per channel.
        """
        wide = jax.tree.map(lambda gate: gate[..., None], self)
        return wide._replace(log_alpha=self.log_alpha) if channels else wide

    def narrow(self, channels: bool) -> "Gates":
        """Undoes :meth:`widen`."""
        gates = jax.tree.map(lambda gate: gate[..., 0], self)
        return gates._replace(log_alpha=self.log_alpha) if channels else gates


class Write(NamedTuple):
    """Inputs of one layer's delta memory, see ``delta_scan``."""

    x: Keys
    g: Values
    beta: PerToken | None


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """One step of (delta) gradient descent for every layer of a memory.

    Attributes:
        name: name in configurations.
        delta: whether to erase what the layer returns for its input (DGD).
        delta_layers: layers with the delta term, ``"all"`` or ``"input"``.
        normalized: whether to take NLMS steps. They are divided evenly among
            the layers, inner gradients are scaled down to the norm of the
            output's, and momentum averages (writes are scaled by ``1 - mu``).
        window: latest tokens whose losses, weighted by ``gates.share``, a step
            descends (Omega rule, ATLAS); 1 for the current token alone.
        orthogonal: whether to orthogonalise each step by Newton-Schulz (Muon).

    Raises:
        ValueError: for a ``window`` below 1, or above 1 with a delta term.
    """

    name: str
    delta: bool = True
    delta_layers: Literal["all", "input"] = "all"
    normalized: bool = True
    window: int = 1
    orthogonal: bool = False

    @property
    def words(self) -> str:
        """Name of the step in the level table."""
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
        *,
        affine: bool = False,
    ) -> tuple[Write, ...]:
        """Returns each layer's delta-memory inputs for the pairs ``(k, v)``.

        Args:
            architecture: the memory's function.
            objective: its loss.
            weights: the weights at which gradients are taken.
            k: keys, ``[..., T, d_in]``.
            v: values, ``[..., T, d_out]``.
            gates: ``eta`` and, with momentum, ``log_mu``.
            affine: whether to take each gradient at its token's own weights,
                for a memory that is affine in its one matrix and a gradient
                ``curvature * y - v``. What depends on the weights is then
                another delta term.
        """
        if affine:
            weights = tuple(jnp.zeros_like(w) for w in weights)
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
            step, erase = eta * damping, eta
            if self.normalized:
                size = _norm(x)
                # One division per token is faster than one per channel.
                x = x * divide(1.0, size)[..., None].astype(x.dtype)
                step = divide(step, jnp.maximum(size, 1.0))
                if affine:
                    erase = erase * size / jnp.maximum(size, 1.0)
                excess = divide(bound, _norm(delta))
                step = step * jnp.minimum(1.0, excess)
            has_delta = self.delta and (
                self.delta_layers == "all" or index == 0
            )
            g = -step[..., None].astype(delta.dtype) * delta
            beta = eta if has_delta else None
            if affine:
                erase = erase * jnp.asarray(objective.curvature)
                beta = erase if beta is None else erase + beta
            writes.append(Write(x, g, beta))
        return tuple(writes)


def _norm(x: jax.Array) -> jax.Array:
    square = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    return jnp.sqrt(square.sum(-1) + 1e-12)


dgd = LearningRule("dgd")
gd = LearningRule("gd", delta=False)
muon = LearningRule("muon", delta=False, orthogonal=True)


def omega(window: int = 4, *, orthogonal: bool = False) -> LearningRule:
    """Returns gradient descent on the losses of the last ``window`` tokens.

    This is the Omega rule of ATLAS (arXiv 2505.23735, eq. 9); with
    ``orthogonal`` and momentum it is ATLAS itself.

    Example:
        >>> omega(8).window
        8
    """
    return dataclasses.replace(
        muon if orthogonal else gd, name="omega", window=window
    )


RULES = {r.name: r for r in (dgd, gd, muon)}
"""Learning rules by name, with a window of one token."""
