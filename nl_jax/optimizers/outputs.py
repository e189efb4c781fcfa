r"""Momentum with a non-linear output, and with an inner optimisation problem.

Eq. 42-44 and 52 of arXiv 2512.24695. Orthogonalising the momentum is gradient
descent on a potential of its singular values :math:`s`: the iteration
:math:`s \leftarrow p(s)` is a step of size 1 down :math:`\int (s - p(s))\,ds`.
"""

import functools
from typing import Any

import jax
import optax

from nl_jax.checks import choose, default_count
from nl_jax.optimizers.matrices import MatrixFunction
from nl_jax.optimizers.memory import scale_by_memory
from nl_jax.optimizers.momentum import MATRIX_FUNCTIONS
from nl_jax.optimizers.rate import scale_by_rate
from nl_jax.optimizers.sharding import by_share
from pallas_kernels.newton_schulz import COEFFICIENTS, divide_by_norm


def scale_by_nonlinear_output(
    output: str | MatrixFunction = "newton_schulz",
    retention: float | jax.Array = 0.95,
    *,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum with a non-linear output, :math:`\sigma(m)` (eq. 52).

    With Newton-Schulz, the default, it is Muon without Nesterov momentum; a
    vector is then divided by its norm.

    Args:
        output: :math:`\sigma`, a name in ``MATRIX_FUNCTIONS``, or a function
            from matrices ``[b, m, n]`` to the same shape.
        retention: :math:`\alpha`, the decay rate of the momentum.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_nonlinear_output("tanh")
        >>> g = jnp.array([100.0, 0.0])
        >>> tx.update(g, tx.init(g))[0].tolist()
        [1.0, 0.0]
    """
    return scale_by_memory(
        output=choose("output", output, MATRIX_FUNCTIONS),
        retention=retention,
        period=period,
        dimension_numbers=dimension_numbers,
        state_dtype=state_dtype,
    )


def nonlinear_output(
    learning_rate: optax.ScalarOrSchedule,
    *,
    output: str | MatrixFunction = "newton_schulz",
    retention: float | jax.Array = 0.95,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_nonlinear_output` and a learning rate."""
    return optax.chain(
        scale_by_nonlinear_output(
            output,
            retention,
            period=period,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )


def scale_by_newton_schulz_memory(
    zeta: float | jax.Array = 0.25,
    steps: int | None = None,
    *,
    potential: str | tuple[float, float, float] = "cubic",
    attachment: float | jax.Array = 0.0,
    retention: float | jax.Array = 0.95,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum whose output solves an inner problem (eq. 43-44).

    .. math:: O \leftarrow O - \zeta\,\big(c\,(O - m) + \nabla\Phi(O)\big),
       \quad O_0 = m

    where the momentum :math:`m` is scaled to norm 1.

    Args:
        zeta: :math:`\zeta`, size of the inner steps.
        steps: number of inner steps; ``None`` is 20.
        potential: :math:`\Phi`. ``"cubic"`` is
            :math:`\tfrac12\|O^\top O - I\|^2` with :math:`\nabla\Phi =
            2\,O(O^\top O - I)`: at :math:`\zeta = 1/4` a step is the cubic
            Newton-Schulz step, and :math:`c = 1` gives the paper's objective.
            ``"quintic"``, or a tuple of coefficients :math:`(a, b, c')`, is
            the potential with :math:`\nabla\Phi = O - (a + b\,OO^\top +
            c'\,(OO^\top)^2) O`: at :math:`\zeta = 1` five steps of
            ``"quintic"`` are Muon's.
        attachment: :math:`c`, weight of the distance to the momentum.
        retention: decay rate of the momentum.
        period: see :func:`scale_by_memory`.
        dimension_numbers: see :func:`scale_by_memory`.
        state_dtype: see :func:`scale_by_memory`.

    Raises:
        ValueError: for ``steps`` below 1 or an unknown potential.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_newton_schulz_memory()
        >>> g = jnp.array([[3.0, 0.0], [0.0, 0.3]])
        >>> tx.update(g, tx.init(g))[0].round(3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    steps = default_count("steps", steps, 20)
    a, b, c = choose("potential", potential, COEFFICIENTS)
    # The paper's cubic potential is 4 times the one whose unit step is the
    # Newton-Schulz step.
    scale = 4.0 if potential == "cubic" else 1.0

    def output(m):
        m = divide_by_norm(m, (-2, -1))
        wide = m.shape[-1] >= m.shape[-2]

        def times(gram, o):
            return gram @ o if wide else o @ gram

        def step(_, o):
            gram = o @ o.mT if wide else o.mT @ o
            cubed = times(gram, o)
            moved = a * o + b * cubed
            if c:
                moved = moved + c * times(gram, cubed)
            return o - zeta * (attachment * (o - m) + scale * (o - moved))

        return jax.lax.fori_loop(0, steps, step, m)

    return scale_by_nonlinear_output(
        functools.partial(by_share, output),
        retention,
        period=period,
        dimension_numbers=dimension_numbers,
        state_dtype=state_dtype,
    )


def newton_schulz_memory(
    learning_rate: optax.ScalarOrSchedule,
    *,
    zeta: float | jax.Array = 0.25,
    steps: int | None = None,
    potential: str | tuple[float, float, float] = "cubic",
    attachment: float | jax.Array = 0.0,
    retention: float | jax.Array = 0.95,
    period: int | None = None,
    dimension_numbers: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`scale_by_newton_schulz_memory` and a learning rate."""
    return optax.chain(
        scale_by_newton_schulz_memory(
            zeta,
            steps,
            potential=potential,
            attachment=attachment,
            retention=retention,
            period=period,
            dimension_numbers=dimension_numbers,
            state_dtype=state_dtype,
        ),
        scale_by_rate(learning_rate),
    )
