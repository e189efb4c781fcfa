"""Conformance checks for custom memories."""

import jax
import jax.numpy as jnp

from nl_jax.checks import choose
from nl_jax.memory.architectures import ARCHITECTURES
from nl_jax.memory.associative import associative_memory
from nl_jax.memory.objective import OBJECTIVES
from nl_jax.memory.retention import RETENTIONS
from nl_jax.memory.rule import RULES, Gates


def check_memory(
    architecture="linear",
    objective="l2",
    rule="gd",
    *,
    width: int = 4,
    length: int = 7,
    **options,
) -> None:
    r"""Runs a memory on random tokens and compares it with its definition.

    Any split of the tokens gives the same outputs and state; no output depends
    on a later token; gradients reach the initial weights and are finite; and
    plain gradient descent with the gates' decay equals, by autodiff and to the
    precision of the default float,

    .. math:: W_t = \alpha_t W_{t-1} - \eta_t
        \nabla_W \mathcal{L}(M_W(k_t); v_t) |_{W_\text{start}}

    Args:
        architecture: as in :func:`associative_memory`.
        objective: as in :func:`associative_memory`.
        rule: as in :func:`associative_memory`.
        width: width of keys and values.
        length: number of tokens.
        **options: other arguments of :func:`associative_memory`.

    Raises:
        AssertionError: naming the property that fails.

    Example:
        >>> from nl_jax.memory import Objective
        >>> cosh = Objective("cosh", lambda y, v: jnp.cosh(y - v).sum(-1))
        >>> check_memory("mlp", cosh, chunk_size=3)
    """
    arch = choose("architecture", architecture, ARCHITECTURES)
    goal = choose("objective", objective, OBJECTIVES)
    step = choose("rule", rule, RULES)
    keep = choose("retention", options.get("retention", "decay"), RETENTIONS)
    memory = associative_memory(arch, goal, step, **options)
    dtype = jnp.result_type(float)
    bound = 1e3 * jnp.finfo(dtype).eps
    keys = jax.random.split(jax.random.key(0), 6)
    weights = arch.init(keys[0], width, width, expansion=2, dtype=dtype)
    k, v, q = jax.random.normal(keys[1], (3, length, width), dtype)
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    gates = _draw(keys[2:], length, width, dtype, goal, keep, options)

    scan = jax.jit(memory.scan)

    def run(weights, k, *pieces):
        state, outs = memory.init(weights), []
        for at, to in pieces:
            part = jax.tree.map(lambda a: a[at:to], (v, q, gates))  # noqa: B023
            o, state = scan(state, k[at:to], *part)
            outs.append(o)
        return jnp.concatenate(outs), state.memory.weights

    def near(a, b, message):
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
            scale = jnp.maximum(1.0, jnp.abs(y).max())
            if not jnp.abs(x - y).max() <= bound * scale:  # NaN too.
                raise AssertionError(message)

    whole = run(weights, k, (0, length))
    tokens = [(t, t + 1) for t in range(length)]
    near(run(weights, k, *tokens), whole, "token by token is another memory")
    half = length // 2
    pieces = ((0, half), (half, length))
    near(run(weights, k, *pieces), whole, "a split makes another memory")
    changed, _ = run(weights, k.at[-1].multiply(-2), (0, length))
    near(changed[:-1], whole[0][:-1], "an output depends on a later key")
    grads = jax.jit(
        jax.grad(lambda w: jnp.square(run(w, k, (0, length))[0]).sum())
    )(weights)
    for index, g in enumerate(grads):
        if not (jnp.isfinite(g).all() and jnp.abs(g).max() > 0):
            raise AssertionError(f"no gradient of the initial weights {index}")
    if step.delta or step.normalized or not keep.linear or keep.mean:
        return
    if step.window > 1 or step.orthogonal or gates.log_mu is not None:
        return
    extra = () if gates.threshold is None else (gates.threshold,)
    now = start = weights

    @jax.jit
    @jax.grad
    def slope(w, k, v, *extra):
        y = arch.apply(w, k[None])
        return goal.loss(y, v[None], *(a[None] for a in extra))[0]

    for t in range(length):
        if t % options.get("chunk_size", 64) == 0:
            start = now
        slopes = slope(start, k[t], v[t], *(a[t] for a in extra))
        now = tuple(
            jnp.exp(gates.log_alpha[t]) * w - gates.eta[t] * g
            for w, g in zip(now, slopes, strict=True)
        )
    near(whole[1], now, "the steps are not gradient descent on the objective")


def _draw(keys, length, width, dtype, goal, keep, options):
    eta, alpha, more = jax.random.uniform(
        keys[0], (3, length), dtype, 0.05, 0.2
    )
    log_alpha = -alpha
    if keep.channels:
        log_alpha = -jax.random.uniform(keys[1], (length, width), dtype)
    return Gates(
        eta,
        log_alpha,
        jnp.log(5 * more) if options.get("momentum") else None,
        None,
        5 * more if goal.threshold else None,
    )
