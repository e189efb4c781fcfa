r"""The general form of an optimizer that is a memory of gradients.

Section 4 of arXiv 2512.24695: each leaf's gradient :math:`G`, seen as a matrix,
is a batch of keys (its rows) that an associative memory compresses, and the
update is read from that memory,

.. math::
    m &\leftarrow \alpha\, m + \text{inner}(\nabla_m L(m; \phi(G), P)) \\
    W &\leftarrow W - \text{lr} \cdot \sigma(m \text{ or } m(\phi(G)))

Seven independent choices: the architecture of :math:`m`, its objective
:math:`L`, the inner rule (any optax transformation) and retention
:math:`\alpha`, the values :math:`P`, the feature map :math:`\phi`, the output's
non-linearity :math:`\sigma`, and the period of its updates. Cost: that of the
memory; a linear one is one array like the parameters. Weak where gradients are
scaled very differently from step to step and the objective is not linear in
the memory (delta rule, L2): keys are then to be normalised.
"""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_count, check_real, choose, leaf_name
from nl_jax.memory import ARCHITECTURES, OBJECTIVES, Architecture, Objective
from nl_jax.nested.describe import LevelRow
from nl_jax.nested.level import Level, LevelState, add_up
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import (
    MatrixFunction,
    as_matrices,
    resolve_dimensions,
)
from nl_jax.optimizers.sharding import keep_shardings
from pallas_kernels.newton_schulz import safe_norm


