"""Sequence mixers whose memory learns by gradient descent while reading.

Titans' memory layer (arXiv 2501.00663), DLA, TTT-Linear and TTT-MLP (arXiv
2407.04620), ATLAS (2505.23735), MIRAS' Moneta, Yaad and Memora (2504.13173) as
choices of architecture, objective, rule and retention. Projections with short
convolutions make keys, values, queries and gates for a memory of
:mod:`nl_jax.memory`. Gradients are taken at the weights of the chunk's start.
Initial memories are slow parameters, trained through the inner updates.
"""

import dataclasses
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.array_typing import Stream
from nl_jax.checks import check_choice, check_fields, choose
from nl_jax.layers.mixers.mixer import (
    Mixer,
    MixerConfig,
    token_level,
    what_scans,
)
from nl_jax.layers.mixing import (
    Declare,
    empty_tails,
    mix,
    normalize_heads,
    split_heads,
)
from nl_jax.layers.norms import l2_normalize
from nl_jax.memory import (
    ARCHITECTURES,
    OBJECTIVES,
    RETENTIONS,
    RULES,
    Architecture,
    Gates,
    LearningRule,
    Memory,
    Objective,
    Retention,
    StreamState,
    associative_memory,
    polynomial,
)
from pallas_kernels.mlp_memory import IMPLEMENTATIONS

_NONE = {"none": Retention("none", gated=False, words="")}


@dataclasses.dataclass(frozen=True)
class DeepMemoryConfig(MixerConfig):
    """Configuration of :class:`DeepMemory`.

    Raises:
        ValueError: for an invalid field, naming it and the allowed values.
    """

    has_grid: ClassVar[bool] = True

    architecture: str | Architecture = "mlp"
    """The memory's function: a name in ``nl_jax.memory.ARCHITECTURES`` or an
    ``Architecture``."""
    degree: int = 1
    """Highest power of the input that the memory sees; 1 for the input only."""
    objective: str | Objective = "l2"
    """Inner loss: ``Objective`` or name in ``nl_jax.memory.OBJECTIVES``."""
    rule: str | LearningRule = "gd"
    """Inner step: a name in ``nl_jax.memory.RULES``, or a ``LearningRule``,
    which ``window`` and ``normalized`` do not change."""
    momentum: bool = True
    """Whether the inner step has momentum, with a learned decay per token."""
    window: int = 1
    """Latest tokens whose losses a step descends, with learned weights (Omega
    rule); 1 for the current token alone."""
    retention: str | Retention = "decay"
    """``"none"``, a name in ``nl_jax.memory.RETENTIONS`` or a ``Retention``."""
    normalized: bool = True
    """Whether inner steps are bounded in their effect on the output (NLMS)."""
    chunk_size: int = 16
    """Tokens per chunk; gradients are taken at the weights of its start."""
    read: Literal["before", "after", "chunk"] = "after"
    """Weights that a query reads: before or after its token's write, or those
    at the start of the chunk."""
    expansion: int = 4
    """Hidden width of an MLP memory, in units of the head width."""
    eta_max: float | None = None
    """Largest inner step size; ``None`` for the default of ``largest_step``."""
    eta_bias: float = -2.0
    """Initial logit of the inner step size, as a share of the largest: models
    of text that begin with larger steps end with higher losses."""
    conv_width: int = 4
    """Width of the causal convolution on q, k and v, in tokens."""
    remat: int = 1
    """Chunks per state kept for the backward pass, which recomputes the others:
    more than 1 saves memory for another forward pass."""
    implementation: str | None = None
    """Backend for whole chunks, a name in
    ``pallas_kernels.mlp_memory.IMPLEMENTATIONS``; ``None`` for the best."""

    def __post_init__(self):
        check_fields(self, remat=0)
        kinds = (None, *IMPLEMENTATIONS)
        check_choice("implementation", self.implementation, kinds)
        if self.eta_max is not None and not self.eta_max > 0:
            raise ValueError(f"eta_max={self.eta_max} must be positive")
        _ = self.memory  # Raises for incompatible choices.

    @property
    def largest_step(self) -> float:
        """``eta_max``, or a default that is stable for any keys.

        A chunk's gradients are taken at its start, so steps for equal keys add
        up. On L2, a sum of 1 reaches the value, and above 2 each chunk
        overshoots more than the last; hence ``1 / (chunk_size + window - 1)``.
        A layer norm bounds gradients by itself, and other objectives and rules
        have no such feedback: 1. Orthogonal steps are equally long for small
        and large gradients, and 1 would replace a memory at every token, with
        chaotic gradients: 0.1.
        """
        if self.eta_max is not None:
            return self.eta_max
        rule = self.learning_rule
        if rule.orthogonal:
            return 0.1
        curvature = self.inner_objective.curvature
        pulls = curvature is not None and np.asarray(curvature).any()
        loops = pulls and not rule.delta
        free = self.kept.mean or self.memory_architecture.bounded
        if not loops or free:
            return 1.0
        return 1 / (self.chunk_size + rule.window - 1)

    @property
    def memory_architecture(self) -> Architecture:
        """The memory's function."""
        base = self._base
        return base if self.degree == 1 else polynomial(base, self.degree)

    @property
    def _base(self):
        """The function without powers of the input."""
        return choose(
            "architecture", self.architecture, ARCHITECTURES, Architecture
        )

    @property
    def inner_objective(self) -> Objective:
        """The memory's loss."""
        return choose("objective", self.objective, OBJECTIVES, Objective)

    @property
    def learning_rule(self) -> LearningRule:
        """The learning rule; a named one has this configuration's options."""
        rule = choose("rule", self.rule, RULES, LearningRule)
        if rule is self.rule:
            return rule
        return dataclasses.replace(
            rule, normalized=self.normalized, window=self.window
        )

    @property
    def kept(self) -> Retention:
        """The memory's retention."""
        return choose(
            "retention", self.retention, RETENTIONS | _NONE, Retention
        )

    @property
    def memory(self) -> Memory:
        """The memory of one sequence."""
        return associative_memory(
            self.memory_architecture,
            self.inner_objective,
            self.learning_rule,
            retention=self.kept,
            momentum=self.momentum,
            chunk_size=self.chunk_size,
            read=self.read,
            remat=self.remat,
            implementation=self.implementation,
        )

    @property
    def cycle(self) -> int:
        """Tokens per chunk."""
        return self.chunk_size

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return DeepMemory(self, d_model, n_heads, dtype)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        rule, kept = self.learning_rule, self.kept
        step = rule.words + (", momentum" if self.momentum else "")
        words = kept.name if kept.words is None else kept.words
        seen = "" if self.degree == 1 else f", powers to {self.degree}"
        pairs = "keys to values"
        if rule.window > 1:
            pairs += f", the last {rule.window}"
        runs = ""
        if self.memory.in_chunks:
            runs = what_scans(
                state.memory.memory,
                state.tails,
                chunk_size=self.chunk_size,
                implementation=self.implementation,
            )
        return [
            token_level(
                name="deep.memory",
                memory_of=pairs,
                architecture=self._base.name.replace("_", " ") + seen,
                objective=self.inner_objective.name.replace("_", " "),
                rule=f"{step}, {words}" if words else step,
                period=self.chunk_size,
                params=[v for k, v in params.items() if k.startswith("memory")],
                state=state.memory,
                runs=runs,
            )
        ]

    @property
    def memory_fields(self) -> tuple[str, ...]:
        """Fields that queries read."""
        return ("memory",)

    def memory_of(self, state):
        """Returns the weights."""
        return state.memory.memory.weights

    def answer(self, memory, q):
        """Returns outputs for queries, without a write."""
        weights = tuple(map(self.kept.weights, memory))
        return self.memory_architecture.apply(weights, q)

    def learned(self, state):
        """Returns the weights of the memory by the names of their starts."""
        weights = state.memory.memory.weights
        return {f"memory_{i}": matrix for i, matrix in enumerate(weights)}


