"""The memories of the paper token by token in NumPy float64, from its formulas.

Nothing of ``nl_jax`` is used: row vectors, ``w`` is ``[d_in, d_out]``.
"""

import math

import numpy as np


def gelu(a):
    c = math.sqrt(2 / math.pi)
    return 0.5 * a * (1 + np.tanh(c * (a + 0.044715 * a**3)))


def gelu_slope(a):
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (a + 0.044715 * a**3))
    inner = c * (1 + 3 * 0.044715 * a**2)
    return 0.5 * (1 + t) + 0.5 * a * (1 - t**2) * inner


def apply(weights, x, residual=False):
    """A matrix, ``x + x W``, or ``x + gelu(x W2) W1`` (eq. 89)."""
    if len(weights) == 1:
        return x * residual + x @ weights[0]
    return x + gelu(x @ weights[0]) @ weights[1]


def norm(a):
    return np.sqrt(np.sum(a * a) + 1e-12)


class Memory:
    """One head: weights, momentum, and the weights at the chunk's start."""

    def __init__(
        self, weights, *, objective, delta, normalized=True, residual=False
    ):
        self.weights = [np.asarray(w, float).copy() for w in weights]
        self.momentum = [np.zeros_like(w) for w in self.weights]
        self.objective, self.delta = objective, delta
        self.normalized = normalized
        self.residual = residual
        self.begin_chunk()

    def begin_chunk(self):
        self.start = [w.copy() for w in self.weights]

    def read(self, q):
        return apply(self.weights, q, self.residual)

    def generate(self, x):
        return apply(self.start, x, self.residual)

    def write(self, k, v, eta, alpha, mu=None):
        """Eq. 88 for each layer with its own input, then momentum."""
        y = self.generate(k)
        out = y - v if self.objective == "l2" else -v
        if len(self.start) == 1:
            layers = [(k, out)]
        else:
            pre = k @ self.start[0]
            inner = (out @ self.start[1].T) * gelu_slope(pre)
            layers = [(k, inner), (gelu(pre), out)]
        for i, (x, surprise) in enumerate(layers):
            step, write = eta, eta
            if self.normalized:
                step = write = eta / len(layers)
                size = norm(x)
                x = x / size
                write *= min(1, norm(out) / norm(surprise)) / max(1, size)
                write *= 1 if mu is None else 1 - mu
            gradient = np.outer(x, surprise)
            w = self.weights[i]
            erase = step * np.outer(x, x @ w) if self.delta else 0
            if mu is None:
                moved = -write * gradient
            else:
                self.momentum[i] = mu * self.momentum[i] - write * gradient
                moved = self.momentum[i]
            self.weights[i] = alpha * w - erase + moved
