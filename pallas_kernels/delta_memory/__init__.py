"""The recurrence of every matrix memory, see :func:`delta_scan`."""

from pallas_kernels.delta_memory.api import delta_scan, implementation_for
from pallas_kernels.delta_memory.chunked import chunk_step, delta_scan_chunked
from pallas_kernels.delta_memory.inverse import unit_lower_inverse
from pallas_kernels.delta_memory.kernels import IMPLEMENTATIONS
from pallas_kernels.delta_memory.reference import delta_scan_reference

__all__ = [
    "IMPLEMENTATIONS",
    "chunk_step",
    "delta_scan",
    "delta_scan_chunked",
    "delta_scan_reference",
    "implementation_for",
    "unit_lower_inverse",
]
