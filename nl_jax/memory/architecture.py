"""What function an associative memory is.

An architecture is written once, as a forward pass over *layers*: callables that
each stand for one matrix. Handing it plain products gives the memory's value;
products that record their inputs and accept a perturbation give each layer's
input and output gradient; the delta memory's read gives the value under
weights that change at every token. A new architecture is one function.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from nl_jax.array_typing import Keys, Values, Weight

__all__ = ["ARCHITECTURES", "Architecture", "linear", "mlp", "residual"]

Layer = Callable[[jax.Array], jax.Array]
Weights = tuple[Weight, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A function of an input and of a tuple of matrices.

    Attributes:
        name: what users type.
        forward: ``(layers, x) -> y``; calls each of ``layers`` once, in order.
        widths: ``(d_in, d_out, expansion) -> ((d_in, d_out), ...)``: the shape
            of each layer's matrix, the input layer first.
        gains: standard deviation of each layer's initial weights, in units of
            ``1 / sqrt(d_in)`` of that layer.
    """

    name: str
    forward: Callable[[Sequence[Layer], jax.Array], jax.Array]
    widths: Callable[[int, int, int], tuple[tuple[int, int], ...]]
    gains: tuple[float, ...]

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
            * (gain / shape[0] ** 0.5)
            for key, shape, gain in zip(keys, shapes, self.gains, strict=True)
        )

    def apply(self, weights: Weights, x: Keys) -> Values:
        """Returns ``M(x)``, ``[..., T, d_in] -> [..., T, d_out]``."""
        return self.forward([_product(w) for w in weights], x)

    def linearize(self, weights: Weights, x: jax.Array):
        """Evaluates the memory and what a gradient step on it needs.

        Returns:
            ``(y, inputs, pullback)``: the value, each layer's input, and a
            function from a gradient at ``y`` to the gradients at each layer's
            output.
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


def _mlp_forward(layers, x):
    hidden, out = layers
    return x + out(jax.nn.gelu(hidden(x)))


def _normalized(y):
    """Layer norm without scale and bias."""
    y = y - y.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)


linear = Architecture(
    name="linear",
    forward=lambda layers, x: layers[0](x),
    widths=lambda d_in, d_out, _: ((d_in, d_out),),
    gains=(1.0,),
)

residual = Architecture(
    # What is left of a matrix that has forgotten all: the input, not zero.
    name="residual",
    forward=lambda layers, x: x + layers[0](x),
    widths=linear.widths,
    gains=linear.gains,
)

mlp = Architecture(
    # Residual, arXiv 2512.24695 eq. 89; needs d_in == d_out.
    name="mlp",
    forward=_mlp_forward,
    widths=lambda d_in, d_out, expansion: (
        (d_in, expansion * d_in),
        (expansion * d_in, d_out),
    ),
    gains=(1.0, 1.0),
)

linear_norm = Architecture(
    # TTT-Linear, arXiv 2407.04620 section 2.7: f(x) = x + LN(x W).
    name="linear_norm",
    forward=lambda layers, x: x + _normalized(layers[0](x)),
    widths=linear.widths,
    gains=linear.gains,
)

mlp_norm = Architecture(
    # TTT-MLP: f(x) = x + LN(gelu(x W1) W2).
    name="mlp_norm",
    forward=lambda layers, x: (
        x + _normalized(layers[1](jax.nn.gelu(layers[0](x))))
    ),
    widths=mlp.widths,
    gains=mlp.gains,
)

ARCHITECTURES = {
    a.name: a for a in (linear, residual, mlp, linear_norm, mlp_norm)
}
