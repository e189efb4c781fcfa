"""Configuration of self-modifying Titans."""

import dataclasses
import math
from typing import ClassVar, Literal

import jax

from nl_jax.checks import check_choice, check_fields, choose, require
from nl_jax.layers.mixers.mixer import MixerConfig, token_level, what_scans
from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.memory import ARCHITECTURES, OBJECTIVES, RULES
from nl_jax.memory.architecture import Architecture
from nl_jax.memory.architectures import linear
from nl_jax.memory.associative import Memory, associative_memory
from nl_jax.memory.objective import Objective
from nl_jax.memory.rule import LearningRule
from pallas_kernels.mlp_memory import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True)
class TitansConfig(MixerConfig):
    """Configuration of :class:`nl_jax.layers.SelfModifyingTitans`.

    The defaults learned best while staying bounded; the paper's choices are
    available as fields. By default memories make the gates, and projections the
    keys and values. The ablations of the paper's Table 6 are ``rule="gd"``
    (without DGD), ``momentum=False``, ``decay=False``, ``adaptive_k``,
    ``adaptive_v`` and ``adaptive_q``.

    Raises:
        ValueError: for an invalid field, naming it and the allowed values.
    """

    has_grid: ClassVar[bool] = True

    architecture: str | Architecture = "residual"
    """Function of each memory: an ``Architecture`` or a name in
    ``nl_jax.memory.ARCHITECTURES``, such as ``"linear"`` (``W x``),
    ``"residual"`` (``x + W x``) and ``"mlp"`` (the paper's residual MLP). A
    ``"linear"`` memory that has forgotten its start generates from its own
    writes only, and gradients explode with the sequence length."""
    objective: str | Objective = "dot_product"
    """Inner loss without a threshold: a name in ``nl_jax.memory.OBJECTIVES`` or
    an ``Objective``. The paper's is ``"l2"``; its eq. 92 is the dot product."""
    rule: str | LearningRule = "dgd"
    """Inner step: ``"dgd"`` (delta gradient descent), ``"gd"`` (gradient
    descent), or a ``LearningRule`` for the current token, which
    ``delta_layers`` and ``literal`` do not change."""
    delta_layers: Literal["all", "input"] = "all"
    """Layers of an MLP memory with the delta term: all or the input layer."""
    momentum: bool = True
    """Whether the inner step has momentum, with a learned decay per token."""
    decay: bool = True
    """Whether memories forget; ``False`` fixes the retention alpha at 1."""
    value_norm: Literal["target", "input"] = "target"
    """Normalise each self-generated target, or only the value it is made from.
    ``"input"`` keeps linear memories linear in their start, so that all of them
    can share one recurrence, see ``shares_recurrence``."""
    generator_targets: Literal["unit", "rms"] = "unit"
    """Length of the targets that generators make for themselves: 1, so that a
    write cannot outweigh a memory's output on keys, or ``sqrt(d)``, a root mean
    square of 1, as for the answering memory."""
    gates: Literal["readout", "direct"] = "readout"
    """Logits of the gates: a learned readout of normalised outputs of ``M_eta``
    and ``M_alpha``, or the sum of the outputs themselves over ``sqrt(d)``; both
    have a learned bias."""
    adaptive_q: bool = False
    """Whether a memory makes queries, and not a projection alone."""
    adaptive_k: bool = False
    """Whether a memory makes keys, and not a projection alone."""
    adaptive_v: bool = False
    """Whether a memory makes values, and not a projection or the stream."""
    head_width: int = 0
    """Channels of a head below which neighbouring heads are merged in pairs.
    Recall needs wide heads, which a small model's are not, and text more than
    one, each with step sizes and a retention of its own."""
    chunk_size: int = 16
    """Tokens per chunk of the generating memories."""
    memory_chunk_size: int = 16
    """Tokens per chunk of the answering memory, which queries read."""
    read: Literal["before", "after", "chunk"] = "before"
    """Weights that a query reads: before or after its token's write, or those
    at the start of the chunk."""
    stream_width: float = 3.0
    """Channels of a stream ``u = SiLU(conv(x W_in))`` that goes past the
    memories to a projection of its own, in units of ``d_model``: at least 1.
    Values are made of its first ``d_model`` channels, and the memories of q
    and k read projections over all heads. With 0 there is none: memories read
    ``x``, each its own head of it."""
    output_gate: bool = True
    """Whether the stream is multiplied by SiLU of a projection of the input;
    without a stream, the memories' outputs."""
    output_scale: float = 1.0
    """Length of the memories' projected outputs at first, in that of an
    embedding. Smaller ones hide less of the tokens from later blocks."""
    last_scale: float = 1.0
    """``output_scale`` in a model's last block."""
    output_gain: float = 1.0
    """First value of the learned scale of the normalised outputs, whose
    projection begins as much smaller. Adam's steps do not depend on the
    gradient's length, so the projection then learns as much faster."""
    expansion: int = 4
    """Hidden width of an MLP memory, in units of the head width."""
    eta_max: float = 1.0
    """Largest step size, in units of alpha; 2 allows state tracking."""
    conv_width: int = 4
    """Width (tokens) of the causal convolution on the stream; 1 for none."""
    alpha_bias: float = 6.0
    """Initial logit of the retention."""
    eta_bias: float = -2.0
    """Initial logit of the inner step size."""
    mu_bias: float = -2.0
    """Initial logit of the momentum decay."""
    gain: float = 0.1
    """Std of the generators' initial weights, in ``1 / sqrt(fan_in)``; small,
    so that projections are not disturbed at first."""
    memory_gain: float = 0.25
    """Std of the answering memory's initial weights, in ``1 / sqrt(fan_in)``;
    small, because they are noise to what it stores."""
    remat: int = 1
    """Chunks per state kept for the backward pass, which recomputes the others:
    1 keeps every chunk's weights for one more forward pass; more than 1 keeps
    fewer for two; 0 keeps all activations for none."""
    implementation: str | None = None
    """Backend for the answering memory's whole chunks, a name in
    ``pallas_kernels.mlp_memory.IMPLEMENTATIONS``; ``None`` for the best."""
    literal: bool = False
    """Use the equations as printed, without normalising values, writes or gate
    inputs. Overflows with MLP memories; for comparison only."""

    def __post_init__(self):
        check_fields(self, remat=0, head_width=0)
        kinds = (None, *IMPLEMENTATIONS)
        check_choice("implementation", self.implementation, kinds)
        eta, wide = self.eta_max, self.stream_width
        require(0 < eta <= 2, f"eta_max={eta} must be in (0, 2]")
        wanted = f"stream_width={wide} must be 0 or at least 1"
        require(wide == 0 or wide >= 1, wanted)
        for name in ("output_scale", "last_scale", "output_gain"):
            scale = getattr(self, name)
            require(scale > 0, f"{name}={scale} must be positive")
        _ = self.memory  # Raises for incompatible choices.

    @property
    def memory_architecture(self) -> Architecture:
        """The function of each memory."""
        return choose(
            "architecture", self.architecture, ARCHITECTURES, Architecture
        )

    @property
    def inner_objective(self) -> Objective:
        """The loss, which cannot take a threshold per token."""
        return choose(
            "objective",
            self.objective,
            OBJECTIVES,
            Objective,
            lambda objective: not objective.threshold,
            " without a threshold per token, which has no gate here",
        )

    @property
    def learning_rule(self) -> LearningRule:
        """The learning rule; a named one has this configuration's options."""
        rule = choose(
            "rule",
            self.rule,
            RULES,
            LearningRule,
            lambda rule: rule.window == 1 and not rule.orthogonal,
            " for the current token, without orthogonal=True",
        )
        if rule is self.rule:
            return rule
        return dataclasses.replace(
            rule,
            delta_layers=self.delta_layers,
            normalized=not self.literal,
        )

    @property
    def generated(self) -> tuple[str, ...]:
        """Names of the generating memories, in stacking order."""
        names = [n for n in "qkv" if getattr(self, f"adaptive_{n}")]
        return (*names, "eta", "alpha")

    @property
    def projected(self) -> tuple[str, ...]:
        """Names of q, k and v that are made of a projection over all heads."""
        if self.stream_width:
            return ("q", "k")
        return tuple(n for n in "qkv" if n not in self.generated)

    @property
    def gate_biases(self) -> dict[str, float]:
        """Initial logit of each gate."""
        used = {"eta": True, "alpha": self.decay, "mu": self.momentum}
        return {n: getattr(self, f"{n}_bias") for n, on in used.items() if on}

    @property
    def shares_recurrence(self) -> bool:
        """Whether one ``d x d`` recurrence updates all memories of a head.

        With linear memories, targets ``M(v)`` and equal chunks, every memory
        inside a chunk is its start times the same matrix, so the delta memory
        runs once instead of once per memory. Used whenever it is exact.
        """
        return (
            self.memory_architecture == linear
            and self.value_norm == "input"
            and not self.momentum
            and not self.literal
            and self.chunk_size == self.memory_chunk_size
        )

    @property
    def memory(self) -> Memory:
        """The answering memory."""
        # A shared recurrence is that of an identity memory.
        shared = self.shares_recurrence
        return self._memory(
            (lambda _, v: v) if shared else self._target(rms_norm),
            chunk_size=self.memory_chunk_size,
            implementation=self.implementation,
        )

    @property
    def generators(self) -> Memory:
        """The generating memories, stacked on one more leading axis."""
        unit = self.generator_targets == "unit"
        target = self._target(l2_normalize if unit else rms_norm)
        return self._memory(target, chunk_size=self.chunk_size)

    def _target(self, normalize):
        """Returns the self-generated target ``M(v)`` of eq. 87."""
        raw = self.literal or self.value_norm == "input"

        def target(weights, v):
            made = self.memory_architecture.apply(weights, v)
            return made if raw else normalize(made)

        return target

    def _memory(self, target, **options):
        return associative_memory(
            self.memory_architecture,
            self.inner_objective,
            self.learning_rule,
            momentum=self.momentum,
            read=self.read,
            remat=self.remat,
            target=target,
            **options,
        )

    @property
    def cycle(self) -> int:
        """Tokens until the boundaries of both kinds of chunks coincide."""
        return math.lcm(self.chunk_size, self.memory_chunk_size)

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        # Imported here because that file imports this one.
        from nl_jax.layers.mixers.titans import SelfModifyingTitans

        narrow = d_model < n_heads * self.head_width
        heads = n_heads // 2 if narrow and n_heads % 2 == 0 else n_heads
        return SelfModifyingTitans(self, d_model, heads, dtype)

    def last_block(self, params):
        """Returns initial parameters for a model's last block."""
        factor = self.last_scale / self.output_scale
        scaled = jax.tree.map(lambda leaf: factor * leaf, params["w_out"])
        return params | {"w_out": scaled}

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        rule = self.learning_rule.words
        rule += ", momentum" if self.momentum else ""
        rule += ", decay" if self.decay else ""
        made = f"generators ({', '.join(self.generated)})"
        kinds = {
            made: (state.generators, self.chunk_size, ""),
            "memory": (state.memory, self.memory_chunk_size, self._runs(state)),
        }
        return [
            token_level(
                name=f"titans.{name}",
                memory_of="keys to own values",
                architecture=self.memory_architecture.name,
                objective=self.inner_objective.name.replace("_", " "),
                rule=rule,
                period=period,
                params=[
                    leaf
                    for key, leaf in params.items()
                    if key.startswith(f"{name.split()[0]}_")
                ],
                state=fast,
                runs=runs,
            )
            for name, (fast, period, runs) in kinds.items()
        ]

    @property
    def memory_fields(self) -> tuple[str, ...]:
        """Fields that queries read."""
        return ("memory",)

    def memory_of(self, state):
        """Returns the weights of the answering memory."""
        if self.shares_recurrence:
            return (state.generators.weights[0] @ state.memory.start[0],)
        return state.memory.weights

    def answer(self, memory, q):
        """Returns outputs for queries, without a write."""
        return self.memory_architecture.apply(memory, q)

    def learned(self, state):
        """Returns the weights of all memories by the names of their starts."""
        if self.shares_recurrence:
            (product,) = state.generators.weights
            starts = state.generators.start[0], state.memory.start[0]
            return {
                "generators_0": product[..., None, :, :, :] @ starts[0],
                "memory_0": product @ starts[1],
            }
        return {
            f"{name}_{index}": weights
            for name in ("generators", "memory")
            for index, weights in enumerate(getattr(state, name).weights)
        }

    def _runs(self, state):
        """Backend of the answering memory on the available devices."""
        if self.shares_recurrence:
            return ""
        if not self.memory.in_chunks:
            return "chunked"
        return what_scans(
            state.memory,
            state.tails,
            chunk_size=self.memory_chunk_size,
            implementation=self.implementation,
        )
