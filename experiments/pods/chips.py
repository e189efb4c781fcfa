"""Published figures of TPU chips, by the first word of a topology's name.

From the pages on v5e, v5p and v6e of Google Cloud's documentation.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip; speeds are peaks, in units of a second."""

    flops: float
    """bfloat16 operations."""
    memory_speed: float
    """Bytes between the chip and its memory."""
    link_speed: float
    """Bytes that leave the chip for others, over all of its links."""
    memory: float
    """Bytes."""


CHIPS = {
    "v5e": Chip(197e12, 819e9, 200e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 600e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 448e9, 32 * 2**30),
}
