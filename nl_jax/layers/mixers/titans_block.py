"""What one block of tokens does in a self-modifying Titans; pure functions.

Shapes are those of one sequence: ``L`` tokens, ``H`` heads of width ``d``,
``n`` generating memories.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.layers.short_conv import short_conv
from nl_jax.memory.associative import MemoryState, advance
from nl_jax.memory.rule import Gates


class Generators(NamedTuple):
    """Slow parameters that turn raw memory outputs into q, k, v and gates."""

    projections: dict[str, jax.Array]
    """``[D, D]`` for each of q, k, v that no memory makes."""
    kernels: dict[str, jax.Array]
    """Short convolution of each of q, k, v, ``[width, D]``."""
    gates: dict[str, tuple[jax.Array, jax.Array]]
    """Readout ``[H, d]`` and bias ``[H]`` of each gate."""
    heads: int


class Generated(NamedTuple):
    """What the generators hand to the answering memory, time first."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    """``[L, H, d]`` each."""
    gates: Gates
    """``[L, H]`` each."""


def generate_block(parts, config, state, tails, x, raws, valid, closes):
    """Generates q, k, v and gates for a block and updates the generators.

    Args:
        parts: slow parameters.
        config: the block's ``TitansConfig``.
        state: the generators, weights ``[n, H, ...]``.
        tails: raw q, k, v before the block, ``[width - 1, D]``.
        x: tokens, ``[L, D]``.
        raws: those of q, k, v that no memory makes, ``[L, D]``.
        valid: ``[L]`` or ``None`` if every slot holds a token.
        closes: whether the block ends a chunk.

    Returns:
        ``(state, tails, Generated)``.
    """
    architecture, rule = config.memory_architecture, config.learning_rule
    made, after = _generate(parts, config, state.start, tails, x, raws, valid)
    _, k, v, gates = made
    # Generators feed on what they write: targets as long as the keys let a
    # write weigh no more than what it joins.
    target = _target(config, architecture, state.start, v[None], l2_normalize)
    shared = Gates(*(None if g is None else g[None] for g in gates))
    writes = rule.writes(
        architecture,
        config.inner_objective,
        state.start,
        k[None],
        target,
        shared,
    )
    _, state = advance(
        architecture, state, writes, shared, None, valid=valid, closes=closes
    )
    made = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), made)
    return state, after, made


def answer_block(config, state, made, valid, closes):
    """Writes a block into the answering memory and reads it causally.

    Args:
        config: the block's ``TitansConfig``.
        state: the memory, weights ``[H, ...]``.
        made: a ``Generated`` of the block.
        valid: ``[L]`` or ``None``.
        closes: whether the block ends a chunk.

    Returns:
        ``(state, y)``, outputs ``[L, H, d]``.
    """
    *tokens, gates = jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), made)
    y, state = answer(config, state, tokens, gates, valid=valid, closes=closes)
    return state, y.swapaxes(0, 1)


def answer(config, state, tokens, gates, **options):
    """The answering memory on q, k and v, ``[..., L, d]``: ``(y, state)``.

    Args:
        config: the block's ``TitansConfig``.
        state: the memory.
        tokens: q, k and v.
        gates: ``[..., L]`` each.
        **options: of ``advance``.
    """
    architecture = config.memory_architecture
    q, k, v = tokens
    target = _target(config, architecture, state.start, v, rms_norm)
    writes = config.learning_rule.writes(
        architecture, config.inner_objective, state.start, k, target, gates
    )
    return advance(
        architecture, state, writes, gates, q, read=config.read, **options
    )


def shared_block(parts, config, carry, x, raws, valid, closes):
    r"""A block of all memories at once, where they share one recurrence.

    With the targets :math:`M_\square v` frozen at the chunk's start, every
    linear memory is its start times the same matrix,
    :math:`M_{\square,t} = M_{\square,0} G_t`, whose surprise is that of a
    memory that is the identity: ``objective.gradient(k, v)``.

    Args:
        parts: slow parameters.
        config: a ``TitansConfig`` with ``shares_recurrence``.
        carry: ``(starts, answers, product, tails)``: weights at the chunk's
            start of the generators ``[n, H, d, d]`` and of the answering
            memory ``[H, d, d]``, and ``G``, ``[H, d, d]``.
        x: tokens, ``[L, D]``.
        raws: those of q, k, v that no memory makes, ``[L, D]``.
        valid: ``[L]`` or ``None``.
        closes: whether the block ends a chunk.

    Returns:
        ``(carry, y)``, outputs ``[L, H, d]``.
    """
    starts, answers, product, tails = carry
    architecture = config.memory_architecture
    made, tails = _generate(parts, config, (starts,), tails, x, raws, valid)
    q, k, v, gates = made
    identity = jnp.broadcast_to(
        jnp.eye(k.shape[-1], dtype=product.dtype), product.shape
    )
    writes = config.learning_rule.writes(
        architecture, config.inner_objective, (identity,), k, v, gates
    )
    o, state = advance(
        architecture,
        MemoryState((identity,), (product,), None),
        writes,
        gates,
        q,
        read=config.read,
        valid=valid,
        closes=closes,
    )
    y = architecture.apply((answers,), o)
    (product,) = state.weights
    starts, answers = (
        jnp.where(closes, jnp.matmul(product, w), w) for w in (starts, answers)
    )
    product = jnp.where(closes, identity, product)
    return (starts, answers, product, tails), y.swapaxes(0, 1)


def _generate(parts, config, start, tails, x, raws, valid):
    """q, k, v and gates, ``[H, L, ...]``, and the convolutions' new tails."""
    length = x.shape[0]
    per_head = x.reshape(length, parts.heads, -1).swapaxes(0, 1)
    outputs = dict(
        zip(
            config.generated,
            config.memory_architecture.apply(start, per_head[None]),
            strict=True,
        )
    )
    mixed, after = {}, {}
    for name in ("q", "k", "v"):
        raw = raws.get(name)
        if raw is None:
            raw = outputs[name].swapaxes(0, 1).reshape(length, -1)
        y, after[name] = _convolve(raw, parts.kernels[name], tails[name], valid)
        y = jax.nn.silu(y)
        mixed[name] = y.reshape(length, parts.heads, -1).swapaxes(0, 1)
    q, k = l2_normalize(mixed["q"]), l2_normalize(mixed["k"])
    v = mixed["v"]
    if config.value_norm == "input":
        v = l2_normalize(v)  # Unit length keeps the shared recurrence tame.
    elif not config.literal:
        v = rms_norm(v)

    return Generated(q, k, v, _gates(parts, config, outputs)), after


