r"""A memory of classes on several time scales, which replays nothing.

Levels (arXiv 2512.24695, eq. 70-74) are matrices, each on its own share of the
features; they speak together, :math:`y = \sum_\ell W_\ell^\top x_\ell`. A level
learns what slower ones leave over, :math:`u = v - \sum_{m > \ell} W_m^\top x_m`
with one-hot :math:`v`, and every ``period`` samples takes the proximal step

.. math:: W \leftarrow \arg\min_\Phi \tfrac12 \sum \|\Phi^\top x - u\|^2
   + \tfrac12 \|\Phi - W\|_{\bar A}^2, \qquad
   \bar A = \rho A + (1 - \rho) \lambda I, \qquad
   A \leftarrow \bar A + \sum x x^\top,

of which it keeps the sums :math:`\sum x x^\top` and :math:`\sum x u^\top`, not
the samples. What the metric :math:`A` has seen is protected; its ``retention``
:math:`\rho` says for how long. At 1 the level is recursive least squares: ridge
regression on everything so far, in whatever order it came. A level of period 1
has none, :math:`\bar A = I / \eta`: it is the delta rule with a normalised
step of rate :math:`\eta`, run by ``delta_scan``. When a
level steps, the weights of faster ones begin again from zero (eq. 72): they
hold what it has not taken up yet. Their metrics stay, so that they go on saying
little about what was seen before.

Cost: a solve of the level's width per period. Weak: the metric of a level is as
large as its width squared, more than its weights; and what forgets nothing has
stopped adapting, if the classes themselves change.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nl_jax.memory import delta_scan


@dataclasses.dataclass(frozen=True)
class Level:
    """What is chosen of a level."""

    width: int
    """Features that it reads."""
    period: int
    """Samples between two of its steps."""
    retention: float
    """Share of its metric that a step keeps, in [0, 1]; 0 if the period is 1,
    as there is none."""


def split_levels(
    width: int, levels: int, periods: list[int], retentions: list[float]
) -> list[Level]:
    """Shares features out: a sixteenth to each faster level.

    Args:
        width: features of all levels; with the classes it makes their number
            of weights, which is the same whatever ``levels``.
        levels: how many, the fastest first.
        periods: at least as many, each a multiple of the one before; the first
            is 1.
        retentions: of the levels after the first.

    Example:
        >>> [level.width for level in split_levels(32, 3, [1, 2, 4], [0, 1])]
        [2, 2, 28]
    """
    part = width // 16
    widths = [part] * (levels - 1) + [width - part * (levels - 1)]
    return [
        Level(*each)
        for each in zip(widths, periods, [0.0, *retentions], strict=False)
    ]


class ContinuumMemory:
    r"""Levels and their states; see the head of the file.

    Args:
        levels: the fastest first; widths add up to that of the features, each
            period is a multiple of the one before, and only a level of period
            1 has no metric.
        classes: outputs.
        ridge: :math:`\lambda`.
        rate: :math:`\eta`.
    """

    def __init__(
        self, levels: list[Level], classes: int, ridge: float, rate: float
    ):
        self.levels = levels
        self.ridge = ridge
        self.rate = rate
        self._ends = np.cumsum([level.width for level in levels])
        self._weights = [
            np.zeros((level.width, classes), np.float32) for level in levels
        ]
        self._metrics = [
            np.eye(level.width if level.period > 1 else 0, dtype=np.float32)
            * np.float32(ridge)
            for level in levels
        ]
        self._gathered = [
            (np.zeros_like(metric), np.zeros_like(w))
            for metric, w in zip(self._metrics, self._weights, strict=True)
        ]
        self._count = 0

    @property
    def parameters(self) -> int:
        """Weights of all levels."""
        return sum(w.size for w in self._weights)

    @property
    def state_size(self) -> int:
        """Numbers that the levels keep beside their weights."""
        return sum(
            2 * level.width**2 + w.size
            for level, w in zip(self.levels, self._weights, strict=True)
            if level.period > 1
        )

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Reads a part of the stream, ``[N, width]`` and ``[N]``, in order."""
        classes = self._weights[0].shape[1]
        parts = np.split(x, self._ends[:-1], 1)
        values = np.eye(classes, dtype=np.float32)[labels]
        self._read(len(self.levels) - 1, parts, values, self._count)
        self._count += len(x)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """What all levels say together, ``[N, classes]``."""
        return x @ np.concatenate(self._weights)

    def _read(self, i, parts, left, begun):
        """Lets level ``i`` and faster ones read what begins at ``begun``.

        Args:
            i: the level.
            parts: each level's features of these samples.
            left: what slower levels leave over.
            begun: samples before these.
        """
        period = self.levels[i].period
        if period == 1:
            self._weights[i] = _delta_rule(
                self._weights[i], parts[i], left, self.rate
            )
            return
        cuts = range(period - begun % period, len(left), period)
        for rows in np.split(np.arange(len(left)), cuts):
            piece = slice(rows[0], rows[-1] + 1)
            mine = [part[piece] for part in parts]
            over = left[piece] - mine[i] @ self._weights[i]
            if i:
                self._read(i - 1, mine, over, begun + piece.start)
            products, gradient = self._gathered[i]
            products += mine[i].T @ mine[i]
            gradient += mine[i].T @ over
            if (begun + piece.stop) % period == 0:
                self._step(i)

    def _step(self, i):
        """Takes the proximal step; faster levels begin again."""
        products, gradient = self._gathered[i]
        metric, rho = self._metrics[i], self.levels[i].retention
        metric *= rho
        metric.flat[:: len(metric) + 1] += (1 - rho) * self.ridge
        metric += products
        # The gradient is that at the weights, which it moves.
        self._weights[i] += scipy.linalg.solve(metric, gradient, assume_a="pos")
        for j in range(i + 1):
            for held in self._gathered[j]:
                held[:] = 0
        for weights in self._weights[:i]:
            weights[:] = 0


def _delta_rule(weights, x, values, rate):
    """Pads to few lengths, of which each compiles once: zeros write nothing."""
    rows = 1 << max(6, (len(x) - 1).bit_length())
    x, values = (
        np.pad(array, ((0, rows - len(x)), (0, 0))) for array in (x, values)
    )
    return np.array(_scan(weights, x, values, rate))


@jax.jit
def _scan(weights, x, values, rate):
    beta = rate / (1 + rate * jnp.square(x).sum(1))
    # What is read on the way is of no use here.
    _, weights, _ = delta_scan(
        weights,
        None,
        x,
        beta[:, None] * values,
        jnp.zeros_like(x),
        jnp.zeros(len(x)),
        beta,
    )
    return weights
