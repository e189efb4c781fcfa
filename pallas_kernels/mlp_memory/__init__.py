"""Deep memories, given by their chunk step, see :func:`memory_scan`."""

from pallas_kernels.mlp_memory.api import (
    IMPLEMENTATIONS,
    implementation_for,
    memory_scan,
)

__all__ = ["IMPLEMENTATIONS", "implementation_for", "memory_scan"]
