"""Generating memories of self-modifying Titans, which make q, k, v and gates.

Pure functions on one sequence: ``L`` tokens of a piece, ``T`` of a call, ``H``
heads of width ``d``, ``n`` generating memories.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nl_jax.layers.norms import l2_normalize, rms_norm
from nl_jax.layers.short_conv import short_conv
from nl_jax.memory import Gates, MemoryState
from nl_jax.memory.walk import chunk_scan


class Generators(NamedTuple):
    """Slow parameters that turn memory outputs into q, k, v and gates."""

    projections: dict[str, jax.Array]
    """``[D, D]`` for each of q, k, v that is not made of the tokens alone."""
    kernels: dict[str, jax.Array]
    """Short convolution of each of q, k, v, ``[width, D]``; none if values
    are of the stream."""
    gates: dict[str, tuple[jax.Array | None, jax.Array]]
    """Readout ``[H, d]``, if learned, and bias ``[H]`` of each gate."""
    heads: int


class Generated(NamedTuple):
    """Keys, values, queries and gates of the answering memory."""

    k: jax.Array
    v: jax.Array
    q: jax.Array
    """``[H, T, d]`` each."""
    gates: Gates
    """``[H, T]`` each."""


def generate(parts, config, x, memories, tails, **place):
    """Generates q, k, v and gates while the generators learn.

    Args:
        parts: slow parameters.
        config: the layer's ``TitansConfig``.
        x: tokens, and inputs of the values or ``None`` if they are made of
            the tokens; ``[T, D]`` each.
        memories: the generators' ``MemoryState``, weights ``[n, H, ...]``.
        tails: raw q, k, v before ``x``, ``[width - 1, D]``; what has no
            convolution stays as it is.
        **place: ``position``, or ``layout``, ``initial`` and ``drop_start``,
            see :func:`nl_jax.memory.walk.chunk_scan`; ``initial`` is as
            ``(memories, tails)``.

    Returns:
        ``(Generated, memories, tails)``.
    """
    learner = config.generators

    def step(carry, tokens, valid, closes):
        memories, tails = carry
        made, tails = _make(parts, config, memories.start, tails, tokens, valid)
        k, v, gates = jax.tree.map(
            lambda a: a[None], (made.k, made.v, made.gates)
        )
        _, memories = learner.step(
            memories, k, v, None, gates, valid=valid, closes=closes
        )
        return (memories, tails), _exchange(made)

    (memories, tails), made = chunk_scan(
        step,
        (memories, tails),
        _project(parts, x),
        size=config.chunk_size,
        remat=config.remat,
        **{"drop_start": True} | place,
    )
    return _exchange(made), memories, tails


def read_shared(
    parts, config, x, memories, memory, tails, initial=None, **place
):
    r"""Runs all memories at once, as one shared recurrence.

    With targets :math:`M_\square v` frozen at the chunk's start, every linear
    memory is its start times the same matrix,
    :math:`M_{\square,t} = M_{\square,0} G_t`, whose gradient is that of an
    identity memory: ``objective.gradient(k, v)``.

    Takes the arguments of :func:`generate` and the answering ``memory``, also
    in ``initial``, for a ``config`` that ``shares_recurrence``;
    ``memories.weights`` is ``G`` and ``memory.weights`` is empty. Returns
    ``(y, q, memories, memory, tails)``, outputs and queries ``[H, T, d]``.
    """
    (product,) = memories.weights
    identity = jnp.broadcast_to(
        jnp.eye(product.shape[-1], dtype=product.dtype), product.shape
    )

    def step(carry, tokens, valid, closes):
        starts, answers, product, tails = carry
        made, tails = _make(parts, config, (starts,), tails, tokens, valid)
        o, state = config.memory.step(
            MemoryState((identity,), (product,), None),
            *made,
            valid=valid,
            closes=closes,
        )
        y = config.memory_architecture.apply((answers,), o)
        (product,) = state.weights
        starts, answers = (
            jnp.where(closes, jnp.matmul(product, w), w)
            for w in (starts, answers)
        )
        product = jnp.where(closes, identity, product)
        return (starts, answers, product, tails), _exchange((y, made.q))

    def carried(memories, memory, tails):
        return *memories.start, *memory.start, *memories.weights, tails

    (starts, answers, product, tails), read = chunk_scan(
        step,
        carried(memories, memory, tails),
        _project(parts, x),
        size=config.chunk_size,
        remat=config.remat,
        initial=None if initial is None else carried(*initial),
        **place,
    )
    memories = memories._replace(start=(starts,), weights=(product,))
    memory = memory._replace(start=(answers,))
    return *_exchange(read), memories, memory, tails


def _project(parts, x):
    """Returns the tokens, and what else q, k and v are made of, ``[T, D]``."""
    x, values = x
    made = {n: x @ w.astype(x.dtype) for n, w in parts.projections.items()}
    return x, made if values is None else made | {"v": values}


def _exchange(made):
    """Swaps the axes of heads and tokens."""
    return jax.tree.map(lambda a: a.swapaxes(0, 1), made)


def _make(parts, config, start, tails, tokens, valid):
    """Returns a piece's ``(Generated, tails)`` from its ``start`` weights."""
    x, raws = tokens
    length = x.shape[0]

    def per_head(a):
        return a.reshape(length, parts.heads, -1).swapaxes(0, 1)

    names = config.generated
    inputs = per_head(x)[None]
    if any(name in raws for name in names):
        inputs = jnp.stack([per_head(raws.get(name, x)) for name in names])
    outputs = config.memory_architecture.apply(start, inputs)
    outputs = dict(zip(names, outputs, strict=True))
    mixed, after = {}, dict(tails)
    for name in ("q", "k", "v"):
        kernel = parts.kernels.get(name)
        if kernel is None:  # Of the stream, which has been activated.
            made = outputs.get(name)
            mixed[name] = per_head(raws[name]) if made is None else made
            continue
        raw = raws.get(name)
        if name in outputs:
            raw = outputs[name].swapaxes(0, 1).reshape(length, -1)
        raw, after[name] = _convolve(raw, kernel, tails[name], valid)
        mixed[name] = per_head(jax.nn.silu(raw))
    q, k = l2_normalize(mixed["q"]), l2_normalize(mixed["k"])
    v = mixed["v"]
    if config.value_norm == "input":
        v = l2_normalize(v)  # Unit length bounds the shared recurrence.
    elif not config.literal:
        v = rms_norm(v)
    return Generated(k, v, q, _gates(parts, config, outputs)), after


