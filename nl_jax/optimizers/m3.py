r"""M3: two momenta at two frequencies, orthogonalised (Alg. 1, eq. 75).

arXiv 2512.24695. A fast momentum takes every gradient. A slow one takes the sum
of gradients over ``period`` steps, once per period, and its orthogonalisation
is kept for the next period, so that it costs one ``period``-th of the fast
one's.

.. math::
    M_1 &\leftarrow \beta_1 M_1 + (1-\beta_1)\, g, \qquad
    V \leftarrow \beta_2 V + (1-\beta_2)\, g^2 \\
    u &= (\text{NS}(M_1) + a\, \text{NS}(M_2)) / D(V) \\
    M_2 &\leftarrow \beta_3 M_2 + (1-\beta_3)\, \bar g
    \quad\text{after every } f \text{ steps}

with Adam's bias corrections. The defaults differ from the printed algorithm in
two points, for which it is an option:

- ``accumulation="sum"`` accumulates as printed, :math:`M_1 \leftarrow M_1 +
  \beta_1 g` and so on, without decay; the default are exponential averages.
- ``second_moment="absolute"`` is the printed :math:`D = \sqrt V + \epsilon`.
  An orthogonalised momentum has lost its scale already, so that steps grow as
  gradients vanish and differ by orders of magnitude between layers. The default
  is ``"relative"``, :math:`D = d + (1 - d) \sqrt{V / \bar V}` with the mean
  over the matrix, which only compares elements of a matrix. With :math:`d = 1`
  and :math:`a = 0` it is Muon.

``experiments/digits.py`` compares them. Leaves that are not matrices skip NS
and are divided as printed, which is Adam with a second momentum. Cost: five
arrays like the parameters, one Newton-Schulz iteration per step, and another
one per period; on a mesh each device orthogonalises its share of the matrices.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_choice, check_real, default_count
from nl_jax.nested.level import Level, LevelState, fresh_level, state_zeros
from nl_jax.nested.level_table import LevelRow
from nl_jax.optimizers.facts import MemoryFacts, level_row
from nl_jax.optimizers.matrices import (
    as_matrices,
    dimensions_tree,
    orthogonalize_tree,
)
from nl_jax.optimizers.rate import scale_by_rate
from nl_jax.optimizers.sharding import keep_shardings


class ScaleByM3State(NamedTuple):
    """State of :func:`scale_by_m3`; trees like the parameters."""

    count: jax.Array  # type: ignore[assignment]
    """Number of steps taken, int32 scalar."""
    fast: optax.Updates
    """``M1``."""
    second: optax.Updates
    """``V``."""
    slow: LevelState
    """``M2``, with ``NS(M2)`` and its number of steps as its rule's state."""
    facts: MemoryFacts
    """Description of the slow momentum."""

    def levels(self) -> list[LevelRow]:
        """Returns the level table's rows of both momenta."""
        fast = dataclasses.replace(self.facts, period=1)
        return [
            level_row("M3, fast", fast, (self.fast, self.second)),
            level_row(
                "M3, slow",
                self.facts,
                (self.slow.params, self.slow.gathered, self.slow.inner[0]),
            ),
        ]


