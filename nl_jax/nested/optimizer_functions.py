"""What an optimizer's functions say that its state does not."""

import functools
from typing import Any

import jax
import numpy as np
import optax

_LINEAR = {
    *("add", "broadcast_in_dim", "convert_element_type", "copy", "neg"),
    *("reshape", "squeeze", "sub", "transpose"),
}
"""Operations whose result is zero where all their operands are."""


def accumulations(optimizer: Any) -> list[int]:
    """Returns the calls per step of each ``optax.MultiSteps`` in an optimizer.

    States do not hold this number. It is what the object says before its first
    step, and is found by way of the functions that refer to it.

    Example:
        >>> chain = optax.chain(optax.MultiSteps(optax.sgd(1.0), 4))
        >>> accumulations(chain)
        [4]
    """

    def parts(item):
        if isinstance(item, optax.MultiSteps):
            return [item._opt]
        if isinstance(item, optax.GradientTransformation):
            return [item.init]
        if isinstance(item, functools.partial):
            return [item.func, *item.args, *item.keywords.values()]
        if isinstance(item, dict):  # Keys of pytrees are sorted.
            return [item[key] for key in sorted(item, key=str)]
        if isinstance(item, (list, tuple)):
            return item
        cells = getattr(item, "__closure__", None) or ()
        return [getattr(item, "__self__", None), *map(_content, cells)]

    def walk(item, *above):
        if any(item is other for other in above):
            return []
        found = [item] if isinstance(item, optax.MultiSteps) else []
        for part in parts(item):
            new = walk(part, item, *above)
            # Several variables of a function, or functions of a level, may
            # lead there.
            if callable(item) or hasattr(item, "_fields"):
                new = [i for i in new if all(i is not old for old in found)]
            found += new
        return found

    return [int(item._every_k_schedule(0)) for item in walk(optimizer)]


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # It is empty as yet.
        return None


def still_parameters(
    optimizer: optax.GradientTransformation, state: Any, params: Any
) -> list[bool]:
    """Says for each parameter whether its update is always zero.

    Optimizers do not tell. Their update is traced, not run, and zeros are
    followed through it. An optimizer that needs more than gradients, a loss for
    instance, counts as moving everything.

    Args:
        optimizer: the optimizer.
        state: its state, or the shapes of it.
        params: parameters that it is applied to, or their shapes.

    Example:
        >>> still_parameters(optax.set_to_zero(), optax.EmptyState(), [1.0])
        [True]
    """

    def update(gradients, state, params):
        return optimizer.update(gradients, state, params)[0]

    try:
        closed = jax.make_jaxpr(update)(params, state, params)
    except Exception:  # noqa: BLE001 - whatever a user's optimizer raises.
        return [False] * len(jax.tree.leaves(params))
    return _zeros(closed.jaxpr, [False] * len(closed.jaxpr.invars))


def _zeros(jaxpr, given):
    """Which outputs are zero, if the ``given`` inputs are."""
    zero = {id(v) for v, z in zip(jaxpr.invars, given, strict=True) if z}

    def known(variable):
        value = getattr(variable, "val", None)  # That of a literal.
        return id(variable) in zero or (value is not None and not np.any(value))

    for eqn in jaxpr.eqns:
        given = [known(v) for v in eqn.invars]
        kind, inner = eqn.primitive.name, eqn.params.get("jaxpr")
        if kind == "cond":
            cases = [_zeros(b.jaxpr, given[1:]) for b in eqn.params["branches"]]
            out = [*map(all, zip(*cases, strict=True))]
        elif kind in ("jit", "pjit"):
            out = _zeros(inner.jaxpr, given)
        elif kind == "mul":
            out = [any(given)]
        elif kind == "select_n":
            out = [all(given[1:])]
        else:
            out = [kind in _LINEAR and all(given)] * len(eqn.outvars)
        zero |= {id(v) for v, z in zip(eqn.outvars, out, strict=True) if z}
    return [known(v) for v in jaxpr.outvars]
