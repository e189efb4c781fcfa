"""Associative memories: architecture x objective x rule x retention."""

from nl_jax.memory.architecture import Architecture
from nl_jax.memory.architectures import (
    ARCHITECTURES,
    deep_mlp,
    gated_mlp,
    linear,
    mlp,
    polynomial,
    residual,
)
from nl_jax.memory.associative import Memory, associative_memory
from nl_jax.memory.conformance import check_memory
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
from nl_jax.memory.retention import (
    RETENTIONS,
    Retention,
    elastic,
    kl,
    l2_decay,
    lq,
)
from nl_jax.memory.rule import (
    RULES,
    Gates,
    LearningRule,
    dgd,
    gd,
    muon,
    omega,
)
from nl_jax.memory.saved_names import TABLES, saved_name
from nl_jax.memory.state import MemoryState, StreamState
from pallas_kernels.delta_memory import delta_scan

__all__ = [
    "ARCHITECTURES",
    "MATRIX_RULES",
    "OBJECTIVES",
    "RETENTIONS",
    "RULES",
    "TABLES",
    "Architecture",
    "Gates",
    "LearningRule",
    "MatrixRule",
    "Memory",
    "MemoryState",
    "Objective",
    "Retention",
    "StreamState",
    "associative_memory",
    "check_memory",
    "deep_mlp",
    "delta_scan",
    "dgd",
    "diagonal_scan",
    "dot_product",
    "elastic",
    "gated_mlp",
    "gd",
    "huber",
    "kl",
    "l2",
    "l2_decay",
    "linear",
    "lp",
    "lq",
    "mlp",
    "muon",
    "omega",
    "polynomial",
    "residual",
    "saved_name",
]
