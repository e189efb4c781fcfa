"""Inverse of unit lower-triangular matrices by a ladder of blocks.

With ``M = I + L`` cut into 2x2 blocks, the inverse of the lower left corner is
``-M22^-1 L21 M11^-1``: inverses of blocks of width ``b`` give those of width
``2b`` by two products, so ``log2(C)`` rungs reach the whole matrix. It is exact
(no series is truncated), needs matrix products only, and costs about
``2/3 C^3`` multiply-adds. Two well-known alternatives are worse here: library
triangular solves are slow on accelerators (batched ones inside a scan can
deadlock on small CPUs), and the Neumann product ``prod (I + (-L)^(2^i))``
loses all digits once keys repeat.
"""

import jax
import jax.numpy as jnp

# Below this width the rungs work on whole masked blocks: slicing out 1x1 to
# 8x8 blocks costs more than the few extra multiplications.
_BASE = 16


@jax.custom_vjp
def unit_lower_inverse(strict_lower: jax.Array) -> jax.Array:
    """Returns ``(I + L)^-1`` for strictly lower-triangular ``L``.

    The backward pass uses ``dL = -strictly_lower(T^T dT T^T)`` with the inverse
    ``T`` that the forward pass found, so no rung is differentiated.

    Args:
        strict_lower: ``L``, ``[..., C, C]``, any ``C >= 1``. Entries on and
            above the diagonal are taken to be zero and ignored.

    Returns:
        The inverse, ``[..., C, C]``, unit lower-triangular, in the same dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> unit_lower_inverse(jnp.array([[0.0, 0.0], [3.0, 0.0]])).tolist()
        [[1.0, 0.0], [-3.0, 1.0]]
    """
    if strict_lower.shape[-1] <= _BASE:
        return _masked_ladder(jnp.tril(strict_lower, -1))
    return ladder_from(
        strict_lower,
        _BASE,
        lambda lower: _masked_ladder(_diagonal_blocks(lower, _BASE)),
    )


def ladder_from(strict_lower, base, first_rung):
    """Climbs to ``(I + L)^-1`` from the inverses of its diagonal blocks.

    Args:
        strict_lower: as in :func:`unit_lower_inverse`.
        base: width of these blocks, a power of two.
        first_rung: finds them, ``[..., n base, n base]`` (a power of two) to
            ``[..., n, base, base]``.
    """
    size, width = strict_lower.shape[-1], base
    while width < size:
        width *= 2
    pad = [(0, 0)] * (strict_lower.ndim - 2) + [(0, width - size)] * 2
    lower = jnp.pad(jnp.tril(strict_lower, -1), pad)
    inverse = first_rung(lower)
    while inverse.shape[-1] < width:
        inverse = _climb(lower, inverse)
    return inverse[..., 0, :size, :size]


def _forward(strict_lower):
    inverse = unit_lower_inverse(strict_lower)
    return inverse, inverse


def inverse_backward(inverse, cotangent):
    """The cotangent of ``L``, from that of the inverse."""
    transposed = jnp.swapaxes(inverse, -1, -2)
    product = _matmul(_matmul(transposed, cotangent), transposed)
    return (-jnp.tril(product, -1),)


unit_lower_inverse.defvjp(_forward, inverse_backward)


@jax.custom_vjp
def unit_lower_inverse_masked(strict_lower: jax.Array) -> jax.Array:
    """:func:`unit_lower_inverse` without slices: every rung multiplies all.

    ``log2(C)`` rungs of two ``C x C`` products. A matrix unit as wide as ``C``
    takes as long for a block of them; elsewhere this does three to six times
    the work. TPU kernels cannot slice blocks out of an array anyway.

    Example:
        >>> import jax.numpy as jnp
        >>> unit_lower_inverse_masked(jnp.array([[0.0, 0.0], [3.0, 0.0]]))
        Array([[ 1.,  0.],
               [-3.,  1.]], dtype=float32)
    """
    return _masked_ladder(jnp.tril(strict_lower, -1))


def _forward_masked(strict_lower):
    inverse = unit_lower_inverse_masked(strict_lower)
    return inverse, inverse


unit_lower_inverse_masked.defvjp(_forward_masked, inverse_backward)


def _matmul(a, b):
    # The inverse amplifies rounding, so it is never computed in the reduced
    # precision that accelerators use for float32 products by default.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _masked_ladder(lower):
    """Inverts ``I + lower`` of small width with masks instead of slices."""
    size = lower.shape[-1]
    index = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), lower.shape)
    block = 1
    while block < size:
        rung = index // block
        mask = (rung[:, None] == rung[None, :] + 1) & (rung[:, None] % 2 == 1)
        corner = jnp.where(mask, lower, 0)
        if block > 1:  # On the first rung the inverse is still the identity.
            corner = _matmul(_matmul(inverse, corner), inverse)
        inverse = inverse - corner
        block *= 2
    return inverse


def _diagonal_blocks(matrix, block):
    """``[..., n b, n b] -> [..., n, b, b]``: the blocks on the diagonal."""
    count = matrix.shape[-1] // block
    blocks = [
        matrix[..., i * block : (i + 1) * block, i * block : (i + 1) * block]
        for i in range(count)
    ]
    return jnp.stack(blocks, axis=-3)


def _climb(lower, inverse):
    """From the inverses of ``2n`` diagonal blocks to those of ``n`` pairs."""
    block = inverse.shape[-1]
    upper_left, lower_right = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
    pairs = _diagonal_blocks(lower, 2 * block)
    corner = pairs[..., block:, :block]
    corner = -_matmul(_matmul(lower_right, corner), upper_left)
    top = jnp.concatenate([upper_left, jnp.zeros_like(corner)], axis=-1)
    bottom = jnp.concatenate([corner, lower_right], axis=-1)
    return jnp.concatenate([top, bottom], axis=-2)
