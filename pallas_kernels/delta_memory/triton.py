r"""The delta memory on GPUs through Triton, in chunks of 64 tokens.

In the forward pass, one program per chunk computes the matrices that all
columns share, ``T = (I + L)^-1`` among them (:func:`pairs_kernel`); then one
program per head and column block walks over the chunks with the state in
registers (:func:`walk_kernel`):

    Y = ā ∘ X W + b̄ ∘ X S + (c̄ ∘ X Xᵀ) G        N = T Y        E = β ∘ N
    O = a ∘ Q W + b ∘ Q S + P G - K E
    W' = a_C W + b_C S + Xᵀ (c_C ∘ G - A_C ∘ E)     S' = m_C S + Xᵀ (R_C ∘ G)

in the letters of :func:`chunk_step`. This is affine in ``(W, S)``, so the walk
of the state's cotangent does not need the state (:func:`walk_back_kernel`):

    dE = -Kᵀ dO - A_C ∘ X dW'       dY = Tᵀ (β ∘ dE)
    dW = a_C dW' + Qᵀ (a ∘ dO) + Xᵀ (ā ∘ dY)
    dS = b_C dW' + m_C dS' + Qᵀ (b ∘ dO) + Xᵀ (b̄ ∘ dY)

Everything else is parallel over chunks. A second forward walk, parallel over
blocks, recomputes the states of each chunk, in the inputs' dtype, and ``N``
from the saved states. One kernel computes the gradients that pass through
``X Xᵀ`` and ``Q Xᵀ``, with ``dL = -dY Nᵀ`` and ``jax.vjp`` of :func:`pairs`;
another adds those that involve the states. Gradients of gates follow from those
of their rows.

Weaknesses: widths are padded to powers of two; the walks occupy one
multiprocessor per head and 64 columns; float32 spills registers if it is wider
than 64 or has momentum. Never timed.
"""

from pallas_kernels.delta_memory import layout
from pallas_kernels.delta_memory.triton_launch import Run, chunk_for

LEAST_BLOCK = 16
"""Least tokens of a block; fewer are padded."""
WIDEST = 128
"""Largest ``d_in``: one program holds all rows of a state in registers."""


def why_not(arrays, block, read, interpret=False) -> str | None:
    """Returns why the kernels cannot run on arrays, or shapes, else ``None``.

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
        arrays: ``delta_scan``'s arrays by name; some may be ``None``.
        block: tokens between saved states: 16, 32 or a multiple of 64.
        read: as in ``delta_scan``.
        save: whether to return the states at block starts.
        interpret: as in ``pl.pallas_call``.

    Returns:
        ``(o, w, s)`` and, if ``save``, ``(w, s)`` at block starts, each
        ``[n, ..., d_in, d_out]``.
    """
    return Run(arrays, block, read, interpret).forward(arrays, save)


def backward(arrays, starts, cotangents, *, block, read, interpret=False):
    """Runs the backward kernels and returns the gradients of ``arrays``."""
    run = Run(arrays, block, read, interpret)
    return run.backward(arrays, starts, cotangents)