class ScaleByMemoryState(NamedTuple):
    """State of :func:`scale_by_memory`."""

    count: jax.Array  # type: ignore[assignment]
    """Calls so far, int32 scalar."""
    memory: Any
    """For each leaf: an array like it if the memory is linear, else a tuple
    of weights ``[b, d_in, d_out]``."""
    inner: optax.OptState
    """State of the inner rule."""
    gathered: Any
    """Sum of the gradients since the last write; ``None`` at period 1."""
    output: Any
    """What the memory said last; ``None`` at period 1."""
    facts: MemoryFacts
    """The memory's choices."""

    def levels(self) -> list[LevelRow]:
        """Returns the memory's row in the level table."""
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
    period: int = 1,
    dimension_numbers: Any = None,
    expansion: int = 4,
    max_width: int = 8192,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Builds an optimizer from the choices of its memory.

    A linear memory :math:`m` has the gradient's shape and is itself the
    update; its keys are rows of :math:`G` and its outputs :math:`m G^\top`.
    Any other architecture maps rows of :math:`G` to rows of the update, and its
    loss, a sum over rows, is divided by :math:`\|\phi(G)^\top \phi(G)\|`.
    Leaves are seen as matrices by ``dimension_numbers``; without, the last two
    axes are the matrix, earlier ones a batch, and a vector is a column: samples
    of width one.

    Args:
        architecture: ``"linear"``, ``"residual"``, ``"mlp"`` or one of yours.
        objective: ``"dot_product"``, ``"l2"`` or one of yours.
        inner: optax transformation that turns the memory's gradient into its
            update; ``None`` is gradient descent with step 1.
        retention: what the memory keeps at each write.
        value: ``P``. Linear memories: ``[m, m]``, or ``[1, 1]`` for a
            multiple of the identity; others: what each row is to give; or a
            function of ``G`` to it. ``None`` is the identity (eq. 33), and for
            others the row itself.
        feature_map: ``phi``, of the matrices ``[b, m, n]``.
        output: ``sigma``, of the update's matrices.
        period: calls between two writes, whose gradients are summed.
        dimension_numbers: tree of ``optax.contrib.MuonDimensionNumbers``, or a
            prefix of one, or a function from the parameters to it.
        expansion: hidden width of an MLP memory in units of ``n``.
        max_width: widest ``n`` for which an MLP memory is made.
        seed: of the initial weights of memories that are not linear.

    Raises:
        ValueError: for an unknown name or a period below 1; and at ``init``,
            naming the leaf, for integers and for a memory that is too wide.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = scale_by_memory(retention=0.5)  # momentum
        >>> state = tx.init(jnp.zeros(2))
        >>> _, state = tx.update(jnp.array([1.0, 2.0]), state)
        >>> updates, state = tx.update(jnp.array([1.0, 0.0]), state)
        >>> updates.tolist()
        [1.5, 1.0]
    """
    check_count("period", period)
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

    def begin(path, leaf, dims):
        name = leaf_name(path)
        if linear:
            return jnp.zeros_like(leaf)
        b, _, width = jax.eval_shape(
            lambda x: as_matrices(x, dims)[0], leaf
        ).shape
        if width > max_width:
            raise ValueError(
                f"{name} has {width} columns, more than max_width={max_width}: "
                "give it other dimension_numbers or another optimizer"
            )
        # Of the path, so that other leaves coming or going change nothing.
        rng = jax.random.fold_in(
            jax.random.key(seed), zlib.crc32(name.encode())
        )
        weights = function.init(
            rng, width, width, expansion=expansion, lead=(b,), dtype=leaf.dtype
        )
        # The last layer begins at zero: a new memory passes gradients on.
        return (*weights[:-1], jnp.zeros_like(weights[-1]))

    def start(params):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        # Without leaves it may be a placeholder, which no numbers fit.
        dims = resolve_dimensions(dimension_numbers, params) if leaves else ()
        memory = treedef.unflatten(
            begin(path, leaf, d)
            for (path, leaf), d in zip(leaves, dims, strict=True)
        )
        output = optax.tree.zeros_like(params) if waits and linear else None
        gathered = optax.tree.zeros_like(params) if waits else None
        count = jnp.zeros((), jnp.int32)
        return LevelState((memory, output), gathered, inner.init(memory), count)

    def init(params):
        check_real(params)
        (memory, output), gathered, inner_state, count = start(params)
        return ScaleByMemoryState(
            count, memory, inner_state, gathered, output, facts
        )

    def surprise(memory, leaf, dims):
        """Gradient of the memory's loss on what a leaf's gradient says."""
        g, back = as_matrices(leaf, dims)
        x = g if feature_map is None else feature_map(g)
        if not linear:
            v = x if value is None else _value(value, g)
            scale = 1 / _curvature(x)
            return jax.grad(
                lambda w: (
                    scale * goal.loss(function.apply(w, x), v).sum(-1)
                ).sum()
            )(memory)
        m, _ = as_matrices(memory, dims)
        return back(_linear_surprise(goal, m, x, value, g))

    def write(updates, memory, inner_state, extra):
        dims = resolve_dimensions(dimension_numbers, updates)
        leaves, treedef = jax.tree.flatten(updates)
        weights = treedef.flatten_up_to(memory)
        grads = treedef.unflatten(
            surprise(w, g.astype(_dtype(w)), d)
            for w, g, d in zip(weights, leaves, dims, strict=True)
        )
        step, inner_state = inner.update(grads, inner_state, memory, **extra)
        memory = jax.tree.map(
            lambda m, s: (retention * m + s).astype(m.dtype), memory, step
        )
        return memory, inner_state

    def read(memory, updates):
        dims = resolve_dimensions(dimension_numbers, updates)
        leaves, treedef = jax.tree.flatten(updates)
        out = []
        for w, leaf, d in zip(
            treedef.flatten_up_to(memory), leaves, dims, strict=True
        ):
            g, back = as_matrices(w if linear else leaf, d)
            if not linear:
                x = g if feature_map is None else feature_map(g)
                g = function.apply(w, x)
            g = g if output is None else output(g)
            out.append(back(g).astype(leaf.dtype))
        return treedef.unflatten(out)

    def gather(state, updates, extra):
        del extra
        return add_up(state, updates) if waits else updates

    def act(state, updates, extra):
        del updates
        memory, inner_state = write(
            state.gathered, state.params[0], state.inner, extra
        )
        said = read(memory, state.gathered) if linear else None
        return (memory, said), inner_state

    level = Level(start, act, period, gather)

    def update(updates, state, params=None, **extra):
        del params
        before = LevelState(
            (state.memory, state.output),
            state.gathered,
            state.inner,
            state.count % period,
        )
        (memory, said), gathered, inner_state, _ = level.update(
            before, updates, extra
        )
        out = said if linear else read(memory, updates)
        return optax.tree.cast_like(out, updates), ScaleByMemoryState(
            count=optax.safe_increment(state.count),
            memory=memory,
            inner=inner_state,
            gathered=gathered if waits else None,
            output=said if waits else None,
            facts=state.facts,
        )

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def _curvature(x):
    """``|x^T x|``, ``[b]``: bounds how far a step moves what is said of rows.

    Divided by it the inner rate means the same for few rows and many.
    """
    gram = x.mT @ x if x.shape[-1] <= x.shape[-2] else x @ x.mT
    size = safe_norm(gram, (-2, -1))[..., 0, 0]
    return jnp.where(size > 0, size, 1)


def _linear_surprise(objective, m, x, value, g):
    """``[b, m, n]``; keys are the rows of ``x``, outputs ``m x^T``."""
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
    # Through the smaller of x x^T and x^T x.
    small = x.shape[-1] <= x.shape[-2]
    held = m @ (x.mT @ x) if small else (m @ x.mT) @ x
    return curvature * held - write


def _value(value, g):
    return value(g) if callable(value) else jnp.asarray(value, g.dtype)


def _times(value, x):
    """``P x``, where a number stands for a multiple of the identity."""
    scalar = value.ndim == 0 or value.shape[-2:] == (1, 1)
    return value * x if scalar else value @ x


def _dtype(weights):
    return jax.tree.leaves(weights)[0].dtype
