"""Interface of the orthogonalisation: validation and dispatch."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import choose_kernels, name_on, run_kernels
from pallas_kernels.newton_schulz import tpu, triton
from pallas_kernels.newton_schulz.batched import newton_schulz_batched
from pallas_kernels.newton_schulz.reference import newton_schulz_reference

PLAIN = ("reference", "batched")
KERNELS = {"pallas_tpu": ("tpu", tpu), "pallas_triton": ("cuda", triton)}
"""Modules with ``why_not`` and ``forward``; see
``pallas_kernels.dispatch.Kernels``."""
IMPLEMENTATIONS = (*PLAIN, *KERNELS)
_LEAST_SIDE = 64
"""Least side of a matrix that is worth a program of its own."""
COEFFICIENTS = {
    "quintic": (3.4445, -4.7750, 2.0315),
    "cubic": (1.5, -0.5, 0.0),
}
"""``quintic``: quickly moves singular values close to 1, around which they then
oscillate (Muon's). ``cubic``: slowly converges to 1; gradient descent on
``|| O^T O - I ||^2 / 2`` with step 1/4."""


def newton_schulz(
    x: Float[Array, "... m n"],
    *,
    steps: int = 5,
    coefficients: str | Sequence[float] | Sequence[Sequence[float]] = "quintic",
    eps: float = 1e-8,
    implementation: str | None = None,
    interpret: Any = False,
) -> Float[Array, "... m n"]:
    r"""Moves all singular values of each matrix towards 1.

    With :math:`X_0 = X / (\|X\|_F + \epsilon)`,

    .. math::
        X_{i+1} = a X_i + b (X_i X_i^\top) X_i + c (X_i X_i^\top)^2 X_i

    which is an inner optimisation, eq. 43-44 of arXiv 2512.24695. It is
    differentiable, and maps a matrix of zeros to zeros.

    Args:
        x: matrices, ``[..., m, n]``; their dtype is that of all products.
        steps: number of iterations, unless ``coefficients`` has a row for
            each.
        coefficients: a name in ``COEFFICIENTS``, ``(a, b, c)``, or one such row
            per step.
        eps: added to the norm.
        implementation: ``"reference"``, ``"batched"`` (plain ``jax.numpy``),
            ``"pallas_tpu"`` or ``"pallas_triton"`` (kernels, replaced by the
            batched form where a derivative is taken), or ``None`` for the best
            one on the platform that the program is lowered for, see
            :func:`implementation_for`.
        interpret: whether to run kernels without their hardware, slowly, for
            tests, as in ``pl.pallas_call``.

    Raises:
        ValueError: if an argument is not as described, or the named
            implementation cannot run.

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
    schedule = _schedule(coefficients, steps)
    choice = _choose(x, implementation, bool(interpret))
    if choice == "reference":
        return newton_schulz_reference(x, schedule, eps)
    if choice == "batched":
        return newton_schulz_batched(x, schedule, eps)
    return _with_kernel(x, schedule, eps, choice, interpret)


def implementation_for(platform: str, x) -> str:
    """Returns the implementation that ``newton_schulz`` chooses.

    Args:
        platform: platform of the compiled program: ``"tpu"``, ``"cpu"`` or
            ``"cuda"``.
        x: an array, or its shape and dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((8, 128, 512), jnp.float32)
        >>> [implementation_for(name, x) for name in ("tpu", "cuda", "cpu")]
        ['pallas_tpu', 'pallas_triton', 'batched']
    """
    return name_on(platform, _choose(x, None), PLAIN)


def _choose(x, implementation, interpret=False):
    interpret = interpret and implementation is not None
    return choose_kernels(
        implementation,
        PLAIN,
        KERNELS,
        lambda kernel: kernel.why_not(x, interpret),
        worth=min(x.shape[-2:]) >= _LEAST_SIDE,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _with_kernel(x, schedule, eps, choice, interpret):
    options = {"schedule": schedule, "eps": eps}

    def bind(kernel):
        return functools.partial(kernel.forward, **options, interpret=interpret)

    plain = functools.partial(newton_schulz_batched, **options)
    return run_kernels(choice, KERNELS, bind, plain, x)


@_with_kernel.defjvp
def _derivative(schedule, eps, choice, interpret, primals, tangents):
    # The intermediates that a derivative needs do not fit on chip.
    del choice, interpret
    plain = functools.partial(newton_schulz_batched, schedule=schedule, eps=eps)
    return jax.jvp(plain, primals, tangents)


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
