r"""A preconditioner learned as an associative memory (eq. 38-41).

arXiv 2512.24695. The memory :math:`P`, a symmetric matrix, learns to map the
desired direction :math:`\hat g` of a step to the observed gradient; its inverse
then maps gradients to steps:

.. math::
    P \leftarrow P - \zeta\, \nabla_P L(P; \hat g, g), \qquad
    W \leftarrow W - \text{lr}\; |P|^{-1} g

If :math:`\hat g` is the polar factor of the gradient, the default, and the
objective is L2, :math:`P` is an average of :math:`(g g^\top)^{1/2}` and the
step is the gradient whitened by its past. Two choices are not the paper's.
``P`` acts on the shorter side of a matrix, where gradients have full rank. And
its inverse is :math:`|P|^{-1} = (P P)^{-1/2}`, since a gradient step, or a
custom objective, may leave ``P`` indefinite, and its inverse would then ascend
the loss.

Cost: an inverse root by 30 steps of matrix products for every matrix, some
twenty times the cost of Muon. Weakness: ``P P`` squares the condition number,
so in float32 eigenvalues below ``eps`` are indistinguishable.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_real, choose
from nl_jax.memory import OBJECTIVES, Objective
from nl_jax.nested.level import state_zeros
from nl_jax.nested.level_table import LevelRow
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import (
    MatrixFunction,
    as_matrices,
    resolve_dimensions,
)
from nl_jax.optimizers.rate import scale_by_rate
from nl_jax.optimizers.roots import inverse_root
from nl_jax.optimizers.sharding import keep_shardings
from pallas_kernels.newton_schulz import (
    COEFFICIENTS,
    newton_schulz,
    safe_norm,
)

# The quintic raises small singular values, the cubic converges to 1.
_POLAR = (COEFFICIENTS["quintic"],) * 8 + (COEFFICIENTS["cubic"],) * 5


class ScaleByLearnedPreconditionerState(NamedTuple):
    """State of :func:`scale_by_learned_preconditioner`."""

    count: jax.Array  # type: ignore[assignment]
    """Number of steps taken, int32 scalar."""
    preconditioner: Any
    """``P``: ``[b, m, m]`` for a leaf of matrices, else like the leaf."""
    facts: MemoryFacts
    """Description of the memory."""

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row of the level table."""
        return [level_row("learned preconditioner", self.facts, self)]