def _target(config, architecture, weights, v, normalize):
    """The self-generated value ``M(v)`` of eq. 87."""
    target = architecture.apply(weights, v)
    raw = config.literal or config.value_norm == "input"
    return target if raw else normalize(target)


def _gates(parts, config, outputs):
    def logit(name, source):
        readout, bias = parts.gates[name]
        if not config.literal:
            source = rms_norm(source)
        source = source.astype(jnp.promote_types(source.dtype, jnp.float32))
        return jnp.einsum("htd,hd->ht", source, readout) + bias[:, None]

    eta = config.eta_max * jax.nn.sigmoid(logit("eta", outputs["eta"]))
    log_alpha = jnp.zeros_like(eta)
    if config.decay:
        log_alpha = jax.nn.log_sigmoid(logit("alpha", outputs["alpha"]))
    log_mu = None
    if config.momentum:
        # The paper names no memory for the momentum's gate: it shares eta's.
        log_mu = jax.nn.log_sigmoid(logit("mu", outputs["eta"]))
    return Gates(eta * jnp.exp(log_alpha), log_alpha, log_mu)


def _convolve(raw, kernel, tail, valid):
    """Short convolution of a block whose tokens may not fill it."""
    width = tail.shape[0]
    extended = jnp.concatenate([jnp.zeros_like(tail), raw])
    first, end = 0, raw.shape[0]
    if valid is not None:
        first = jnp.argmax(valid)
        end = first + valid.sum()
    tail = tail.astype(raw.dtype)
    extended = jax.lax.dynamic_update_slice_in_dim(extended, tail, first, 0)
    y = short_conv(extended[width:], kernel.astype(raw.dtype), extended[:width])
    return y, jax.lax.dynamic_slice_in_dim(extended, end, width, 0)
