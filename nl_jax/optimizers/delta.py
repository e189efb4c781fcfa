r"""Delta gradient descent as an optimizer of any model (eq. 56-57, 112-121).

arXiv 2512.24695. For a layer :math:`y = W x` it is the exact minimiser of

.. math:: \tfrac12 \langle \|W x - u\|^2 \rangle
   + \tfrac{1}{2\eta} \|W - W_t\|^2, \qquad u = -\nabla_y L(W_t; x),

which for one sample is :math:`W \leftarrow W (I - \eta' x x^\top) - \eta'
\nabla_y L\, x^\top` with :math:`\eta' = \eta / (1 + \eta \|x\|^2)`, and for a
batch a solve with :math:`I + \eta \langle x x^\top \rangle`. It needs each
layer's inputs, which :func:`with_layer_inputs` records in any Linen model.
Cost: one solve per layer, of the smaller of batch size and width. Weakness:
weights decay along common inputs, whatever the loss.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import NO_PARAMS, check_choice, check_real, leaf_name
from nl_jax.optimizers.matrices import widen
from nl_jax.optimizers.rate import check_rate
from nl_jax.optimizers.sharding import keep_shardings


class DeltaGradientDescentState(NamedTuple):
    """State of :func:`delta_gradient_descent`."""

    count: jax.Array  # type: ignore[assignment]
    """Number of steps taken, int32 scalar."""


def with_layer_inputs(apply: Callable, params: Any) -> Callable:
    """Makes ``apply`` return the inputs of its dense layers, too.

    Args:
        apply: function ``(variables, ...) -> output`` of a Linen module that
            calls its ``nn.Dense`` layers directly, not under ``nn.scan`` or
            ``nn.remat``.
        params: the parameters, ``variables["params"]``, or their shapes.

    Returns:
        A function ``(variables, ...) -> (output, layer_inputs)``, where
        ``layer_inputs`` is a tree like ``params`` with ``[N, d_in]`` for each
        kernel and ``None`` elsewhere. The inputs of a layer that is called
        twice are concatenated.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> model, x = nn.Dense(3), jnp.ones((4, 2))
        >>> variables = model.init(jax.random.key(0), x)
        >>> apply = with_layer_inputs(model.apply, variables["params"])
        >>> y, inputs = apply(variables, x)
        >>> y.shape, inputs["kernel"].shape, inputs["bias"]
        ((4, 3), (4, 2), None)
    """

    @functools.wraps(apply)
    def wrapped(variables, *args, **options):
        found: dict[tuple[str, ...], list[jax.Array]] = {}

        def record(following, args, kwargs, context):
            module = context.module
            if (
                isinstance(module, nn.Dense)
                and context.method_name == "__call__"
            ):
                x = args[0]
                rows = x.reshape(-1, x.shape[-1])
                found.setdefault((*module.path, "kernel"), []).append(rows)
            return following(*args, **kwargs)

        with nn.intercept_methods(record):
            out = apply(variables, *args, **options)

        def pick(path, leaf):
            del leaf
            rows = found.get(tuple(str(key.key) for key in path))
            return None if rows is None else jnp.concatenate(rows)

        return out, jax.tree_util.tree_map_with_path(pick, params)

    return wrapped


def delta_gradient_descent(
    learning_rate: optax.ScalarOrSchedule,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> optax.GradientTransformationExtraArgs:
    r"""Delta gradient descent (DGD).

    ``update`` takes the extra argument ``layer_inputs``, see
    :func:`with_layer_inputs`. Leaves without inputs (biases, embeddings,
    norms) follow gradient descent.

    Args:
        learning_rate: :math:`\eta`, a number or a schedule. It is part of the
            rule: chain no other learning rate after it.
        reduction: whether the loss is the ``"mean"`` or the ``"sum"`` over the
            layer's inputs.

    Raises:
        ValueError: for an unknown ``reduction``, or in ``update`` if
            ``params`` or ``layer_inputs`` are missing or have a wrong shape;
            the message names the leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> tx = delta_gradient_descent(1.0)
        >>> w, x = (
        ...     {"kernel": jnp.array([[2.0]])},
        ...     {"kernel": jnp.array([[1.0]])},
        ... )
        >>> flat = {"kernel": jnp.zeros((1, 1))}
        >>> updates, _ = tx.update(flat, tx.init(w), w, layer_inputs=x)
        >>> updates["kernel"].round(3).tolist()  # decays by half along x
        [[-1.0]]
    """
    check_rate(learning_rate)
    check_choice("reduction", reduction, ("mean", "sum"))

    def init(params):
        check_real(params)
        return DeltaGradientDescentState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, layer_inputs=None, **extra):
        del extra
        if params is None:
            raise ValueError(NO_PARAMS)
        if layer_inputs is None:
            raise ValueError(
                "delta_gradient_descent needs update(..., layer_inputs=...); "
                "with_layer_inputs has them from a Linen model"
            )
        rate = learning_rate
        if callable(rate):
            rate = rate(state.count)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(updates)
        out = []
        for (path, g), w, x in zip(
            leaves,
            treedef.flatten_up_to(params),
            treedef.flatten_up_to(layer_inputs),
            strict=True,
        ):
            if x is None:
                out.append((-rate * g).astype(g.dtype))
                continue
            name = leaf_name(path)
            if w.ndim != 2 or x.ndim != 2 or x.shape[1] != w.shape[0]:
                raise ValueError(
                    f"layer_inputs of {name} have shape {x.shape}; a kernel "
                    f"{w.shape} needs [N, {w.shape[0]}]"
                )
            weight = 1 / len(x) if reduction == "mean" else 1.0
            w, x, slope = widen((w, x, g))
            x = x * weight**0.5
            # Not as the difference of two weights, which may be much larger.
            step = -rate * _resolved(x.T @ (x @ w) + slope, x, rate)
            out.append(step.astype(g.dtype))
        count = optax.safe_increment(state.count)
        return treedef.unflatten(out), DeltaGradientDescentState(count)

    return optax.GradientTransformationExtraArgs(init, keep_shardings(update))


def _resolved(change, x, rate):
    """``(I + rate x^T x)^{-1} change``, with the smaller Gram matrix."""
    if len(x) < x.shape[1]:  # Woodbury's identity.
        inner = jnp.eye(len(x), dtype=x.dtype) + rate * (x @ x.T)
        solved = jax.scipy.linalg.solve(inner, x @ change, assume_a="pos")
        return change - rate * (x.T @ solved)
    inner = jnp.eye(x.shape[1], dtype=x.dtype) + rate * (x.T @ x)
    return jax.scipy.linalg.solve(inner, change, assume_a="pos")
