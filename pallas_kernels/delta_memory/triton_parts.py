"""Matrix products in Triton kernels, with float32 split into bfloat16 parts.

For float32 products in full precision, Triton uses no tensor cores, or splits
the factors in registers, of which there are too few. Therefore factors are
stored in memory in parts: one for bfloat16, three for float32 inputs.
"""

import jax
import jax.numpy as jnp

EXACT = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
"""Precision of float32 products; products without tensor cores would spill
registers."""
ROUGH = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X3
"""Precision of float32 products whose result is rounded to bfloat16."""


def dot(a, b, over=(1, 0), *, ends_as=jnp.float32):
    """Returns ``a b``, accumulated in float32.

    Args:
        a: ``[n, m]`` or its transpose. Float64 occurs in tests without
            hardware.
        b: like ``a``, in the same dtype.
        over: contracted axis of ``a`` and of ``b``.
        ends_as: dtype that the result is finally rounded to. Float32 is
            multiplied in bfloat16 parts, with errors of 2^-24, or 2^-16 if
            ``ends_as`` is bfloat16, which keeps 8 bits.
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
    """Returns the number of parts that factors of a dtype are split into."""
    return 3 if dtype == jnp.float32 else 1


def split(value, dtype):
    """Splits ``value`` into a list of parts for products in ``dtype``.

    Float32 becomes three bfloat16 parts, which tensor cores multiply and read
    from shared memory.

    Example:
        >>> pi = jnp.float32(3.1415927)
        >>> [float(part) for part in split(pi, jnp.float32)]
        [3.140625, 0.000965118408203125, 2.6226043701171875e-06]
    """
    if parts_of(dtype) == 1:
        return [value.astype(dtype)]
    parts = []
    for _ in range(parts_of(dtype)):
        # Compilers may remove a conversion to bfloat16 and back.
        bits = jax.lax.bitcast_convert_type(value, jnp.int32)
        part = jax.lax.bitcast_convert_type(bits & -(1 << 16), value.dtype)
        parts.append(part.astype(jnp.bfloat16))
        value = value - part
    return parts


def product(a, b, over=(1, 0)):
    """Returns the :func:`dot` of two :func:`split` factors.

    The smallest terms are added first.
    """
    terms = [(i, j) for i in range(len(a)) for j in range(len(a) - i)]
    terms.sort(key=sum, reverse=True)
    return sum(dot(a[i], b[j], over) for i, j in terms)


def get(ref, *at):
    """Reads the parts of an array, which are its first axis."""
    return [ref[(part, *at)] for part in range(ref.shape[0])]


def put(ref, at, value, dtype):
    """Splits ``value`` and writes its parts."""
    put_parts(ref, at, split(value, dtype))


def put_parts(ref, at, parts):
    """Writes the parts of an array."""
    for number, part in enumerate(parts):
        ref[(number, *at)] = part


def whole(parts, acc):
    """Returns the sum of parts, up to their rounding what was :func:`split`."""
    return sum(part.astype(acc) for part in parts)
