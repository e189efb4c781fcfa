"""Orthogonalisation of matrices by polynomial iteration."""

from pallas_kernels.newton_schulz.api import (
    COEFFICIENTS,
    IMPLEMENTATIONS,
    implementation_for,
    newton_schulz,
)
from pallas_kernels.newton_schulz.batched import newton_schulz_batched
from pallas_kernels.newton_schulz.norm import (
    divide_by_norm,
    norm_unit,
    safe_norm,
)
from pallas_kernels.newton_schulz.reference import newton_schulz_reference

__all__ = [
    "COEFFICIENTS",
    "IMPLEMENTATIONS",
    "divide_by_norm",
    "implementation_for",
    "newton_schulz",
    "newton_schulz_batched",
    "newton_schulz_reference",
    "norm_unit",
    "safe_norm",
]
