"""Sequence mixers whose memory is a matrix per head.

One layer for linear attention, RetNet, GLA, (gated) DeltaNet, Longhorn, Comba,
OjaNet and RWKV-7: projections with short convolutions, gates, a rule from
:mod:`nl_jax.memory.matrix_rules`, a norm per head and an output projection. The
state does not grow with the sequence.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nl_jax.array_typing import Stream
from nl_jax.checks import check_choice, check_fields, choose
from nl_jax.layers.mixers.mixer import LONG, Mixer, MixerConfig, token_level
from nl_jax.layers.mixing import (
    empty_tails,
    mix,
    normalize_heads,
    split_heads,
)
from nl_jax.layers.norms import l2_normalize
from nl_jax.layers.rotary import rotate
from nl_jax.memory import MATRIX_RULES, MatrixRule
from nl_jax.memory.packed import Packed, documents
from pallas_kernels import delta_memory, device


@dataclasses.dataclass(frozen=True)
class MatrixMemoryConfig(MixerConfig):
    """Configuration of :class:`MatrixMemory`."""

    rule: str | MatrixRule = "delta"
    """Learning rule: a name in ``nl_jax.memory.MATRIX_RULES``, or a
    ``MatrixRule`` whose gates are in ``GATES``."""
    decay: Literal["none", "fixed", "scalar", "channel"] = "none"
    """Forgetting: none, a fixed rate per head (RetNet), a learned rate per
    token, or a learned rate per token and key channel."""
    features: Literal["l2", "elu", "rotary", "scaled"] = "l2"
    """Features of q and k: unit length; ``elu + 1``, normalising the output
    (linear attention); rotary (RetNet); or q divided by ``sqrt(d)``."""
    output_gate: bool = False
    """Whether to multiply the output by SiLU of a projection (RetNet, GLA)."""
    beta_max: float = 1.0
    """Largest step size; 2 allows state tracking."""
    chunk_size: int = 64
    """Tokens processed in parallel; results do not depend on it."""
    conv_width: int = 4
    """Width of the causal convolution on q, k and v, in tokens."""
    implementation: str | None = None
    """Backend of the recurrence, a name in
    ``pallas_kernels.delta_memory.IMPLEMENTATIONS``; ``None`` for the best."""

    def __post_init__(self):
        check_choice(
            "implementation",
            self.implementation,
            (None, *delta_memory.IMPLEMENTATIONS),
        )
        rule = self.recurrence
        for name in rule.gates:
            check_choice(f"rule {rule.name!r}: gate", name, (*GATES, "removal"))
        check_fields(self)
        if not 0 < self.beta_max <= 2:
            raise ValueError(f"beta_max={self.beta_max} must be in (0, 2]")
        if self.decay not in rule.decays:
            raise ValueError(
                f"decay={self.decay!r} does not go with rule={rule.name!r}, "
                f"which takes {' or '.join(map(repr, rule.decays))}"
            )
        if self.implementation is not None and self.decay == "channel":
            raise ValueError(
                f"implementation={self.implementation!r} must be None with "
                "decay='channel', whose recurrence has only one"
            )

    def build(self, d_model: int, n_heads: int, dtype):
        """Returns the configured module."""
        return MatrixMemory(self, d_model, n_heads, dtype)

    @property
    def recurrence(self) -> MatrixRule:
        """The rule as an object."""
        return choose("rule", self.rule, MATRIX_RULES, MatrixRule)

    @property
    def memory_fields(self) -> tuple[str, ...]:
        """Fields that queries read; none if keys turn with every token."""
        if self.features == "rotary" or self.recurrence.memories > 1:
            return ()
        return ("memory", "normalizer")

    def answer(self, memory, q):
        """Returns outputs for queries, without a write."""
        held, sums = memory["memory"], memory["normalizer"]
        q = q.astype(held.dtype)
        o = q @ held[..., 0, :, :]
        if sums is None:
            return o
        return o / (jnp.einsum("bhtd,bhd->bht", q, sums)[..., None] + 1e-6)

    def levels(self, params, state):
        """Returns the mixer's rows of the level table."""
        del params
        rule = self.recurrence
        decay = "" if self.decay == "none" else f", {self.decay} decay"
        return [
            token_level(
                name="matrix.memory",
                memory_of="keys to values",
                architecture="linear",
                objective=rule.objective,
                rule=f"{rule.name}{decay}",
                state=(state.memory, state.normalizer),
                runs=self._runs(state),
            )
        ]

    def _runs(self, state):
        """Backend of the recurrence on the available devices."""
        if self.decay == "channel":
            return ""
        if self.implementation is not None:
            return self.implementation
        heads, width = state.memory.shape[-4], state.memory.shape[-1]

        def shape(*dims, dtype=jnp.float32):
            return jax.ShapeDtypeStruct((heads, *dims), dtype)

        w, gate = shape(width, width), shape(LONG)
        x = shape(LONG, width, dtype=state.tails["q"].dtype)
        return delta_memory.implementation_for(
            device.here(),
            w,
            None,
            x,
            x,
            x,
            gate,
            gate,
            chunk_size=self.chunk_size,
        )


