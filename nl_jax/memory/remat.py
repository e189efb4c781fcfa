"""What the backward pass recomputes: parts of blocks, and steps of scans.

The derivative of a scan needs the carry before every step: here fast weights,
one copy of a memory per chunk. Two nested scans keep the carry of every
``n``-th step and recompute the others, one group at a time (Chen et al., arXiv
1604.06174): ``T / n + n`` carries instead of ``T``, for one more forward pass.
With ``n`` near the root of ``T``, memory grows with that root.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count
from pallas_kernels.restart import SAVED

Carry = TypeVar("Carry")
Remat = Literal["none", "blocks", "dots", "kernels"]
"""What the backward pass computes again; see :func:`recompute`."""
_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_POLICIES = {
    "blocks": None,
    "dots": _products,
    "kernels": jax.checkpoint_policies.save_from_both_policies(
        _products, jax.checkpoint_policies.save_only_these_names(SAVED)
    ),
}


def recompute(function: Callable, what: Remat) -> Callable:
    """Has the backward pass compute activations inside ``function`` again.

    Args:
        function: one block of a model.
        what: ``"none"`` keeps everything; ``"blocks"`` keeps only what goes
            into ``function``, for one more forward pass; ``"dots"`` keeps
            products with parameters, too, so that only norms, attention and
            memories run again; ``"kernels"`` keeps, besides, what memories
            with a kernel return, on all platforms: they run once.

    Example:
        >>> square = recompute(lambda x: x * x, "blocks")
        >>> float(jax.grad(square)(3.0))
        6.0
    """
    if what == "none":
        return function
    return jax.checkpoint(function, policy=_POLICIES[what])


def remat_scan(
    body: Callable[[Carry, Any], tuple[Carry, Any]],
    init: Carry,
    xs: Any,
    *,
    every: int | None = None,
) -> tuple[Carry, Any]:
    """Scans like ``jax.lax.scan``, recomputing ``body`` in the backward pass.

    Args:
        body: maps ``(carry, x)`` to ``(carry, y)``.
        init: the first carry.
        xs: arrays, scanned along their first axis.
        every: steps per carry kept: 1 keeps all, for one more forward pass;
            more than 1 costs two; 0 also keeps the activations inside ``body``,
            for none. ``None`` is the root of the number of steps, rounded up.

    Returns:
        ``(carry, ys)`` as ``jax.lax.scan`` returns them.

    Raises:
        ValueError: for a negative ``every``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def body(carry, x):
        ...     return carry * x, carry
        >>> def product(xs):
        ...     return remat_scan(body, 1.0, xs, every=2)[0]
        >>> jax.grad(product)(jnp.array([2.0, 3.0, 4.0])).tolist()
        [12.0, 8.0, 6.0]
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    if every is None:
        every = 1
        while every * every < steps:
            every += 1
    check_count("every", every, 0)
    if not every:
        return jax.lax.scan(body, init, xs)
    # Scans need no barrier against CSE, which would prevent fusions.
    step = jax.checkpoint(body, prevent_cse=False)
    groups, rest = divmod(steps, every)
    if every == 1 or groups < 2:
        return jax.lax.scan(step, init, xs)

    def group(carry, xs):
        return jax.lax.scan(step, carry, xs)

    def cut(a):
        return a[: groups * every].reshape(groups, every, *a.shape[1:])

    carry, ys = jax.lax.scan(
        jax.checkpoint(group, prevent_cse=False), init, jax.tree.map(cut, xs)
    )
    ys = jax.tree.map(flat, ys)
    if rest:
        last = jax.tree.map(lambda a: a[-rest:], xs)
        carry, more = group(carry, last)
        ys = jax.tree.map(lambda *a: join_parts(a), ys, more)
    return carry, ys


def flat(a: jax.Array) -> jax.Array:
    """Joins the first two axes."""
    return a.reshape(-1, *a.shape[2:])


def join_parts(parts):
    """Joins arrays along the first axis."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