def scale_by_learned_preconditioner(
    zeta: float | jax.Array = 0.05,
    objective: str | Objective = "l2",
    target: MatrixFunction | None = None,
    *,
    initial: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-3,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies gradients by the inverse of a learned preconditioner.

    Leaves that are not matrices have a diagonal preconditioner, by default an
    average of absolute gradients: the sign takes the polar factor's place.

    Args:
        zeta: :math:`\zeta`, step size of ``P``; with L2 and the default target
            the weight of the current gradient in the average.
        objective: ``L``: ``"l2"``, ``"dot_product"`` or an ``Objective``, of
            the columns of :math:`P \hat g` and :math:`g`.
        target: :math:`\hat g` as a function of gradients, ``[b, m, n]`` with
            ``m <= n`` for matrices and ``[1, n, 1]`` for other leaves; ``None``
            is the polar factor.
        initial: initial ``P``, a multiple of the identity. If it is 0 and the
            objective L2, the average is bias-corrected, as in Adam.
        eps: smallest eigenvalue of ``P`` that is inverted, relative to its
            norm.
        dimension_numbers: which leaves are matrices, see :func:`scale_by_m3`.
        state_dtype: dtype of the state, for instance ``"bfloat16"``; ``None``
            is the parameters', at least float32.

    Raises:
        ValueError: for an unknown ``objective``, or at ``init`` for a leaf of
            integers, which the message names.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_learned_preconditioner()
        >>> g = jnp.array([[3.0, 0.0], [0.0, -0.5]])
        >>> tx.update(g, tx.init(g))[0].round(2).tolist()
        [[1.0, 0.0], [0.0, -1.0]]
    """
    loss = choose("objective", objective, OBJECTIVES)
    facts = MemoryFacts("symmetric matrix", loss.name, "gradient descent")
    mean = loss.curvature

    def init(params):
        check_real(params)
        leaves, treedef = jax.tree.flatten(state_zeros(params, state_dtype))

        def initial_matrix(leaf, dims):
            if dims is None:
                return jnp.full(leaf.shape, initial, leaf.dtype)
            b, m, _ = jax.eval_shape(lambda x: _short(x, dims)[0], leaf).shape
            diagonal = (initial * jnp.eye(m)).astype(leaf.dtype)
            return jnp.broadcast_to(diagonal, (b, m, m))

        dims = resolve_dimensions(dimension_numbers, params)
        return ScaleByLearnedPreconditionerState(
            jnp.zeros((), jnp.int32),
            treedef.unflatten(map(initial_matrix, leaves, dims)),
            facts,
        )

    def learn(p, g):
        """Takes a gradient step of ``P``, ``[b, m, m]``."""
        if target is not None:
            wanted = target(g)
        else:
            wanted = newton_schulz(g, coefficients=_POLAR, eps=0.0)
        slope = loss.gradient((p @ wanted).mT, g.mT).mT @ wanted.mT
        return p - zeta * 0.5 * (slope + slope.mT)

    def learn_diagonal(p, g):
        column = g.reshape(1, -1, 1)
        wanted = jnp.sign(column) if target is None else target(column)
        y = p.reshape(column.shape) * wanted
        return p - zeta * (loss.gradient(y, column) * wanted).reshape(p.shape)

    def update(updates, state, params=None, **extra):
        del params, extra
        count = optax.safe_increment(state.count)
        # Only an average that started at 0 is too small.
        taken = 1 - (1 - zeta * mean) ** count if mean else 1.0
        correction = jnp.where(jnp.equal(initial, 0), taken, 1.0)
        leaves, treedef = jax.tree.flatten(updates)
        matrices = treedef.flatten_up_to(state.preconditioner)
        dims = resolve_dimensions(dimension_numbers, updates)
        out = []
        for i, (g, d) in enumerate(zip(leaves, dims, strict=True)):
            dtype = matrices[i].dtype
            wide = jnp.promote_types(dtype, jnp.float32)
            p, own = matrices[i].astype(wide), g.astype(dtype).astype(wide)
            if d is None:
                p = learn_diagonal(p, own)
                size = jnp.abs(p) / correction
                u = own / jnp.where(size > 0, size, 1)
            else:
                x, back = _short(own, d)
                p = learn(p, x)
                u = back(_divide(x, p / correction, eps))
            matrices[i] = p.astype(dtype)
            out.append(u.astype(g.dtype))
        return treedef.unflatten(out), ScaleByLearnedPreconditionerState(
            count, treedef.unflatten(matrices), facts
        )

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def learned_preconditioner(
    learning_rate: optax.ScalarOrSchedule,
    *,
    zeta: float | jax.Array = 0.05,
    objective: str | Objective = "l2",
    target: MatrixFunction | None = None,
    initial: float | jax.Array = 0.0,
    eps: float | jax.Array = 1e-3,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_learned_preconditioner` and a learning rate."""
    return optax.chain(
        scale_by_learned_preconditioner(
            zeta,
            objective,
            target,
            initial=initial,
            eps=eps,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )


def _short(leaf, dims):
    """Returns a leaf's matrices, shorter side first, and the inverse."""
    x, back = as_matrices(leaf, dims)
    if x.shape[1] <= x.shape[2]:
        return x, back
    return x.mT, lambda y: back(y.mT)


def _divide(g, p, eps):
    """``|P|^{-1} g`` with eigenvalues of at least ``eps |P|``."""
    size = safe_norm(p, (-2, -1))
    unit = p / jnp.where(size > 0, size, 1)
    # Values that are not finite must not enter the iteration.
    valid = jnp.isfinite(size) & (size > 0)
    unit = jnp.where(valid, unit, jnp.eye(p.shape[-1], dtype=p.dtype))
    inverse = inverse_root(unit @ unit, eps**2)
    return jnp.where(valid, inverse @ (g / jnp.where(valid, size, 1)), 0)
