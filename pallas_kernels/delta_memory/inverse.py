"""Inverse of unit lower-triangular matrices by doubling the size of blocks.

With ``M = I + L`` split into 2x2 blocks, the lower left block of the inverse is
``-M22^-1 L21 M11^-1``: two products turn inverses of diagonal blocks of width
``b`` into those of width ``2b``, and ``log2(C)`` such steps invert the matrix.
The method is exact (no series is truncated), needs matrix products only, and
costs about ``2/3 C^3`` multiply-adds. Two well-known alternatives are worse
here: library triangular solves are slow on accelerators (batched ones inside a
scan can deadlock on small CPUs), and the Neumann product
``prod (I + (-L)^(2^i))`` loses all accuracy once keys repeat.
"""

import jax
import jax.numpy as jnp

_BASE = 16
"""Width up to which blocks are masked, not sliced: slicing 1x1 to 8x8 blocks
costs more than the extra multiplications."""


@jax.custom_vjp
def unit_lower_inverse(strict_lower: jax.Array) -> jax.Array:
    """Returns ``(I + L)^-1`` for strictly lower-triangular ``L``.

    The derivative is ``dL = -strictly_lower(T^T dT T^T)``, with the inverse
    ``T`` of the forward pass.

    Args:
        strict_lower: ``L``, ``[..., C, C]``, any ``C >= 1``. Entries on and
            above the diagonal are ignored.

    Returns:
        The inverse, ``[..., C, C]``, unit lower-triangular, in the same dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> unit_lower_inverse(jnp.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
        [[1.0, 0.0], [-3.0, 1.0]]
    """
    if strict_lower.shape[-1] <= _BASE:
        return _masked_inverse(jnp.tril(strict_lower, -1))
    return inverse_from_blocks(
        strict_lower,
        _BASE,
        lambda lower: _masked_inverse(_diagonal_blocks(lower, _BASE)),
    )


def inverse_from_blocks(strict_lower, base, invert_blocks):
    """Returns ``(I + L)^-1``, given a function that inverts diagonal blocks.

    Args:
        strict_lower: as in :func:`unit_lower_inverse`.
        base: width of the blocks, a power of two.
        invert_blocks: function from ``L``, ``[..., n * base, n * base]`` (a
            power of two), to the inverses of ``I + L``'s diagonal blocks,
            ``[..., n, base, base]``.
    """
    size, width = strict_lower.shape[-1], base
    while width < size:
        width *= 2
    pad = [(0, 0)] * (strict_lower.ndim - 2) + [(0, width - size)] * 2
    lower = jnp.pad(jnp.tril(strict_lower, -1), pad)
    inverse = invert_blocks(lower)
    while inverse.shape[-1] < width:
        inverse = _double(lower, inverse)
    return inverse[..., 0, :size, :size]


def _forward(strict_lower):
    inverse = unit_lower_inverse(strict_lower)
    return inverse, inverse


def inverse_backward(inverse, cotangent):
    """Returns the cotangent of ``L``, given that of the inverse."""
    transposed = jnp.swapaxes(inverse, -1, -2)
    product = _matmul(_matmul(transposed, cotangent), transposed)
    return (-jnp.tril(product, -1),)


unit_lower_inverse.defvjp(_forward, inverse_backward)


@jax.custom_vjp
def unit_lower_inverse_masked(strict_lower: jax.Array) -> jax.Array:
    """:func:`unit_lower_inverse` without slices, for TPU kernels.

    All ``log2(C)`` steps multiply whole ``C x C`` matrices, twice. That is
    three to six times the work, but takes no longer on a matrix unit as wide
    as ``C``; and TPU kernels cannot slice blocks out of an array.

    Example:
        >>> import jax.numpy as jnp
        >>> unit_lower_inverse_masked(jnp.array([[0.0, 0.0], [3.0, 0.0]]))
        Array([[ 1.,  0.],
               [-3.,  1.]], dtype=float32)
    """
    return _masked_inverse(jnp.tril(strict_lower, -1))


def _forward_masked(strict_lower):
    inverse = unit_lower_inverse_masked(strict_lower)
    return inverse, inverse


unit_lower_inverse_masked.defvjp(_forward_masked, inverse_backward)


def _matmul(a, b):
    # Accelerators reduce the precision of float32 products by default, and the
    # inverse amplifies rounding errors.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _masked_inverse(lower):
    """Inverts ``I + lower`` with masks instead of slices."""
    size = lower.shape[-1]
    index = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    block = 1
    while block < size:
        at = index // block
        mask = (at[:, None] == at[None, :] + 1) & (at[:, None] % 2 == 1)
        corner = jnp.where(mask, lower, 0)
        if block > 1:  # In the first step the inverse is the identity.
            corner = _matmul(_matmul(inverse, corner), inverse)
        inverse = inverse - corner
        block *= 2
    return inverse


def _diagonal_blocks(matrix, block):
    """Returns the blocks on the diagonal, ``[..., n, b, b]``."""
    count = matrix.shape[-1] // block
    blocks = [
        matrix[..., i * block : (i + 1) * block, i * block : (i + 1) * block]
        for i in range(count)
    ]
    return jnp.stack(blocks, axis=-3)


def _double(lower, inverse):
    """Merges the inverses of ``2n`` diagonal blocks into those of ``n``."""
    block = inverse.shape[-1]
    upper_left, lower_right = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
    pairs = _diagonal_blocks(lower, 2 * block)
    corner = pairs[..., block:, :block]
    corner = -_matmul(_matmul(lower_right, corner), upper_left)
    top = jnp.concatenate([upper_left, jnp.zeros_like(corner)], axis=-1)
    bottom = jnp.concatenate([corner, lower_right], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
