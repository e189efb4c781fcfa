"""Published figures of TPU chips, by the first word of a topology's name.

Peaks of their products are in :mod:`nl_jax.training.device_peaks`.

From the pages on v5e, v5p and v6e of Google Cloud's documentation.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """One chip; speeds are peaks, in units of a second."""

    memory_speed: float
    """Bytes between the chip and its memory."""
    link_speed: float
    """Bytes that leave the chip for others, over all of its links."""
    memory: float
    """Bytes."""


FLAT = {"v5e", "v6e"}
"""Whose slices have two dimensions."""
CHIPS = {
    "v5e": Chip(819e9, 200e9, 16 * 2**30),
    "v5p": Chip(2765e9, 600e9, 95 * 2**30),
    "v6e": Chip(1640e9, 448e9, 32 * 2**30),
}
