"""Signature, validation and dispatch of the orthogonalisation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import device
from pallas_kernels.newton_schulz import tpu, triton
from pallas_kernels.newton_schulz.batched import newton_schulz_batched
from pallas_kernels.newton_schulz.reference import newton_schulz_reference

KERNELS = {
    "pallas_tpu": ("tpu", tpu.newton_schulz_tpu, tpu.why_not),
    "pallas_triton": ("cuda", triton.newton_schulz_triton, triton.why_not),
}
"""By name: the platform, the kernel, and what says why it cannot run."""
IMPLEMENTATIONS = ("reference", "batched", *KERNELS)
_LEAST_SIDE = 64
"""Smaller matrices are left to the batched form, not worth a program each."""
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
    interpret: Any = False,
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
        implementation: ``"reference"``, ``"batched"`` (plain ``jax.numpy``),
            ``"pallas_tpu"``, ``"pallas_triton"`` (kernels; where a derivative
            is taken the batched form runs in their place), or ``None`` for the
            best that the platform offers for which the program is lowered;
            :func:`implementation_for` says which.
        interpret: run kernels without their hardware, slowly, for tests: as
            in ``pl.pallas_call``.

    Raises:
        ValueError: if an argument is not as described, or the implementation
            that is named cannot run.

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
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r} does not exist here; allowed: "
            f"None, {', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    schedule = _schedule(coefficients, steps)
    if implementation == "reference":
        return newton_schulz_reference(x, schedule, eps)
    kernels = implementation or _offered(x)
    if not kernels or kernels == "batched":
        return newton_schulz_batched(x, schedule, eps)
    if implementation is not None:
        _, _, why_not = KERNELS[implementation]
        if reason := why_not(x, bool(interpret)):
            raise ValueError(
                f"implementation={implementation!r} cannot run: {reason}"
            )
    return _with_kernel(x, schedule, eps, kernels, interpret)


def implementation_for(platform: str, x) -> str:
    """Names what ``newton_schulz(x)`` runs on a platform.

    Args:
        platform: what is lowered for, ``"tpu"``, ``"cpu"``, ``"cuda"``.
        x: an array, or its shape and dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((8, 128, 512), jnp.float32)
        >>> [implementation_for(name, x) for name in ("tpu", "cuda", "cpu")]
        ['pallas_tpu', 'pallas_triton', 'batched']
    """
    found = {KERNELS[name][0]: name for name in _offered(x)}
    return found.get(platform, "batched")


def _offered(x):
    """The kernels that run ``x`` where they have their hardware."""
    if min(x.shape[-2:]) < _LEAST_SIDE:
        return ()
    return tuple(
        name
        for name, (platform, _, why_not) in KERNELS.items()
        if why_not(x) is None and not device.unsupported(platform)
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _with_kernel(x, schedule, eps, implementation, interpret):
    """``implementation``: one by name, or by platform those that may run."""
    options = {"schedule": schedule, "eps": eps}
    run: dict[str, Callable] = {
        name: functools.partial(kernel, **options, interpret=interpret)
        for name, (_, kernel, _) in KERNELS.items()
    }
    if isinstance(implementation, str):
        return run[implementation](x)
    chosen = {KERNELS[name][0]: run[name] for name in implementation}
    plain = functools.partial(newton_schulz_batched, **options)
    return jax.lax.platform_dependent(x, **chosen, default=plain)


@_with_kernel.defjvp
def _derivative(schedule, eps, implementation, interpret, primals, tangents):
    # The intermediates that a derivative needs stay on no chip.
    del implementation, interpret
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