def scale_by_m3(
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.999,
    b3: float | jax.Array = 0.9,
    slow_weight: float | jax.Array = 0.5,
    period: int | None = None,
    *,
    accumulation: Literal["ema", "sum"] = "ema",
    second_moment: Literal["relative", "absolute"] = "relative",
    damping: float | jax.Array = 0.1,
    eps: float | jax.Array = 1e-8,
    dimension_numbers: Any = None,
    together: bool = True,
    steps: int | None = None,
    coefficients: Any = "quintic",
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales gradients as M3 does.

    Args:
        b1: decay rate of the fast momentum; weight of a gradient in a sum.
        b2: decay rate of the second moment.
        b3: decay rate of the slow momentum, per ``period``.
        slow_weight: ``a``, weight of the slow momentum.
        period: ``f``, steps between two updates of the slow momentum; ``None``
            is 8.
        accumulation: ``"ema"``, or ``"sum"`` as printed in Alg. 1.
        second_moment: divisor of matrices, ``"relative"`` or ``"absolute"``.
        damping: ``d`` of the relative divisor, in [0, 1].
        eps: added to the divisor.
        dimension_numbers: tree of ``optax.contrib.MuonDimensionNumbers`` with
            ``None`` for leaves that are not matrices, a prefix of one, or a
            function from the parameters to it; ``None`` makes two-dimensional
            leaves matrices.
        together: whether to orthogonalise leaves of equal shapes in one call;
            ``False`` suits leaves with different shardings.
        steps: number of Newton-Schulz iterations; ``None`` is 5.
        coefficients: coefficients of Newton-Schulz.
        state_dtype: dtype of the state, for instance ``"bfloat16"``; ``None``
            is the parameters', at least float32.

    Raises:
        ValueError: for a period below 1 or an unknown ``accumulation`` or
            ``second_moment``, or at ``init`` for a leaf of integers, which the
            message names.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(
        ...     optax.clip_by_global_norm(1.0),
        ...     scale_by_m3(),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
        >>> params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> updates["w"].shape
        (2, 3)
    """
    period = default_count("period", period, 8)
    steps = default_count("steps", steps, 5)
    check_choice("accumulation", accumulation, ("ema", "sum"))
    check_choice("second_moment", second_moment, ("relative", "absolute"))
    ema = accumulation == "ema"

    def add(moment, g, decay):
        kept, taken = (decay, 1 - decay) if ema else (1.0, decay)
        return jax.tree.map(
            lambda m, g: (kept * m + taken * g).astype(m.dtype), moment, g
        )

    def corrected(moment, decay, count):
        if not ema:
            return moment
        return optax.tree.bias_correction(moment, decay, count)

    def orthogonal(tree):
        return orthogonalize_tree(
            tree,
            dimension_numbers,
            together=together,
            steps=steps,
            coefficients=coefficients,
        )

    def divisor(v, dims):
        if dims is None or second_moment == "absolute":
            return jnp.sqrt(v) + eps
        x, back = as_matrices(v, dims)
        size = jnp.sqrt(jnp.mean(x, (-2, -1), keepdims=True))
        # Elements count as equal if their squares overflow or are all zero.
        valid = jnp.isfinite(size) & (size > 0)
        share = jnp.where(valid, jnp.sqrt(x) / jnp.where(valid, size, 1), 1)
        return back(damping + (1 - damping) * share) + eps

    def move(state, grads):
        del grads
        taken = state.gathered
        if ema:
            taken = jax.tree.map(lambda g: g / state.since, taken)
        slow = add(state.params, taken, b3)
        steps_made = optax.safe_increment(state.inner[1])
        said = orthogonal(corrected(slow, b3, steps_made))
        return slow, (optax.tree.cast_like(said, slow), steps_made)

    def start(params):
        slow, said = (state_zeros(params, state_dtype) for _ in range(2))
        inner = (said, jnp.zeros((), jnp.int32))
        return fresh_level(slow, inner, state_dtype=state_dtype)

    level = Level(start, move, period)
    facts = MemoryFacts(
        "linear", "dot product", "momentum, orthogonalised", period
    )

    def init(params):
        check_real(params)
        fast, second = (state_zeros(params, state_dtype) for _ in range(2))
        count = jnp.zeros((), jnp.int32)
        return ScaleByM3State(count, fast, second, level.init(params), facts)

    def update(updates, state, params=None, **extra):
        del params, extra
        count = optax.safe_increment(state.count)
        grads = optax.tree.cast_like(updates, state.fast)
        fast = add(state.fast, grads, b1)
        second = add(state.second, jax.tree.map(jnp.square, grads), b2)
        out = jax.tree.map(
            lambda g, f, s, v, d: (
                (f + slow_weight * s) / divisor(v, d)
            ).astype(g.dtype),
            updates,
            orthogonal(corrected(fast, b1, count)),
            state.slow.inner[0],  # Of the period before, as in Algorithm 1.
            corrected(second, b2, count),
            dimensions_tree(dimension_numbers, updates),
        )
        slow = level.update(state.slow, grads)
        return out, ScaleByM3State(count, fast, second, slow, facts)

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def m3(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float | jax.Array = 0.0,
    mask: Any = None,
    b1: float | jax.Array = 0.95,
    b2: float | jax.Array = 0.999,
    b3: float | jax.Array = 0.9,
    slow_weight: float | jax.Array = 0.5,
    period: int | None = None,
    accumulation: Literal["ema", "sum"] = "ema",
    second_moment: Literal["relative", "absolute"] = "relative",
    damping: float | jax.Array = 0.1,
    eps: float | jax.Array = 1e-8,
    dimension_numbers: Any = None,
    together: bool = True,
    steps: int | None = None,
    coefficients: Any = "quintic",
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_m3` with decoupled weight decay and a learning rate.

    ``weight_decay`` and ``mask`` are those of ``optax.add_decayed_weights``.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = m3(1e-2, period=2)
        >>> params = jnp.ones((2, 2))
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> bool((updates < 0).all())
        True
    """
    return optax.chain(
        scale_by_m3(
            b1,
            b2,
            b3,
            slow_weight,
            period,
            accumulation=accumulation,
            second_moment=second_moment,
            damping=damping,
            eps=eps,
            dimension_numbers=dimension_numbers,
            together=together,
            steps=steps,
            coefficients=coefficients,
            state_dtype=state_dtype,
        ),
        optax.add_decayed_weights(weight_decay, mask),
        scale_by_rate(learning_rate),
    )
