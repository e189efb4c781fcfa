"""Floating-point operations of programs and of training steps.

Only matrix products count, as is usual for model FLOPs utilisation (MFU; PaLM,
arXiv 2204.02311, appendix B): a product of ``[m, k]`` and ``[k, n]`` takes
``2 m k n``. Additions and nonlinearities are a few per cent more, which
accelerators do in other units.
"""

import math
from typing import Any

import jax
from jax.extend import core

from nl_jax.layers.mixers.attention import AttentionState
from nl_jax.layers.mixers.matrix_memory import MatrixMemoryState
from nl_jax.layers.mixers.memory_caching import CachedConfig
from nl_jax.layers.mixers.titans import TitansState
from nl_jax.memory import MemoryState
from nl_jax.models import LanguageModel


def model_flops(model: LanguageModel, length: int) -> float:
    r"""Returns the operations of training by a model's equations, per token.

    They are three times those of the forward pass, since the derivative of a
    product is two products; what is computed again does not count. A matrix of
    :math:`n` parameters takes :math:`2 n`. Attention multiplies by the keys and
    the values of the sequence, or of two windows. A memory of :math:`n` weights
    takes :math:`2 n` each to read, to predict a key's value and to write; the
    same once more for a target of its own and for each layer but the first,
    through which its gradient goes, and twice for momentum, which is read and
    written too; and, since :math:`C` tokens at a time are written,
    :math:`4 C` for each of a matrix's rows and columns. Tokens also
    read the memories kept of earlier segments. Levels that learn in
    context also need the gradient by which they step.

    Args:
        model: the model.
        length: tokens of a sequence.

    Example:
        >>> from nl_jax.models import build
        >>> model = build("transformer", vocab_size=256, d_model=128)
        >>> round(model_flops(model, 256))
        4147200
    """
    config, variables = model.config, model.parameter_shapes()
    params = variables["params"]
    fast: Any = ()
    if model.learns_in_context:
        fast, _ = jax.eval_shape(model.fast_parameters, params)
    state = jax.eval_shape(lambda v: model.init_state(v, 1).mixers, variables)
    head = math.prod(params.get("head", params["embedding"]).shape)
    leaves = jax.tree.leaves(params["blocks"])
    blocks = sum(math.prod(leaf.shape) for leaf in leaves if leaf.ndim == 3)
    memories = _memories(state, config, length)
    forward = 2 * (head + blocks) + memories
    weights = sum(leaf.size for leaf in jax.tree.leaves(fast))
    if config.cms.goal.replays:
        # Back to the first block that learns, and to its weights.
        share = (config.cms.layers or config.n_layers) / config.n_layers
        forward += 2 * (head + weights)
        forward += share * (2 * blocks + 2 * memories)
    elif model.learns_in_context:
        # For keys, and for the gradient, one layer back.
        forward += 14 / 3 * weights
    return 3.0 * forward


def _memories(state, config, length) -> float:
    """Returns the operations of mixers on what they remember, per token."""
    kinds = AttentionState, MatrixMemoryState, TitansState, MemoryState
    mixer, total = config.choices, 0.0
    if isinstance(mixer, CachedConfig):
        total, mixer = _recall(state, mixer.cache, length), mixer.inner
    for part in jax.tree.leaves(state, is_leaf=lambda p: isinstance(p, kinds)):
        match part:
            case AttentionState(keys=keys):
                _, layers, window, _, width = keys.shape
                seen = length if length <= window else 2 * window
                total += 4 * layers * seen * config.n_heads * width
            case MatrixMemoryState(memory=memory):
                chunk = min(length, mixer.chunk_size)
                total += _learning([memory], 3, chunk)
            case TitansState(generators=made, memory=memory):
                for one in (made, memory):
                    passes = 4 + 2 * (one.momentum is not None)
                    total += _learning(one.start, passes, mixer.cycle)
            case MemoryState(start=start, momentum=momentum):
                passes = 3 + 2 * (momentum is not None)
                total += _learning(start, passes, mixer.cycle)
    return total


def _recall(state, cache, length) -> float:
    """Returns the operations of reads of the memories kept so far."""
    segments = range(-(-length // cache.segment))
    held = sum(min(s, cache.segments) for s in segments) / len(segments)
    kept = jax.tree.leaves((state.kept, state.means))
    return 2 * held / cache.segments * sum(leaf.size for leaf in kept)


def _learning(weights, passes, chunk) -> float:
    total = 0.0
    for layer, w in enumerate(weights):
        rows, columns = w.shape[-2:]
        inside = 4 * chunk * (1 / rows + 1 / columns)
        total += w.size * (2 * (passes + (layer > 0)) + inside)
    return total


def count_flops(jaxpr: Any, platform: str = "tpu") -> int:
    """Counts the matrix products of a program, over all devices.

    A scan's body counts as often as it runs, which XLA's own analysis leaves
    out. A ``while`` loop, whose trips are unknown, counts once; of the branches
    of a condition the largest counts.

    Args:
        jaxpr: of a traced program, such as ``jax.jit(f).trace(x).jaxpr``.
        platform: decides where the program depends on it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def power(a):
        ...     return jax.lax.scan(lambda x, _: (x @ a, None), a, None, 5)[0]
        >>> count_flops(jax.make_jaxpr(power)(jnp.ones((4, 4))))
        640
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_of_equation(eqn, platform) for eqn in jaxpr.eqns)


def _of_equation(eqn, platform):
    params = eqn.params
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            summed = math.prod(left[d] for d in contracted)
            return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
        case "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = params["dimension_numbers"].rhs_spec[0]
            summed = math.prod(kernel) // kernel[features]
            return 2 * math.prod(eqn.outvars[0].aval.shape) * summed
        case "cond":
            branches = [count_flops(b, platform) for b in params["branches"]]
            chosen = params.get("branches_platforms")
            for index, names in enumerate(chosen or ()):
                if names is None or platform in names:
                    return branches[index]
            return max(branches)
    inner = sum(
        count_flops(value, platform)
        for value in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
        if _is_jaxpr(value)
    )
    return inner * _times(eqn)


def _is_jaxpr(value):
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def _times(eqn) -> int:
    """Returns how often the program inside an equation runs."""
    params = eqn.params
    match eqn.primitive.name:
        case "scan":
            return params["length"]
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
        case "shard_map":
            mesh = params["mesh"].shape
            return math.prod(mesh[a] for a in params["newly_manual_axes"])
    return 1
