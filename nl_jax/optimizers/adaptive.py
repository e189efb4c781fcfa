r"""Adam and AdaGrad as the closed forms of a regression (eq. 101-111).

The elementwise least-squares map from all gradients so far to a value
:math:`P` (eq. 101),

.. math:: m^* = \arg\min_m \sum_i \|m \odot g_i - P\|^2 + \lambda \|m\|^2
   = \frac{\sum_i g_i \odot P}{\sum_i g_i^2 + \lambda}

needs two running sums. With :math:`P = \sqrt{\sum_i g_i^2}` and exponential
averages in place of the sums it is Adam. With sums, and matrices in place of
elements, it is AdaGrad: :math:`H = \sum_i g_i g_i^\top`,
:math:`m^* = H^{-1/2} \tilde M`.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_choice, check_real
from nl_jax.nested.level import keep_dtypes, state_zeros
from nl_jax.nested.level_table import LevelRow
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import as_matrices, resolve_dimensions
from nl_jax.optimizers.rate import scale_by_rate
from nl_jax.optimizers.roots import inverse_root
from nl_jax.optimizers.sharding import keep_shardings


class ScaleByAdamMemoryState(NamedTuple):
    """State of :func:`scale_by_adam_memory`."""

    count: jax.Array  # type: ignore[assignment]
    """Number of steps taken, int32 scalar."""
    keys_to_values: optax.Updates
    """Average of the gradients, like the parameters: the numerator over
    ``P``."""
    keys_to_keys: optax.Updates
    """Average of their squares, like the parameters: the denominator."""

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row of the level table."""
        facts = MemoryFacts("vector", "l2", "closed form (101-105)")
        return [level_row("Adam's memory", facts, self)]


