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
from nl_jax.memory.objective import OBJECTIVES, Objective, dot_product, l2
from nl_jax.memory.rule import RULES, Gates, LearningRule, dgd, gd
from pallas_kernels.delta_memory import delta_scan

__all__ = [
    "ARCHITECTURES",
    "OBJECTIVES",
    "RULES",
    "Architecture",
    "Gates",
    "LearningRule",
    "Memory",
    "MemoryState",
    "Objective",
    "StreamState",
    "associative_memory",
    "delta_scan",
    "dgd",
    "dot_product",
    "gd",
    "l2",
    "linear",
    "mlp",
    "residual",
]
