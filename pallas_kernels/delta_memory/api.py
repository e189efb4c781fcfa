"""Signature, validation and dispatch of the delta memory."""

from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.delta_memory.chunked import delta_scan_chunked
from pallas_kernels.delta_memory.derivative import (
    NAMES,
    Options,
    differentiable_scan,
)
from pallas_kernels.delta_memory.kernels import PLAIN, choose
from pallas_kernels.delta_memory.reference import delta_scan_reference
from pallas_kernels.dispatch import name_on

READS = ("before", "after", "chunk")


def delta_scan(
    w: Float[Array, "... d_in d_out"],
    s: Float[Array, "... d_in d_out"] | None,
    x: Float[Array, "... T d_in"],
    g: Float[Array, "... T d_out"],
    q: Float[Array, "... T d_in"],
    log_alpha: Float[Array, "... T"],
    beta: Float[Array, "... T"] | None,
    log_mu: Float[Array, "... T"] | None = None,
    *,
    resets: Bool[Array, "... T"] | None = None,
    chunk_size: int = 64,
    read: Literal["before", "after", "chunk"] = "before",
    implementation: str | None = None,
    interpret: Any = False,
) -> tuple[
    Float[Array, "... T d_out"],
    Float[Array, "... d_in d_out"],
    Float[Array, "... d_in d_out"] | None,
]:
    r"""Runs the recurrence of a matrix memory over a sequence.

    With row vectors, as everywhere in this library,

    .. math::

        S_t &= \mu_t S_{t-1} + x_t^\top g_t \\
        W_t &= \alpha_t W_{t-1} - \beta_t\, x_t^\top (x_t W_{t-1}) + S_t \\
        o_t &= q_t W_{t-1}

    Linear attention is :math:`\beta = 0`; the gated delta rule is
    :math:`g_t = \beta_t v_t`; delta gradient descent (arXiv 2512.24695,
    eq. 88 and 93) is :math:`\beta_t = \eta_t`, :math:`g_t = -\eta_t\delta_t`.
    All arrays have gradients, including both initial states, and both final
    states accept cotangents.

    Leading axes broadcast against each other. For memories that share keys,
    queries and gates, give those arrays a size-1 axis: products among keys and
    the triangular inverse are then computed once for all memories.

    Args:
        w: initial weights, ``[..., d_in, d_out]``. Its dtype, which should be
            float32, is that of the state and the triangular inverse.
        s: initial momentum, like ``w``; ``None`` is zero.
        x: keys, ``[..., T, d_in]``, which should be L2-normalised for the
            delta term to be stable. Their dtype is that of the products.
        g: writes, ``[..., T, d_out]``.
        q: queries, ``[..., T, d_in]``.
        log_alpha: logarithm of the retention, at most 0, ``[..., T]``.
        beta: strength of the delta term, ``[..., T]``; ``None`` is zero and
            skips the inverse.
        log_mu: logarithm of the momentum's decay, at most 0, ``[..., T]``;
            ``None`` switches momentum off.
        resets: tokens before which both states become zero, such as the first
            of each document, ``[..., T]``; ``None`` for none.
        chunk_size: tokens that are processed in parallel, at least 1. Results
            depend on it only with ``read="chunk"``.
        read: weights that ``q_t`` is multiplied with: those ``"before"`` the
            write of token ``t``, ``"after"`` it, or at the start of the
            ``"chunk"``.
        implementation: ``"reference"`` (token by token), ``"chunked"`` (plain
            ``jax.numpy``), ``"pallas_tpu"``, ``"pallas_triton"`` or
            ``"pallas_mosaic_gpu"`` (kernels, which choose their own chunks),
            or ``None`` for the best one on the platform that the program is
            lowered for, see :func:`implementation_for`. Kernels do not support
            forward-mode differentiation.
        interpret: whether to run kernels without their hardware, slowly, for
            tests, as in ``pl.pallas_call``.

    Returns:
        ``(o, w, s)``: outputs ``[..., T, d_out]`` and the final state; ``s`` is
        ``None`` without ``log_mu``.

    Raises:
        ValueError: if a shape, ``chunk_size``, ``read`` or ``implementation``
            is not as described, or the named implementation cannot run.

    Example:
        >>> import jax.numpy as jnp
        >>> key = jnp.array([[1.0, 0.0], [1.0, 0.0]])   # the same key twice
        >>> value = jnp.array([[1.0], [5.0]])           # with two values
        >>> gate = jnp.zeros(2)                         # nothing is forgotten
        >>> o, w, _ = delta_scan(
        ...     jnp.zeros((2, 1)), None, key, value, key, gate, jnp.ones(2))
        >>> o[:, 0].tolist(), w[:, 0].tolist()          # the delta rule erases
        ([0.0, 1.0], [5.0, 0.0])
    """
    values = w, s, x, g, q, log_alpha, beta, log_mu, resets
    arrays = dict(zip(NAMES, values, strict=True))
    _validate(**arrays, chunk_size=chunk_size, read=read)
    if resets is not None:
        arrays["resets"] = jnp.asarray(resets).astype(w.dtype)
    choice, block = choose(
        arrays, chunk_size, read, implementation, bool(interpret)
    )
    if choice in PLAIN:
        run = {"reference": delta_scan_reference, "chunked": delta_scan_chunked}
        return run[choice](**arrays, chunk_size=chunk_size, read=read)
    if log_mu is not None and s is None:
        arrays["s"] = jnp.zeros_like(w)
    options = Options(
        choice,
        block=block,
        chunk=_plain_chunk(chunk_size, read),
        read=read,
        interpret=interpret,
    )
    return differentiable_scan(arrays, options)