def scale_by_adam_memory(
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales gradients as Adam does, by the regression that Adam solves.

    .. math:: m^* = \frac{\tilde M \odot P}{H + \lambda}, \quad
       P = \sqrt H, \quad \lambda = \epsilon \sqrt H

    Equal to ``optax.scale_by_adam`` up to rounding.

    Args:
        b1: decay rate of the average of gradients.
        b2: decay rate of the average of their squares.
        eps: :math:`\epsilon`, the regularisation in units of :math:`P`.
        state_dtype: dtype of the state, for instance ``"bfloat16"``; ``None``
            is the parameters', at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_adam_memory()
        >>> g = jnp.array([0.5, -2.0])
        >>> tx.update(g, tx.init(g))[0].round(4).tolist()
        [1.0, -1.0]
    """

    def init(params):
        check_real(params)
        return ScaleByAdamMemoryState(
            jnp.zeros((), jnp.int32),
            state_zeros(params, state_dtype),
            state_zeros(params, state_dtype),
        )

    def update(updates, state, params=None, **extra):
        del params, extra
        count = optax.safe_increment(state.count)
        own = optax.tree.cast_like(updates, state.keys_to_values)
        numerator, denominator = (
            keep_dtypes(optax.tree.update_moment(own, old, decay, order), old)
            for old, decay, order in (
                (state.keys_to_values, b1, 1),
                (state.keys_to_keys, b2, 2),
            )
        )

        def solve(m, h, g):
            value = jnp.sqrt(h)
            # m P / (H + eps P), written so that P may be zero.
            return (m / (value + eps)).astype(g.dtype)

        out = jax.tree.map(
            solve,
            optax.tree.bias_correction(numerator, b1, count),
            optax.tree.bias_correction(denominator, b2, count),
            updates,
        )
        return out, ScaleByAdamMemoryState(count, numerator, denominator)

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def adam_memory(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_adam_memory` and a learning rate."""
    return optax.chain(
        scale_by_adam_memory(b1, b2, eps, state_dtype=state_dtype),
        scale_by_rate(learning_rate),
    )


class ScaleByAdaGradMemoryState(NamedTuple):
    """State of :func:`scale_by_adagrad_memory`."""

    momentum: optax.Updates
    """``M``, like the parameters."""
    keys_to_keys: Any
    """``H``: like the leaf, or ``[b, m, m]`` for a leaf of matrices."""

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row of the level table."""
        facts = MemoryFacts("vector or matrix", "l2", "closed form (106-111)")
        return [level_row("AdaGrad's memory", facts, self)]


def scale_by_adagrad_memory(
    form: Literal["diagonal", "matrix"] = "diagonal",
    *,
    momentum: float | jax.Array = 0.0,
    initial: float | jax.Array = 0.1,
    eps: float | jax.Array = 1e-7,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales gradients as AdaGrad with momentum does.

    It is a regression over all past gradients, none of which decays in ``H``:

    .. math:: \tilde M \leftarrow \alpha \tilde M + g, \quad
       H \leftarrow H + g g^\top, \quad u = H^{-1/2} \tilde M

    Args:
        form: ``"diagonal"`` keeps the diagonal of ``H`` and without momentum
            equals ``optax.scale_by_rss``. ``"matrix"`` (eq. 106-111) keeps
            ``[m, m]`` for the rows of each matrix, with the inverse root found
            by :func:`~nl_jax.optimizers.roots.inverse_root`; leaves that are
            not matrices stay diagonal.
        momentum: :math:`\alpha`, the decay rate of the momentum.
        initial: initial value of the diagonal of ``H``.
        eps: added to the diagonal of ``H`` before the root is taken.
        dimension_numbers: which leaves are matrices, see :func:`scale_by_m3`.
        state_dtype: dtype of the state, for instance ``"bfloat16"``; ``None``
            is the parameters', at least float32.

    Raises:
        ValueError: for an unknown ``form``, or at ``init`` for a leaf of
            integers, which the message names.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_adagrad_memory("matrix", initial=0.0)
        >>> g = jnp.array([[3.0, 0.0], [0.0, 0.5]])
        >>> tx.update(g, tx.init(g))[0].round(3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_choice("form", form, ("diagonal", "matrix"))

    def dims_of(tree):
        if form == "diagonal":
            return [None] * len(jax.tree.leaves(tree))
        return resolve_dimensions(dimension_numbers, tree)

    def init(params):
        check_real(params)
        zeros = state_zeros(params, state_dtype)
        leaves, treedef = jax.tree.flatten(zeros)

        def initial_keys(leaf, dims):
            if dims is None:
                return jnp.full(leaf.shape, initial, leaf.dtype)
            view = jax.eval_shape(lambda x: as_matrices(x, dims)[0], leaf)
            b, m, _ = view.shape
            diagonal = (initial * jnp.eye(m)).astype(leaf.dtype)
            return jnp.broadcast_to(diagonal, (b, m, m))

        return ScaleByAdaGradMemoryState(
            zeros,
            treedef.unflatten(map(initial_keys, leaves, dims_of(params))),
        )

    def update(updates, state, params=None, **extra):
        del params, extra
        moment = jax.tree.map(
            lambda m, g: (momentum * m + g).astype(m.dtype),
            state.momentum,
            updates,
        )
        leaves, treedef = jax.tree.flatten(updates)
        moments = treedef.flatten_up_to(moment)
        keys = treedef.flatten_up_to(state.keys_to_keys)
        out = []
        for i, (g, dims) in enumerate(
            zip(leaves, dims_of(updates), strict=True)
        ):
            own = g.astype(keys[i].dtype)
            if dims is None:
                keys[i] = keys[i] + jnp.square(own)
                root = jax.lax.rsqrt(keys[i] + eps)
                u = jnp.where(keys[i] > 0, root, 0) * moments[i]
            else:
                x, back = as_matrices(own, dims)
                keys[i] = keys[i] + x @ x.mT
                m, _ = as_matrices(moments[i], dims)
                # Overflow gives a zero update, as it does on the diagonal.
                finite = jnp.isfinite(keys[i]).all((-2, -1), keepdims=True)
                identity = jnp.eye(keys[i].shape[-1], dtype=keys[i].dtype)
                h = jnp.where(finite, keys[i], identity)
                root = jnp.where(finite, inverse_root(h, eps), 0)
                u = back(root @ m)
            out.append(u.astype(g.dtype))
        return treedef.unflatten(out), ScaleByAdaGradMemoryState(
            moment, treedef.unflatten(keys)
        )

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def adagrad_memory(
    learning_rate: optax.ScalarOrSchedule,
    *,
    form: Literal["diagonal", "matrix"] = "diagonal",
    momentum: float | jax.Array = 0.0,
    initial: float | jax.Array = 0.1,
    eps: float | jax.Array = 1e-7,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_adagrad_memory` and a learning rate."""
    return optax.chain(
        scale_by_adagrad_memory(
            form,
            momentum=momentum,
            initial=initial,
            eps=eps,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )
