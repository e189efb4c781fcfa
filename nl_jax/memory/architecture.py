"""Architectures: the functions that an associative memory can be.

An architecture is written once, as a forward pass over *layers*, callables that
each stand for one matrix. Called with plain products, it returns the memory's
value; with products that record their inputs and add a perturbation, each
layer's input and output gradient; with reads of the delta memory, the value
under weights that change at every token. The built-in ones are in
:mod:`nl_jax.memory.architectures`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, Values, Weight

Layer = Callable[[jax.Array], jax.Array]
Weights = tuple[Weight, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A function of an input and a tuple of matrices.

    Attributes:
        name: name in configurations.
        forward: ``(layers, x) -> y``; calls each of ``layers`` once, in order.
        widths: ``(d_in, d_out, expansion) -> ((d_in, d_out), ...)``, the shape
            of each layer's matrix, input layer first.
        gains: standard deviation of each layer's initial weights, in units of
            ``1 / sqrt(d_in)`` of that layer.
        affine: whether the memory is its only layer's output plus terms that do
            not depend on that layer.
        bounded: whether a norm bounds the output's gradients and permits large
            steps.
        width: ``weights -> d_in``.
    """

    name: str
    forward: Callable[[Sequence[Layer], jax.Array], jax.Array]
    widths: Callable[[int, int, int], tuple[tuple[int, int], ...]]
    gains: tuple[float, ...]
    affine: bool = False
    bounded: bool = False
    width: Callable[[Weights], int] = lambda weights: weights[0].shape[-2]

    def init(
        self,
        rng: jax.Array,
        d_in: int,
        d_out: int,
        *,
        expansion: int = 4,
        lead: tuple[int, ...] = (),
        dtype: jnp.dtype = jnp.float32,
    ) -> Weights:
        """Draws initial weights, one ``[*lead, d_in, d_out]`` per layer."""
        shapes = self.widths(d_in, d_out, expansion)
        keys = jax.random.split(rng, len(shapes))
        return tuple(
            jax.random.normal(key, (*lead, *shape), dtype)
            * (gain / max(shape[0], 1) ** 0.5)
            for key, shape, gain in zip(keys, shapes, self.gains, strict=True)
        )

    def apply(self, weights: Weights, x: Keys) -> Values:
        """Returns ``M(x)``, ``[..., T, d_in] -> [..., T, d_out]``."""
        return self.forward([_product(w) for w in weights], x)

    def linearize(self, weights: Weights, x: jax.Array):
        """Evaluates the memory and the ingredients of its gradient.

        Returns:
            ``(y, inputs, pullback)``: the value, each layer's input, and a
            function from a gradient at ``y`` to one at each layer's output.
        """
        lead = jnp.broadcast_shapes(weights[0].shape[:-2], x.shape[:-2])
        zeros = tuple(
            jnp.zeros((*lead, x.shape[-2], w.shape[-1]), x.dtype)
            for w in weights
        )

        def run(perturbations):
            inputs: list[jax.Array] = []

            def layer(w, perturbation):
                product = _product(w)

                def call(h):
                    inputs.append(h)
                    return product(h) + perturbation

                return call

            layers = [
                layer(*pair)
                for pair in zip(weights, perturbations, strict=True)
            ]
            return self.forward(layers, x), tuple(inputs)

        y, pullback, inputs = jax.vjp(run, zeros, has_aux=True)
        return y, inputs, lambda cotangent: pullback(cotangent)[0]


def _product(w: jax.Array) -> Layer:
    def call(h):
        y = jnp.einsum(
            "...ti,...ij->...tj",
            h,
            w.astype(h.dtype),
            preferred_element_type=w.dtype,
        )
        return y.astype(h.dtype)

    return call
