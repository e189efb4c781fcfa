r"""General optimizer whose state is an associative memory of gradients.

Section 4 of arXiv 2512.24695: the rows of each leaf's gradient :math:`G`,
viewed as a matrix, are the keys of an associative memory, and the update is
read from that memory,

.. math::
    m &\leftarrow \alpha\, m + \text{inner}(\nabla_m L(m; \phi(G), P)) \\
    W &\leftarrow W - \text{lr} \cdot \sigma(m \text{ or } m(\phi(G)))

Seven choices are independent: the architecture of :math:`m`, its objective
:math:`L`, the inner rule (any optax transformation) with retention
:math:`\alpha`, the values :math:`P`, the feature map :math:`\phi`, the
non-linearity :math:`\sigma` of the output, and the period of updates. Cost:
that of the memory; a linear one is one array like the parameters. Weakness: if
the objective is not linear in the memory (delta rule, L2), keys must be
normalised unless the scale of gradients is constant.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_real, choose, default_count, leaf_name
from nl_jax.memory import ARCHITECTURES, OBJECTIVES, Architecture, Objective
from nl_jax.nested.level import (
    Level,
    LevelState,
    add_up,
    keep_dtypes,
    state_zeros,
)
from nl_jax.nested.level_table import LevelRow
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import (
    MatrixFunction,
    as_matrices,
    dimensions_tree,
    widen,
)
from nl_jax.optimizers.sharding import keep_shardings
from pallas_kernels.newton_schulz import norm_unit, safe_norm


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`."""

    count: jax.Array  # type: ignore[assignment]
    """Number of steps taken, int32 scalar."""
    level: LevelState
    """Weights and, with a period, the last output of a linear memory."""
    facts: MemoryFacts
    """Description of the memory, for the level table."""

    @property
    def memory(self) -> tuple[Any, ...]:
        """A tree like the parameters for each matrix of the memory.

        Leaves are ``[b, d_in, d_out]``; those of a linear memory are like the
        parameters.
        """
        return self.level.params[0]

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row of the level table."""
        return [level_row("gradient memory", self.facts, self)]


def scale_by_memory(
    architecture: str | Architecture = "linear",
    objective: str | Objective = "dot_product",
    inner: optax.GradientTransformation | None = None,
    *,
    retention: float | jax.Array = 0.9,
    value: MatrixFunction | jax.Array | None = None,
    feature_map: MatrixFunction | None = None,
    output: MatrixFunction | None = None,
    normalize: bool = True,
    period: int | None = None,
    dimension_numbers: Any = None,
    expansion: int | None = None,
    max_width: int | None = None,
    seed: int | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces gradients by the output of an associative memory of them.

    A linear memory :math:`m` has the gradient's shape and is itself the update;
    its objective compares :math:`m G^\top` with the values. Other architectures
    map rows of :math:`G` to rows of the update; their loss is a sum over rows.
    Everything is computed in at least float32.

    Args:
        architecture: ``"linear"``, ``"residual"``, ``"mlp"`` or an
            ``Architecture``.
        objective: ``"dot_product"``, ``"l2"`` or an ``Objective``.
        inner: optax transformation from the memory's gradient to its update;
            ``None`` is gradient descent with step size 1.
        retention: :math:`\alpha`, factor of the memory at each write.
        value: :math:`P`, or a function from :math:`G` to it. For a linear
            memory it is ``[m, m]``, or ``[1, 1]`` for a multiple of the
            identity; ``None`` is the identity (eq. 33). For others it holds the
            target of each row; ``None`` is the row itself.
        feature_map: :math:`\phi`, from matrices ``[b, m, n]`` to the same
            shape.
        output: :math:`\sigma`, from matrices of the update to the same shape.
        normalize: whether the loss of a memory that is not linear is divided by
            :math:`\|\phi(G)^\top \phi(G)\|`, a bound on its curvature, so that
            the inner rate depends on neither the number nor the size of rows.
        period: number of steps between writes, over which gradients are summed;
            ``None`` is 1. States of other periods may be gone on from.
        dimension_numbers: tree of ``optax.contrib.MuonDimensionNumbers``, a
            prefix of one, or a function from the parameters to it. By default
            the last two axes form the matrix, and earlier ones are batch axes;
            a vector is a column.
        expansion: hidden width of an MLP memory as a multiple of ``n``;
            ``None`` is 1.
        max_width: largest ``n`` that a memory that is not linear may have;
            ``None`` is 8192.
        seed: seed of the initial weights of memories that are not linear;
            ``None`` is 0.
        state_dtype: dtype of the state, for instance ``"bfloat16"``; ``None``
            is the parameters', at least float32.

    Raises:
        ValueError: if a name is unknown or ``period`` is below 1; at ``init``,
            if a leaf is of integers or too wide.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = scale_by_memory(retention=0.5)  # momentum
        >>> state = tx.init(jnp.zeros(2))
        >>> _, state = tx.update(jnp.array([1.0, 2.0]), state)
        >>> updates, state = tx.update(jnp.array([1.0, 0.0]), state)
        >>> updates.tolist()
        [1.5, 1.0]
    """
    period = default_count("period", period, 1)
    expansion = default_count("expansion", expansion, 1)
    max_width = default_count("max_width", max_width, 8192)
    seed = default_count("seed", seed, 0, least=0)
    function = choose("architecture", architecture, ARCHITECTURES)
    goal = choose("objective", objective, OBJECTIVES)
    rule = "gradient descent, decay" if inner is None else "optax rule, decay"
    inner = optax.sgd(1.0) if inner is None else inner
    inner = optax.with_extra_args_support(inner)
    linear = function is ARCHITECTURES["linear"]
    waits = period > 1
    facts = MemoryFacts(
        function.name, goal.name.replace("_", " "), rule, period
    )

    def initial(path, leaf, dims):
        if linear:
            return (jnp.zeros_like(leaf),)
        name = leaf_name(path)
        b, _, width = jax.eval_shape(
            lambda x: as_matrices(x, dims)[0], leaf
        ).shape
        if width > max_width:
            raise ValueError(
                f"{name} has {width} columns, more than max_width={max_width}: "
                "give it other dimension_numbers or another optimizer"
            )
        # Keys depend on the path only, and so not on other leaves.
        rng = jax.random.fold_in(
            jax.random.key(seed), zlib.crc32(name.encode())
        )
        weights = function.init(
            rng, width, width, expansion=expansion, lead=(b,), dtype=leaf.dtype
        )
        # The last layer starts at zero: a new memory returns its input.
        return (*weights[:-1], jnp.zeros_like(weights[-1]))

    def apart(tree, like):
        """Makes a tree of tuples, which flax.nnx cannot hold, one of trees."""
        treedef = jax.tree.structure(like)
        rows = treedef.flatten_up_to(tree)
        return tuple(
            treedef.unflatten(row[i] for row in rows)
            for i in range(len(function.gains))
        )

    def start(params):
        dims = dimensions_tree(dimension_numbers, params)
        memory = apart(
            jax.tree_util.tree_map_with_path(initial, params, dims), params
        )
        output, gathered = (
            optax.tree.zeros_like(params) if needed else None
            for needed in (waits and linear, waits)
        )
        count = jnp.zeros((), jnp.int32)
        return LevelState((memory, output), gathered, inner.init(memory), count)

    def each(function, memory, updates):
        """Calls ``function(weights, matrices, back, dims)`` for each leaf."""
        return jax.tree.map(
            lambda g, d, *weights: function(weights, *as_matrices(g, d), d),
            widen(updates),
            dimensions_tree(dimension_numbers, updates),
            *widen(memory),
        )

    def surprise(weights, g, back, dims):
        """Returns the gradient of the memory's loss on a leaf's gradient."""
        x = g if feature_map is None else feature_map(g)
        if linear:
            m, _ = as_matrices(weights[0], dims)
            return (back(_linear_surprise(goal, m, x, value, g)),)
        v = x if value is None else _value(value, g)
        y, pull_back = jax.vjp(lambda w: function.apply(w, x), weights)
        slope = goal.gradient(y, v)
        slope = _per_curvature(slope, x) if normalize else slope
        return pull_back(slope)[0]

    def answer(weights, g, back, dims):
        if linear:
            y, _ = as_matrices(weights[0], dims)
        else:
            y = function.apply(
                weights, g if feature_map is None else feature_map(g)
            )
        return back(y if output is None else output(y))

    def step(state, updates, extra):
        memory, said = state.params
        updates = updates if state.gathered is None else state.gathered
        grads = apart(each(surprise, memory, updates), updates)
        change, after = inner.update(grads, state.inner, widen(memory), **extra)
        memory = keep_dtypes(
            jax.tree.map(lambda m, s: retention * m + s, widen(memory), change),
            memory,
        )
        if said is not None:
            said = keep_dtypes(each(answer, memory, updates), said)
        return (memory, said), keep_dtypes(after, state.inner)

    def gather(state, *seen):
        return None if state.gathered is None else add_up(state, *seen)

    level = Level(start, step, period, gather)

    def init(params):
        check_real(params)
        state = level.init(state_zeros(params, state_dtype))
        return ScaleByMemoryState(jnp.zeros((), jnp.int32), state, facts)

    def update(updates, state, params=None, **extra):
        del params
        before = state.level
        if waits and before.gathered is None:  # It had the period 1.
            memory, said = before.params
            gathered = state_zeros(updates, state_dtype)
            if linear:
                said = keep_dtypes(each(answer, memory, updates), gathered)
            before = before._replace(params=(memory, said), gathered=gathered)
        after = level.update(before, updates, extra)
        memory, said = after.params
        out = each(answer, memory, updates) if said is None else said
        return optax.tree.cast_like(out, updates), ScaleByMemoryState(
            optax.safe_increment(state.count), after, facts
        )

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def _per_curvature(slope, x):
    """Returns ``slope / |x^T x|``, with ``x`` scaled before it is squared."""
    largest = jnp.max(jnp.abs(x), (-2, -1), keepdims=True, initial=0)
    unit = jnp.where(largest > 0, 1 / norm_unit(largest), 1)
    x = x * unit
    gram = x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT
    size = safe_norm(gram, (-2, -1))
    return slope * unit * (unit / jnp.where(size > 0, size, 1))


def _linear_surprise(objective, m, x, value, g):
    """Returns the gradient ``[b, m, n]`` for keys ``x``, outputs ``m x^T``."""
    curvature = objective.curvature
    if curvature is None:
        y = x @ m.mT
        v = jnp.eye(y.shape[-2], y.shape[-1], dtype=y.dtype)
        if value is not None:
            v = _times(_value(value, g), v).mT
        v = jnp.broadcast_to(v, y.shape)
        return objective.gradient(y, v).mT @ x
    write = x if value is None else _times(_value(value, g), x)
    if isinstance(curvature, (int, float)) and curvature == 0:
        return -write
    # Use the smaller of x x^T and x^T x.
    small = x.shape[-1] <= x.shape[-2]
    recalled = m @ (x.mT @ x) if small else (m @ x.mT) @ x
    return curvature * recalled - write


def _value(value, g):
    return value(g) if callable(value) else jnp.asarray(value, g.dtype)


def _times(value, x):
    """Returns ``P x``; a number is a multiple of the identity."""
    scalar = value.ndim == 0 or value.shape[-2:] == (1, 1)
    return value * x if scalar else value @ x
