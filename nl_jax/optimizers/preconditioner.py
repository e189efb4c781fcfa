r"""A preconditioner that is learned as a memory (eq. 38-41).

arXiv 2512.24695. The memory :math:`P`, a symmetric matrix, is to map the
direction one would like to step in, :math:`\hat g`, to the gradient that is
seen; its inverse then maps gradients to steps:

.. math::
    P \leftarrow P - \zeta\, \nabla_P L(P; \hat g, g), \qquad
    W \leftarrow W - \text{lr}\; |P|^{-1} g

With the polar factor of the gradient for :math:`\hat g`, the default, and L2,
:math:`P` is an average of :math:`(g g^\top)^{1/2}`, and the step is the
gradient whitened by what its past looked like. Two decisions are ours. ``P``
acts on the shorter side of a matrix, where gradients have full rank. And it is
inverted as :math:`|P|^{-1} = (P P)^{-1/2}`: a gradient step, or an objective of
yours, may leave a matrix that is not positive, and its inverse would climb.

Cost: an inverse root by 30 steps of matrix products for every matrix, some
twenty times what Muon does. Weak: ``P P`` squares the condition, so in float32
directions below ``eps`` are not told apart.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_real, choose
from nl_jax.memory import OBJECTIVES, Objective
from nl_jax.nested.describe import LevelRow
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import (
    MatrixFunction,
    as_matrices,
    resolve_dimensions,
)
from nl_jax.optimizers.rate import Rate, with_rate
from nl_jax.optimizers.roots import inverse_root
from nl_jax.optimizers.sharding import keep_shardings
from pallas_kernels.newton_schulz import (
    COEFFICIENTS,
    newton_schulz,
    safe_norm,
)

# The quintic brings small singular values up, the cubic then all of them to 1.
_POLAR = (COEFFICIENTS["quintic"],) * 8 + (COEFFICIENTS["cubic"],) * 5


class ScaleByLearnedPreconditionerState(NamedTuple):
    """State of :func:`scale_by_learned_preconditioner`."""

    count: jax.Array  # type: ignore[assignment]
    """Steps, int32 scalar."""
    preconditioner: Any
    """``P``: ``[b, m, m]`` for a matrix, like the leaf for others."""
    facts: MemoryFacts
    """The memory's choices."""

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row in the level table."""
        return [level_row("learned preconditioner", self.facts, self)]


def scale_by_learned_preconditioner(
    zeta: float | jax.Array = 0.05,
    objective: str | Objective = "l2",
    target: MatrixFunction | None = None,
    *,
    initial: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-3,
    dimension_numbers: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies gradients with the inverse of a learned preconditioner.

    Leaves that are no matrices have a diagonal one, with the sign of the
    gradient for its polar factor: an average of absolute gradients.

    Args:
        zeta: :math:`\zeta`; with L2 and the default target the share of the
            present gradient in the average.
        objective: ``L``; ``"l2"``, ``"dot_product"`` or one of yours, of
            columns of :math:`P \hat g` and of :math:`g`.
        target: :math:`\hat g`, of gradients ``[b, m, n]``, the shorter side
            first, or ``[1, n, 1]`` for other leaves.
        initial: what ``P`` begins with, times the identity. If 0, and with
            L2, the average is corrected for its beginning, as in Adam.
        eps: smallest eigenvalue of ``P`` that counts, in units of its norm.
        dimension_numbers: which leaves are matrices, see ``scale_by_m3``.

    Raises:
        ValueError: for an unknown objective; and at ``init`` for integers,
            naming the leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_learned_preconditioner()
        >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
        >>> tx.update(g, tx.init(g))[0].round(2).tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    goal = choose("objective", objective, OBJECTIVES)
    facts = MemoryFacts("symmetric matrix", goal.name, "gradient descent")
    mean = goal.curvature if isinstance(initial, float) and not initial else 0

    def init(params):
        check_real(params)
        leaves, treedef = jax.tree.flatten(params)

        def begin(leaf, dims):
            if dims is None:
                return jnp.full(leaf.shape, initial, leaf.dtype)
            b, m, _ = jax.eval_shape(lambda x: _short(x, dims)[0], leaf).shape
            identity = jnp.eye(m, dtype=leaf.dtype)
            return jnp.broadcast_to(initial * identity, (b, m, m))

        dims = resolve_dimensions(dimension_numbers, params) if leaves else []
        return ScaleByLearnedPreconditionerState(
            jnp.zeros((), jnp.int32),
            treedef.unflatten(map(begin, leaves, dims)),
            facts,
        )

    def learn(p, g):
        """One step of ``P``, ``[b, m, m]``."""
        if target is not None:
            wanted = target(g)
        else:
            wanted = newton_schulz(g, coefficients=_POLAR)
        at = goal.gradient((p @ wanted).mT, g.mT).mT @ wanted.mT
        return p - zeta * 0.5 * (at + at.mT)

    def learn_diagonal(p, g):
        column = g.reshape(1, -1, 1)
        wanted = jnp.sign(column) if target is None else target(column)
        y = p.reshape(column.shape) * wanted
        return p - zeta * (goal.gradient(y, column) * wanted).reshape(p.shape)

    def update(updates, state, params=None, **extra):
        del params, extra
        count = optax.safe_increment(state.count)
        correction = 1 - (1 - zeta * mean) ** count if mean else 1.0
        leaves, treedef = jax.tree.flatten(updates)
        held = treedef.flatten_up_to(state.preconditioner)
        dims = resolve_dimensions(dimension_numbers, updates)
        out = []
        for i, (g, d) in enumerate(zip(leaves, dims, strict=True)):
            kind = jnp.promote_types(held[i].dtype, jnp.float32)
            p, own = held[i].astype(kind), g.astype(held[i].dtype).astype(kind)
            if d is None:
                p = learn_diagonal(p, own)
                size = jnp.abs(p) / correction
                u = own / jnp.where(size > 0, size, 1)
            else:
                x, back = _short(own, d)
                p = learn(p, x)
                u = back(_divide(x, p / correction, eps))
            held[i] = p.astype(held[i].dtype)
            out.append(u.astype(g.dtype))
        return treedef.unflatten(out), ScaleByLearnedPreconditionerState(
            count, treedef.unflatten(held), facts
        )

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def learned_preconditioner(
    learning_rate: Rate, *args: Any, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_learned_preconditioner` with a learning rate behind it.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = learned_preconditioner(1.0)
        >>> g = jnp.array([0.5, -2.0])
        >>> tx.update(g, tx.init(g))[0].round(4).tolist()
        [-1.0, 1.0]
    """
    return with_rate(
        scale_by_learned_preconditioner(*args, **options), learning_rate
    )


def _short(leaf, dims):
    """A leaf's matrices with the shorter side first, and the way back."""
    x, back = as_matrices(leaf, dims)
    if x.shape[1] <= x.shape[2]:
        return x, back
    return x.mT, lambda y: back(y.mT)


def _divide(g, p, eps):
    """``|P|^{-1} g`` with eigenvalues of at least ``eps |P|``."""
    size = safe_norm(p, (-2, -1))
    unit = p / jnp.where(size > 0, size, 1)
    # What is not finite must not run through an iteration, see AdaGrad.
    sound = jnp.isfinite(size) & (size > 0)
    unit = jnp.where(sound, unit, jnp.eye(p.shape[-1], dtype=p.dtype))
    inverse = inverse_root(unit @ unit, eps**2)
    return jnp.where(sound, inverse @ (g / jnp.where(sound, size, 1)), 0)
