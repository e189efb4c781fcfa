"""Products of matrices in Triton kernels, float32 in parts of bfloat16.

Triton multiplies float32 in full precision without tensor cores, or cuts it
up in registers, of which there are too few. So what products read is kept in
memory as its parts: one in bfloat16, three where the inputs are float32.
"""

import jax
import jax.numpy as jnp

EXACT = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""What multiplies float32: full precision without tensor cores would spill."""
ROUGH = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
"""The same where the result is bfloat16 in the end."""


def dot(a, b, over=(1, 0), *, ends_as=jnp.float32):
    """``a b`` with sums in float32; float64 is for tests without hardware.

    Args:
        a: ``[n, m]``, or with its axes swapped.
        b: like ``a``, in the same dtype.
        over: the axis of ``a`` and that of ``b`` that are summed over.
        ends_as: what the result is rounded to in the end. Float32 is multiplied
            as products of its bfloat16 parts, whose errors are 2^-24 and, where
            the result keeps 8 bits, 2^-16.
    """
    precision = None
    if a.dtype == jnp.float32:
        precision = ROUGH if ends_as == jnp.bfloat16 else EXACT
    return jax.lax.dot_general(
        a,
        b,
        (((over[0],), (over[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32),
    )


def parts_of(dtype) -> int:
    """Into how many numbers of fewer bits one is cut for products."""
    return 3 if dtype == jnp.float32 else 1


def split(value, dtype):
    """A list of the parts of ``value`` for products in ``dtype``.

    Float32 becomes three times bfloat16, so that tensor cores multiply it and
    read it from shared memory, not from registers.

    Example:
        >>> pi = jnp.float32(3.1415927)
        >>> [float(part) for part in split(pi, jnp.float32)]
        [3.140625, 0.000965118408203125, 2.6226043701171875e-06]
    """
    if parts_of(dtype) == 1:
        return [value.astype(dtype)]
    parts = []
    for _ in range(parts_of(dtype)):
        # Compilers may take a rounding there and back for none at all.
        bits = jax.lax.bitcast_convert_type(value, jnp.int32)
        part = jax.lax.bitcast_convert_type(bits & -(1 << 16), value.dtype)
        parts.append(part.astype(jnp.bfloat16))
        value = value - part
    return parts


def product(a, b, over=(1, 0)):
    """:func:`dot` of two that were :func:`split`; the smallest terms first."""
    terms = [(i, j) for i in range(len(a)) for j in range(len(a) - i)]
    terms.sort(key=sum, reverse=True)
    return sum(dot(a[i], b[j], over) for i, j in terms)


def get(ref, *at):
    """The parts of an array, see :func:`split`; they are the first axis."""
    return [ref[(part, *at)] for part in range(ref.shape[0])]


def put(ref, at, value, dtype):
    """Writes the parts of ``value``."""
    put_parts(ref, at, split(value, dtype))


def put_parts(ref, at, parts):
    """Writes parts."""
    for number, part in enumerate(parts):
        ref[(number, *at)] = part


def whole(parts, acc):
    """What was :func:`split`, or its rounding to the products' dtype."""
    return sum(part.astype(acc) for part in parts)