class DeepMemoryState(NamedTuple):
    """Fast state, batch first."""

    memory: StreamState
    """Weights and momentum of every head, and the position in the chunk."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, D]`` each."""


class DeepMemory(Mixer):
    """A sequence mixer: a memory per head that learns while it reads."""

    config: DeepMemoryConfig

    def setup(self):
        """Declares the initial memory."""
        config = self.config
        architecture = config.memory_architecture
        width = self.head_width
        shapes = architecture.widths(width, width, config.expansion)
        self.initial = Declare(self).memory(
            "memory", shapes, architecture.gains, (self.n_heads,)
        )

    def initial_state(self, batch_size: int) -> DeepMemoryState:
        """Returns the learned state from which ``batch_size`` rows start."""
        config = self.config
        memory = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)),
            config.memory.init(self.initial),
        )
        tails = empty_tails(
            batch_size, config.conv_width, self.d_model, self.cache_dtype
        )
        return DeepMemoryState(memory, tails)

    @nn.compact
    def __call__(
        self,
        x: Stream,
        state=None,
        *,
        aligned: bool = False,
        packed=None,
        recall=None,
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        config, d, heads = self.config, self.d_model, self.n_heads
        aligned = aligned or state is None
        x, state, declare = self.begin(x, state)
        mixed, tails = mix(
            declare, x, state.tails, config.conv_width, packed=packed
        )
        q, k, v = (split_heads(mixed[name], heads) for name in "qkv")
        q, k = l2_normalize(q), l2_normalize(k)

        def gate(name, bias):
            return declare.gate(name, x, heads, bias)

        eta = config.largest_step * jax.nn.sigmoid(gate("eta", config.eta_bias))
        log_alpha, log_mu = jnp.zeros_like(eta), None
        share = threshold = None
        if config.kept.channels:
            channels = declare.channel_gate("alpha", x, heads, 6.0)
            log_alpha = jax.nn.log_sigmoid(channels)
        elif config.kept.gated:
            log_alpha = jax.nn.log_sigmoid(gate("alpha", 6.0))
        if config.momentum:
            log_mu = jax.nn.log_sigmoid(gate("mu", -2.0))
        if config.learning_rule.window > 1:
            share = jax.nn.sigmoid(gate("share", 2.0))
        if config.inner_objective.threshold:
            threshold = jax.nn.softplus(gate("threshold", 0.5))

        gates = Gates(eta, log_alpha, log_mu, share, threshold)
        y, memory = config.memory.scan_rows(
            state.memory,
            k,
            v,
            q,
            gates,
            aligned=aligned,
            packed=packed,
            initial=config.memory.init(self.initial).memory,
        )
        if recall is not None:
            y = recall(y, q)
        y = normalize_heads(declare, y)
        out = declare.dense("w_out", d, d, "embed", "mixer")
        return y.reshape(x.shape) @ out, DeepMemoryState(memory, tails)