class MatrixMemoryState(NamedTuple):
    """Fast state, batch first."""

    memory: jax.Array
    """``[B, H, n, d, d]`` float32, ``n`` matrices per head."""
    normalizer: jax.Array | None
    """Sum of the key features, ``[B, H, d]``, for linear attention."""
    tails: dict[str, jax.Array]
    """Raw q, k, v of the last tokens, ``[B, width - 1, D]`` each."""


class MatrixMemory(Mixer):
    """A sequence mixer: a matrix memory per head, under one of many rules."""

    config: MatrixMemoryConfig

    def initial_state(self, batch_size: int) -> MatrixMemoryState:
        """Returns the empty memories of ``batch_size`` rows."""
        config, width = self.config, self.head_width
        lead = (batch_size, self.n_heads)
        return MatrixMemoryState(
            config.recurrence.init(lead, width),
            jnp.zeros((*lead, width)) if config.features == "elu" else None,
            empty_tails(
                batch_size, config.conv_width, self.d_model, self.cache_dtype
            ),
        )

    @nn.compact
    def __call__(
        self,
        x: Stream,
        state=None,
        *,
        packed: Packed | None = None,
        recall=None,
    ):
        """Maps ``x``, ``[B, T, D]``, to outputs of its shape and the state."""
        config, d, heads = self.config, self.d_model, self.n_heads
        rule = config.recurrence
        x, state, declare = self.begin(x, state)
        mixed, tails = mix(
            declare, x, state.tails, config.conv_width, packed=packed
        )
        q, k, v = (split_heads(mixed[name], heads) for name in "qkv")
        if config.features == "l2":
            q, k = l2_normalize(q), l2_normalize(k)
        elif config.features == "elu":
            q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        else:
            q = q * self.head_width**-0.5
        if rule.unit_values:
            v = l2_normalize(v)
        bonus = None
        gates = self._gates(declare, x)
        if "removal" in rule.gates:
            k, gates, bonus = _rwkv7_keys(declare, q, k, v, gates)
        if packed is not None:
            gates, k, v = _without_padding(gates, k, v, packed)
        if config.features == "rotary":
            # Positions count from the last token in the state, so precision
            # does not depend on the stream's length.
            length = x.shape[1]
            at, end = jnp.arange(1, length + 1), jnp.array([length])
            if packed is not None:
                none = jnp.zeros_like(packed.lengths)
                at = packed.place(none[:, None])[:, None] + 1
                end = packed.advance(none)[:, None, None, None]
            q, k = rotate(q, at), rotate(k, at)
        o, memory = rule.scan(
            state.memory,
            q,
            k,
            v,
            gates,
            chunk_size=config.chunk_size,
            implementation=config.implementation,
            **documents(packed, rule.scan, rule.name),
        )
        if config.features == "rotary":
            memory = rotate(memory.mT, -end).mT
        normalizer = state.normalizer
        if normalizer is not None:
            wide = normalizer.dtype
            if packed is None:
                total = normalizer[:, :, None] + jnp.cumsum(k.astype(wide), -2)
                size = jnp.einsum("bhtd,bhtd->bht", q.astype(wide), total)
                normalizer = total[:, :, -1]
            else:
                size, normalizer = _sizes(normalizer, q, k, packed)
            o = (o / (size[..., None] + 1e-6)).astype(o.dtype)
        if recall is not None:
            o = recall(o, q)
        y = normalize_heads(declare, o)
        if bonus is not None:
            y = y + bonus.swapaxes(1, 2)
        y = y.reshape(x.shape)
        if config.output_gate:
            y = y * jax.nn.silu(x @ declare.dense("w_gate", d, d, "mixer"))
        out = declare.dense("w_out", d, d, "embed", "mixer")
        return y @ out, MatrixMemoryState(memory, normalizer, tails)

    def _gates(self, declare, x):
        """Returns the rule's gates, ``[B, H, T]`` or ``[B, H, T, d]`` each."""
        config, heads = self.config, self.n_heads
        names = config.recurrence.gates
        if "removal" in names:
            alpha = declare.channel_gate("alpha", x, heads, -4.0)
            log_alpha = -(jnp.e**-0.5) * jax.nn.sigmoid(alpha)
            rate = GATES["rate"](config, declare, x, heads)
            return {"log_alpha": log_alpha, "rate": rate}
        gates = {name: GATES[name](config, declare, x, heads) for name in names}
        shape = (x.shape[0], heads, x.shape[1])
        if config.decay == "channel":
            # As in GLA, the sixteenth root limits forgetting per token.
            log_alpha = declare.channel_gate("alpha", x, heads, 0.0)
            log_alpha = jax.nn.log_sigmoid(log_alpha) / 16
        elif config.decay == "scalar":
            log_alpha = jax.nn.log_sigmoid(declare.gate("alpha", x, heads, 6.0))
        elif config.decay == "fixed":
            rates = jnp.log1p(-(2.0 ** (-5.0 - jnp.arange(heads))))
            log_alpha = jnp.broadcast_to(rates[:, None], shape)
        else:
            log_alpha = jnp.zeros(shape)
        gates["log_alpha"] = log_alpha
        return gates


