"""Associative memories: architecture x objective x learning rule."""

from nl_jax.memory.architecture import (
    ARCHITECTURES,
    Architecture,
    linear,
    mlp,
    residual,
)
from nl_jax.memory.associative import (
    Memory,
    MemoryState,
    StreamState,
    associative_memory,
)
from nl_jax.memory.diagonal import diagonal_scan
from nl_jax.memory.matrix_rules import MATRIX_RULES, MatrixRule
from nl_jax.memory.objective import (
    OBJECTIVES,
    Objective,
    dot_product,
    huber,
    l2,
    lp,
)
from nl_jax.memory.rule import RULES, Gates, LearningRule, dgd, gd
from pallas_kernels.delta_memory import delta_scan

__all__ = [
    "ARCHITECTURES",
    "MATRIX_RULES",
    "OBJECTIVES",
    "RULES",
    "Architecture",
    "Gates",
    "LearningRule",
    "MatrixRule",
    "Memory",
    "MemoryState",
    "Objective",
    "StreamState",
    "associative_memory",
    "delta_scan",
    "dgd",
    "diagonal_scan",
    "dot_product",
    "gd",
    "huber",
    "l2",
    "linear",
    "lp",
    "mlp",
    "residual",
]
