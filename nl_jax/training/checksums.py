"""Checksums of arrays and of JSON, by which a checkpoint is verified.

Orbax's files hold no checksum of an array's values: a flipped byte in them is
read as another number. The sums below depend on values and positions only, not
on how an array is sharded, so that they can be compared on any mesh. Each
device adds up its own part; no array is gathered.
"""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def array_sums(tree: Any) -> dict[str, str]:
    """Returns a checksum of 32 bits, in hexadecimal, for each array of a tree.

    A change of one element always changes the sum, any other change does with
    a probability of 1 - 2**-32.

    Args:
        tree: arrays of any sharding, of dtypes of 1 to 8 bytes.

    Example:
        >>> array_sums({"w": jnp.ones(3)})
        {'w': '6a42ed67'}
    """
    # One after another: on CPUs, programs whose devices wait for each other
    # would take each other's threads, and wait for ever.
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{jax.device_get(_array_sum(jnp.asarray(leaf))):08x}"
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def json_sum(value: Any) -> str:
    """Returns the CRC-32 of a JSON value, whatever the order of its keys.

    Example:
        >>> json_sum({"a": 1, "b": 2}) == json_sum({"b": 2, "a": 1})
        True
    """
    text = json.dumps(value, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


@jax.jit
def _array_sum(leaf):
    """Sums a hash of each element's bits and position, modulo 2**32."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(
        leaf, _UNSIGNED[min(leaf.dtype.itemsize, 4)]
    ).astype(jnp.uint32)
    position = jnp.uint32(leaf.dtype.itemsize)
    for axis, size in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position * jnp.uint32(size % 2**32) + along
    return _mix(bits ^ _mix(position)).sum(dtype=jnp.uint32)


def _mix(x):
    """Maps 32 bits one to one; the finaliser of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
