"""Built-in architectures: a matrix, MLPs, and powers of the input.

A matrix may add its input to its output; MLPs of any depth may be plain, gated
or normalised. Architectures that add the input need ``d_in == d_out``.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp

from nl_jax.checks import check_count
from nl_jax.memory.architecture import Architecture


def _normalized(y):
    """Layer norm without scale and bias, in at least float32."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    wide = wide - wide.mean(-1, keepdims=True)
    size = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-6)
    return (wide * size).astype(y.dtype)


linear = Architecture(
    name="linear",
    forward=lambda layers, x: layers[0](x),
    widths=lambda d_in, d_out, _: ((d_in, d_out),),
    gains=(1.0,),
    affine=True,
)

residual = Architecture(
    # A memory that has forgotten everything returns its input, not zero.
    name="residual",
    forward=lambda layers, x: x + layers[0](x),
    widths=linear.widths,
    gains=linear.gains,
    affine=True,
)


@functools.cache  # Equal choices are equal objects.
def deep_mlp(depth: int = 3, *, norm: bool = False) -> Architecture:
    r"""Returns the residual MLP of ``depth`` matrices; ``d_in == d_out``.

    .. math:: M(x) = x + W_n \sigma(W_{n-1} \ldots \sigma(W_1 x))

    This is arXiv 2512.24695, eq. 89, for ``depth=2``.

    Args:
        depth: number of matrices, at least 2.
        norm: layer norm before the sum (TTT-MLP, arXiv 2407.04620 section 2.7).

    Example:
        >>> deep_mlp(3).widths(4, 4, 2)
        ((4, 8), (8, 8), (8, 4))
    """
    check_count("depth", depth, 2)

    def forward(layers, x):
        h = layers[0](x)
        for layer in layers[1:]:
            h = layer(jax.nn.gelu(h))
        return x + (_normalized(h) if norm else h)

    def widths(d_in, d_out, expansion):
        h = expansion * d_in
        return ((d_in, h), *(((h, h),) * (depth - 2)), (h, d_out))

    name = "mlp" if depth == 2 else f"mlp_{depth}"
    return Architecture(
        name + "_norm" * norm, forward, widths, (1.0,) * depth, bounded=norm
    )


mlp = deep_mlp(2)
linear_norm = Architecture(
    # TTT-Linear, arXiv 2407.04620 section 2.7: f(x) = x + LN(x W).
    name="linear_norm",
    forward=lambda layers, x: x + _normalized(layers[0](x)),
    widths=linear.widths,
    gains=linear.gains,
    bounded=True,
)

gated_mlp = Architecture(
    name="gated_mlp",
    forward=lambda layers, x: (
        x + layers[2](jax.nn.silu(layers[0](x)) * layers[1](x))
    ),
    widths=lambda d_in, d_out, expansion: (
        (d_in, expansion * d_in),
        (d_in, expansion * d_in),
        (expansion * d_in, d_out),
    ),
    gains=(1.0, 1.0, 1.0),
)


@functools.cache
def polynomial(
    architecture: Architecture, degree: int = 2, *, cross: bool = False
) -> Architecture:
    r"""Feeds powers of the input to the input layers (ATLAS, 2505.23735).

    A matrix with ``d`` rows stores about ``d`` keys; with powers up to ``p``,
    as many as there are features. With ``cross``, the features are all
    monomials :math:`x^\beta / \sqrt{\beta!}`, :math:`1 \le |\beta| \le p`,
    whose inner products are :math:`\sum_{i=1}^p \langle x, y \rangle^i / i!`;
    without, each channel's powers :math:`(\sqrt d x_j)^i / \sqrt{d\, i!}`.

    Args:
        architecture: the architecture whose input layers get the features.
        degree: highest power ``p``, at least 1.
        cross: whether to multiply different channels, for ``O(d^p)`` features.

    Example:
        >>> polynomial(linear, 2).widths(4, 4, 1)
        ((8, 4),)
        >>> polynomial(linear, 2, cross=True).widths(4, 4, 1)
        ((14, 4),)
    """
    check_count("degree", degree)

    def count(d):
        if not cross:
            return degree * d
        return math.comb(d + degree, degree) - 1

    def features(x):
        d = x.shape[-1]
        if not cross:
            root = math.sqrt(d)
            powers = [
                (root * x) ** i / math.sqrt(d * math.factorial(i))
                for i in range(1, degree + 1)
            ]
            return jnp.concatenate(powers, -1)
        out = []
        for i in range(1, degree + 1):
            rows = list(itertools.combinations_with_replacement(range(d), i))
            sizes = [
                math.prod(math.factorial(row.count(j)) for j in set(row))
                for row in rows
            ]
            monomials = x[..., jnp.array(rows)].prod(-1)
            out.append(monomials * jnp.array(sizes, x.dtype) ** -0.5)
        return jnp.concatenate(out, -1)

    inputs = [
        index
        for index, (rows, _) in enumerate(architecture.widths(3, 5, 7))
        if rows == 3
    ]

    def forward(layers, x):
        def see(index, layer):
            return (lambda h: layer(features(h))) if index in inputs else layer

        return architecture.forward(
            [see(*pair) for pair in enumerate(layers)], x
        )

    def widths(d_in, d_out, expansion):
        shapes = architecture.widths(d_in, d_out, expansion)
        return tuple(
            (count(d_in) if index in inputs else rows, columns)
            for index, (rows, columns) in enumerate(shapes)
        )

    def width(weights):
        rows = weights[0].shape[-2]
        return next(d for d in range(1, rows + 1) if count(d) == rows)

    return dataclasses.replace(
        architecture,
        name=f"polynomial_{architecture.name}",
        forward=forward,
        widths=widths,
        width=width,
    )


ARCHITECTURES = {
    a.name: a
    for a in (
        linear,
        residual,
        mlp,
        deep_mlp(3),
        gated_mlp,
        linear_norm,
        deep_mlp(2, norm=True),
        polynomial(linear),
        polynomial(mlp),
    )
}
"""Architectures by name, with default parameters."""