GATES: dict[str, Callable[..., jax.Array]] = {
    "beta": lambda config, declare, x, heads: (
        config.beta_max * jax.nn.sigmoid(declare.gate("beta", x, heads, 0.0))
    ),
    "erase": lambda _, declare, __, heads: jax.nn.sigmoid(
        declare.per_head("erase", heads, 4.0)
    )[:, None],
    "feedback": lambda _, declare, __, heads: declare.per_head(
        "feedback", heads, 0.02
    )[:, None, None],
    "rate": lambda _, declare, x, heads: jax.nn.sigmoid(
        declare.channel_gate("rate", x, heads, 0.0)
    ),
}
"""Functions ``(config, declare, x, heads) -> gate`` for the ``gates`` of a
rule. A rule with ``"removal"`` uses the keys and retention of RWKV-7."""


def _without_padding(gates, k, v, packed):
    """Returns the gates, keys and values of tokens, zero for padding."""

    def keep(a):
        if a.shape[:3] != k.shape[:3]:
            return a  # One gate for all tokens.
        valid = packed.valid[:, None]
        return jnp.where(valid[..., *(None,) * (a.ndim - 3)], a, 0)

    return {name: keep(a) for name, a in gates.items()}, keep(k), keep(v)


def _sizes(normalizer, q, k, packed):
    """Returns ``q`` times the sum of its document's keys, and the sum after."""
    wide = normalizer.dtype
    valid = packed.valid[:, None]
    size, total, _ = delta_memory.delta_scan(
        normalizer[..., None],
        None,
        k.astype(wide),
        valid[..., None].astype(wide),
        q.astype(wide),
        jnp.zeros_like(valid, wide),
        None,
        resets=packed.starts[:, None],
        read="after",
        implementation="chunked",
    )
    return size[..., 0], total[..., 0]


def _rwkv7_keys(declare, q, k, v, gates):
    """Returns the written key, the gates with the erased key, and the bonus."""
    heads, d = k.shape[1], k.shape[-1]

    def per_channel(name, value):
        init = nn.initializers.constant(value)
        leaf = declare(name, init, (heads, d), ("heads", None))
        return leaf[:, None]

    rate = gates["rate"].astype(k.dtype)
    removal = l2_normalize(k * per_channel("removal", 1.0))
    k = k * (1 + (rate - 1) * per_channel("mixing", 1.0))
    score = (q * k * per_channel("bonus", 0.1)).sum(-1, keepdims=True)
    gates = gates | {"removal": removal, "rate": rate}
    return k, gates, score * v
