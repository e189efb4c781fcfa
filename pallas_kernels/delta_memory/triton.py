r"""The delta memory on GPUs through Triton: few kernels, chunks of 64 tokens.

Forward, one program per chunk makes what all columns share, ``T = (I + L)^-1``
among it (:func:`pairs_kernel`), then one program per head and column block
walks over the chunks with the state in registers (:func:`walk_kernel`):

    Y = ā ∘ X W + b̄ ∘ X S + (c̄ ∘ X Xᵀ) G        N = T Y        E = β ∘ N
    O = a ∘ Q W + b ∘ Q S + P G - K E
    W' = a_C W + b_C S + Xᵀ (c_C ∘ G - A_C ∘ E)     S' = m_C S + Xᵀ (R_C ∘ G)

in the letters of :func:`chunk_step`. That is affine in ``(W, S)``, so the
cotangent of the state walks back without it (:func:`walk_back_kernel`):

    dE = -Kᵀ dO - A_C ∘ X dW'       dY = Tᵀ (β ∘ dE)
    dW = a_C dW' + Qᵀ (a ∘ dO) + Xᵀ (ā ∘ dY)
    dS = b_C dW' + m_C dS' + Qᵀ (b ∘ dO) + Xᵀ (b̄ ∘ dY)

All else is parallel over chunks. A second forward walk, parallel over blocks,
recovers from the saved states those of each chunk, in the inputs' dtype, and
``N``. One kernel turns them into what passes through ``X Xᵀ`` and ``Q Xᵀ``,
with ``dL = -dY Nᵀ`` and ``jax.vjp`` of :func:`pairs`; one adds what meets the
states. The gates' gradients follow from those of their rows.

Weak: widths that are no power of two are padded to one; the walks occupy one
multiprocessor per head and 64 columns; float32 that is wider than 64, or has
momentum, spills registers. Never timed.
"""

from pallas_kernels.delta_memory import layout
from pallas_kernels.delta_memory.triton_launch import Run, chunk_for

LEAST_BLOCK = 16
"""Fewer tokens are padded to so many."""
WIDEST = 128
"""Largest ``d_in``: all rows of a state are in one program's registers."""


def why_not(arrays, block, read, interpret=False) -> str | None:
    """Says why the kernels cannot take arrays, or shapes; ``None``: they can.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((1, 128, 256), jnp.bfloat16)
        >>> gate = jax.ShapeDtypeStruct((1, 128), jnp.float32)
        >>> w = jax.ShapeDtypeStruct((1, 256, 64), jnp.float32)
        >>> arrays = dict(w=w, s=None, x=x, g=x, q=x)
        >>> arrays |= dict(log_alpha=gate, beta=gate, log_mu=None)
        >>> why_not(arrays, 128, "before")
        'x is 256 wide, at most 128 fit'
    """
    chunk = chunk_for(block, read)
    if chunk not in (16, 32, 64):
        return f"a chunk of {chunk} tokens is none of 16, 32, 64"
    if block % chunk:
        return f"a block of {block} tokens is no multiple of {chunk}"
    if reason := layout.why_not(arrays, interpret):
        return reason
    x = arrays["x"]
    if x.shape[-1] > WIDEST:
        return f"x is {x.shape[-1]} wide, at most {WIDEST} fit"
    return None


def forward(arrays, *, block, read, save=False, interpret=False):
    """Runs the forward kernels.

    Args:
        arrays: ``delta_scan``'s by name, ``None`` where there is none.
        block: tokens between saved states; 64 times a number, or 16 or 32.
        read: as in ``delta_scan``.
        save: whether the states at block starts are wanted.
        interpret: as in ``pl.pallas_call``.

    Returns:
        ``(o, w, s)`` and, if ``save``, ``(w, s)`` at block starts, each
        ``[n, ..., d_in, d_out]``.
    """
    return Run(arrays, block, read, interpret).forward(arrays, save)


def backward(arrays, starts, cotangents, *, block, read, interpret=False):
    """Runs the backward kernels; returns gradients for ``arrays``."""
    run = Run(arrays, block, read, interpret)
    return run.backward(arrays, starts, cotangents)
