"""Newton-Schulz as the formula reads, one matrix after another."""

import jax

from pallas_kernels.newton_schulz.norm import divide_by_norm


def newton_schulz_reference(x, schedule, eps):
    """:func:`newton_schulz` with coefficients ``[steps, 3]``."""

    def one(matrix):
        matrix = divide_by_norm(matrix, eps=eps)
        for a, b, c in schedule:
            gram = matrix @ matrix.T
            matrix = a * matrix + b * gram @ matrix + c * gram @ (gram @ matrix)
        return matrix

    flat = x.reshape(-1, *x.shape[-2:])
    return jax.lax.map(one, flat).reshape(x.shape)
