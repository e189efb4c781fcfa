"""Signature, validation and dispatch of the orthogonalisation."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.newton_schulz.batched import newton_schulz_batched
from pallas_kernels.newton_schulz.reference import newton_schulz_reference

__all__ = ["COEFFICIENTS", "IMPLEMENTATIONS", "newton_schulz"]

IMPLEMENTATIONS = {
    "reference": newton_schulz_reference,
    "batched": newton_schulz_batched,
}
COEFFICIENTS = {
    "quintic": (3.4445, -4.7750, 2.0315),
    "cubic": (1.5, -0.5, 0.0),
}
"""``quintic``: fast to about 1 and then to and fro (Muon's). ``cubic``: slow,
converges to 1; gradient descent on ``|| O^T O - I ||^2 / 2`` with step 1/4."""


def newton_schulz(
    x: Float[Array, "... m n"],
    *,
    steps: int = 5,
    coefficients: str | Sequence[float] | Sequence[Sequence[float]] = "quintic",
    eps: float = 1e-8,
    implementation: str | None = None,
) -> Float[Array, "... m n"]:
    r"""Moves all singular values of each matrix towards 1.

    With :math:`X_0 = X / (\|X\|_F + \epsilon)`,

    .. math::
        X_{i+1} = a X_i + b (X_i X_i^\top) X_i + c (X_i X_i^\top)^2 X_i

    which for an inner optimisation in place of a decomposition is eq. 43-44 of
    arXiv 2512.24695. Differentiable; a matrix of zeros stays one.

    Args:
        x: matrices, ``[..., m, n]``; the dtype is that of all products.
        steps: iterations; ignored where ``coefficients`` has one row for each.
        coefficients: a name in ``COEFFICIENTS``, ``(a, b, c)`` or such a row
            per step.
        eps: added to the norm.
        implementation: ``"reference"``, ``"batched"``, or ``None`` for the
            best that the platform offers.

    Raises:
        ValueError: if an argument is not as described.

    Source: Bernstein and Newhouse, arXiv 2409.20325; Jordan, Muon.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.diag(jnp.array([3.0, 0.1]))
        >>> newton_schulz(x, steps=20, coefficients="cubic").round(3).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, needs 2 axes")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}, must be of real numbers")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer >= 1")
    name = "batched" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation={implementation!r} does not exist here; allowed: "
            f"None, {', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    return IMPLEMENTATIONS[name](x, _schedule(coefficients, steps), eps)


def _schedule(coefficients, steps):
    if isinstance(coefficients, str):
        if coefficients not in COEFFICIENTS:
            raise ValueError(
                f"coefficients={coefficients!r} must be one of "
                f"{', '.join(map(repr, COEFFICIENTS))}, or numbers"
            )
        coefficients = COEFFICIENTS[coefficients]
    rows = tuple(coefficients)
    if all(isinstance(row, (int, float)) for row in rows):
        rows = (rows,) * steps
    rows = tuple(tuple(map(float, row)) for row in rows)
    if not rows or any(len(row) != 3 for row in rows):
        raise ValueError(
            f"coefficients={coefficients!r} must be (a, b, c) or one such row "
            "per step"
        )
    return rows
