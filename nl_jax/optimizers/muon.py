r"""Muon and NorMuon, whose orthogonalisation devices share.

NorMuon (arXiv 2510.05491, Alg. 1) divides each output :math:`j` of the
orthogonalised momentum :math:`O` by its root mean square so far, because some
neurons' updates stay far larger than others':

.. math:: v_j \leftarrow \beta v_j + (1 - \beta)\, \text{mean}_i\, O_{ij}^2,
   \qquad u = \sqrt{\min(m, n)}\; \hat O / \|\hat O\|, \quad
   \hat O_{ij} = O_{ij} / (\sqrt{v_j} + \epsilon)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax.checks import default_count, is_number
from nl_jax.errors import InputError
from nl_jax.optimizers.matrices import (
    as_matrices,
    orthogonalize_tree,
    resolve_dimensions,
)
from nl_jax.optimizers.sharding import keep_shardings
from pallas_kernels.newton_schulz import divide_by_norm

_EPS = 1e-8


class NeuronState(NamedTuple):
    """State of NorMuon beside Muon's."""

    squares: optax.Updates
    """:math:`v`, ``[b, 1, n]`` for matrices ``[b, m, n]``."""


def map_dimensions(function: Any, numbers: Any, *trees: Any) -> Any:
    """Maps over trees and their dimension numbers, which may be ``None``."""
    return jax.tree.map(
        function,
        numbers,
        *trees,
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def directions_of_muon(
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    adaptive: bool = False,
    ns_steps: int | None = None,
    neuron_decay: float | None = None,
    dimension_numbers: Any = None,
) -> optax.GradientTransformation:
    r"""Rescales gradients as optax's Muon does, or as NorMuon.

    Args:
        beta: decay rate of the momentum.
        nesterov: whether the momentum is Nesterov's.
        adaptive: whether updates are scaled by their dual norm.
        ns_steps: number of Newton-Schulz iterations; ``None`` is 5.
        neuron_decay: NorMuon's :math:`\beta`, 0.95 in its paper; ``None`` for
            Muon.
        dimension_numbers: a tree of ``MuonDimensionNumbers``; ``None`` if all
            leaves are matrices.

    Raises:
        InputError: for a decay outside of [0, 1), or at an update for a leaf
            that is no matrix.

    Example:
        >>> tx = directions_of_muon(neuron_decay=0.95, ns_steps=9)
        >>> g = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
        >>> updates, _ = tx.update(g, tx.init(g))
        >>> updates.round(1).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """

    def present(updates):
        if dimension_numbers is None:
            for leaf in jax.tree.leaves(updates):
                if leaf.ndim != 2:
                    raise InputError(
                        f"muon takes matrices; a leaf has shape {leaf.shape}"
                    )
            return jax.tree.map(lambda _: MuonDimensionNumbers(), updates)
        # Muon takes dimension numbers only for leaves that are not masked.
        return map_dimensions(
            lambda d, leaf: leaf if isinstance(leaf, optax.MaskedNode) else d,
            dimension_numbers,
            updates,
        )

    steps = default_count("ns_steps", ns_steps, 5)
    # Without iterations, and with a norm that is taken in them, optax's
    # returns its momentum; devices share the orthogonalisation.
    momentum = scale_by_muon(
        ns_steps=0,
        beta=beta,
        nesterov=nesterov,
        preconditioning="schatten",
        weight_dimension_numbers=present,
    )

    def update(updates, state, params=None):
        hat, state = momentum.update(updates, state, params)
        out = orthogonalize_tree(hat, present(updates), steps=steps)
        if adaptive:
            out = jax.tree.map(lambda x, y: jnp.sum(x * y) * y, hat, out)
        return out, state

    muon = optax.GradientTransformation(momentum.init, keep_shardings(update))
    if neuron_decay is None:
        return muon
    if not (is_number(neuron_decay) and 0 <= neuron_decay < 1):
        raise InputError(f"neuron_decay={neuron_decay!r} must be in [0, 1)")
    return optax.chain(muon, _equal_neurons(neuron_decay, present))


def _equal_neurons(decay, numbers):
    """Divides the outputs of matrices by their root mean squares so far."""

    def views(tree):
        leaves, treedef = jax.tree.flatten(tree)
        dims = resolve_dimensions(numbers, tree)
        pairs = zip(leaves, dims, strict=True)
        return [as_matrices(leaf, d) for leaf, d in pairs], treedef

    def init(params):
        found, treedef = views(params)
        shapes = ((len(o), 1, o.shape[2]) for o, _ in found)
        return NeuronState(treedef.unflatten(map(jnp.zeros, shapes)))

    def update(updates, state, params=None):
        del params
        found, treedef = views(updates)
        out, squares = [], []
        for (o, back), v in zip(found, jax.tree.leaves(state), strict=True):
            mean = jnp.mean(jnp.square(o), 1, keepdims=True)
            v = (decay * v + (1 - decay) * mean).astype(v.dtype)
            equal = divide_by_norm(o / (jnp.sqrt(v) + _EPS), (1, 2))
            size = min(o.shape[1:]) ** 0.5
            out.append(back((size * equal).astype(o.dtype)))
            squares.append(v)
        return treedef.unflatten(out), NeuronState(treedef.unflatten(squares))

    return optax.GradientTransformation(init, keep_shardings(update))