def _gates(parts, config, outputs):
    def logit(name, source):
        readout, bias = parts.gates[name]
        if not config.literal and readout is not None:
            source = rms_norm(source)
        source = source.astype(jnp.promote_types(source.dtype, jnp.float32))
        if readout is None:
            read = source.sum(-1) / source.shape[-1] ** 0.5
        else:
            read = jnp.einsum("htd,hd->ht", source, readout)
        return read + bias[:, None]

    eta = config.eta_max * jax.nn.sigmoid(logit("eta", outputs["eta"]))
    log_alpha = jnp.zeros_like(eta)
    if config.decay:
        log_alpha = jax.nn.log_sigmoid(logit("alpha", outputs["alpha"]))
    log_mu = None
    if config.momentum:
        # The paper has no memory for the momentum's gate; it shares eta's.
        log_mu = jax.nn.log_sigmoid(logit("mu", outputs["eta"]))
    return Gates(eta * jnp.exp(log_alpha), log_alpha, log_mu)


def _convolve(raw, kernel, tail, valid):
    """Applies the short convolution to a piece that may have empty slots."""
    width = tail.shape[0]
    held = tail.astype(raw.dtype)
    extended = jnp.concatenate([jnp.zeros_like(held), raw])
    first: Any = 0
    end = raw.shape[0]
    if valid is not None:
        first = jnp.argmax(valid)
        end = first + valid.sum()
    extended = jax.lax.dynamic_update_slice_in_dim(extended, held, first, 0)
    y = short_conv(extended[width:], kernel.astype(raw.dtype), extended[:width])
    after = jax.lax.dynamic_slice_in_dim(extended, end, width, 0)
    return y, after.astype(tail.dtype)