def implementation_for(
    platform: str,
    w,
    s,
    x,
    g,
    q,
    log_alpha,
    beta,
    log_mu=None,
    *,
    resets=None,
    chunk_size: int = 64,
    read: Literal["before", "after", "chunk"] = "before",
) -> str:
    """Returns the implementation that ``delta_scan`` chooses for a platform.

    Args:
        platform: platform of the compiled program: ``"tpu"``, ``"cpu"`` or
            ``"cuda"``.
        w: see :func:`delta_scan`; for all arrays, shapes and dtypes suffice.
        s: see :func:`delta_scan`.
        x: see :func:`delta_scan`.
        g: see :func:`delta_scan`.
        q: see :func:`delta_scan`.
        log_alpha: see :func:`delta_scan`.
        beta: see :func:`delta_scan`.
        log_mu: see :func:`delta_scan`.
        resets: see :func:`delta_scan`.
        chunk_size: see :func:`delta_scan`.
        read: see :func:`delta_scan`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def shape(*dims):
        ...     return jax.ShapeDtypeStruct(dims, jnp.float32)
        >>> def names(length):
        ...     w, x = shape(8, 64, 64), shape(8, length, 64)
        ...     gate = shape(8, length)
        ...     arrays = w, None, x, x, x, gate, gate
        ...     platforms = ("tpu", "cuda", "cpu")
        ...     return [implementation_for(p, *arrays) for p in platforms]
        >>> names(1024)
        ['pallas_tpu', 'pallas_triton', 'chunked']
        >>> names(1)
        ['chunked', 'chunked', 'chunked']
    """
    values = w, s, x, g, q, log_alpha, beta, log_mu, resets
    arrays = dict(zip(NAMES, values, strict=True))
    _validate(**arrays, chunk_size=chunk_size, read=read)
    return name_on(platform, choose(arrays, chunk_size, read, None)[0], PLAIN)


def _plain_chunk(chunk_size, read):
    """Returns the tokens per chunk of the plain scan that backs a kernel.

    The largest divisor of the kernel's block up to ``chunk_size``, at least a
    quarter of the block.
    """
    if read == "chunk":
        return chunk_size
    return next(c for c in (128, 64, 32) if c <= max(chunk_size, 32))


def _validate(w, s, x, g, q, log_alpha, beta, log_mu, resets, chunk_size, read):
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    if read not in READS:
        raise ValueError(f"read={read!r} must be one of {READS}")
    if s is not None and log_mu is None:
        raise ValueError("s is given, so log_mu is needed; pass s=None without")
    for name, value, least in (("w", w, 2), ("x", x, 2), ("g", g, 2)):
        if value.ndim < least:
            raise ValueError(f"{name} has shape {value.shape}, needs 2 axes")
    d_in, d_out = w.shape[-2:]
    length = x.shape[-2]
    expected = {
        "s": (s, (d_in, d_out)),
        "x": (x, (length, d_in)),
        "g": (g, (length, d_out)),
        "q": (q, (length, d_in)),
        "log_alpha": (log_alpha, (length,)),
        "beta": (beta, (length,)),
        "log_mu": (log_mu, (length,)),
        "resets": (resets, (length,)),
    }
    leading = [w.shape[:-2]]
    for name, (value, tail) in expected.items():
        if value is None:
            continue
        if value.shape[-len(tail) :] != tail:
            raise ValueError(
                f"{name} has shape {value.shape}; its last axes must be {tail} "
                f"beside w {w.shape} and x {x.shape}"
            )
        leading.append(value.shape[: -len(tail)])
    if length < 1:
        raise ValueError("x has no tokens; T must be at least 1")
    try:
        jnp.broadcast_shapes(*leading)
    except ValueError as error:
        raise ValueError(
            f"leading axes do not broadcast against each other: {leading}"
        ) from error
