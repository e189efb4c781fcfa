r"""A memory of classes on several time scales, without replay.

The levels (arXiv 2512.24695, eq. 70-74) are matrices, each on its own share of
the features. Their outputs are added, :math:`y = \sum_\ell W_\ell^\top x_\ell`.
A level learns the error of the slower levels, :math:`u = v - \sum_{m > \ell}
W_m^\top x_m` with one-hot :math:`v`, and takes a proximal step every ``period``
samples:

.. math:: W \leftarrow \arg\min_\Phi \tfrac12 \sum \|\Phi^\top x - u\|^2
   + \tfrac12 \|\Phi - W\|_{\bar A}^2, \qquad
   \bar A = \rho A + (1 - \rho) \lambda I, \qquad
   A \leftarrow \bar A + \sum x x^\top,

The level stores the sums :math:`\sum x x^\top` and :math:`\sum x u^\top`, not
the samples. The metric :math:`A` protects the directions of past inputs, and
the ``retention`` :math:`\rho` determines for how long. At 1 the level is
recursive least squares: ridge regression on all samples so far, in any order. A
level of period 1 has no metric, :math:`\bar A = I / \eta`. It is the delta rule
with a normalised step of rate :math:`\eta`, run by ``delta_scan``. When a level
steps, the weights of faster levels restart from zero (eq. 72), because they
hold what it had not learned yet. Their metrics stay, so these levels continue
to change little along earlier inputs.

Cost: one linear solve of the level's width per period. Weaknesses: the metric
of a level has the square of its width as its size, more than its weights; and a
level that forgets nothing no longer adapts if the classes themselves change.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from nl_jax.memory import delta_scan
from nl_jax.nested import Level, LevelState


@dataclasses.dataclass(frozen=True)
class LevelChoice:
    """Configuration of a level."""

    width: int
    """Features that it reads."""
    period: int
    """Samples between two steps."""
    retention: float
    """Share of its metric that a step keeps, in [0, 1]; 0 for a period of 1,
    where there is no metric."""


def split_levels(
    width: int,
    share: float,
    periods: Sequence[int],
    retentions: Sequence[float],
) -> list[LevelChoice]:
    """Divides the features: a share of them for each faster level.

    Args:
        width: features of all levels. It determines the number of weights,
            which does not depend on the number of levels.
        share: of each level but the slowest.
        periods: of the levels, the fastest first.
        retentions: of the levels; that of a period of 1 is not used.

    Example:
        >>> levels = split_levels(32, 0.1, [1, 2, 4], [0, 0.5, 1])
        >>> [level.width for level in levels]
        [3, 3, 26]
    """
    part = max(1, int(width * share))
    widths = [part] * (len(periods) - 1) + [width - part * (len(periods) - 1)]
    return [
        LevelChoice(own, period, kept if period > 1 else 0.0)
        for own, period, kept in zip(widths, periods, retentions, strict=True)
    ]


class LevelledMemory:
    r"""Levels and their states; see the docstring of the module.

    Args:
        levels: the fastest first. Widths add up to that of the features, and
            each period is a multiple of the one before. Only a level of period
            1 has no metric.
        classes: outputs.
        ridge: :math:`\lambda`.
        rate: :math:`\eta`.
    """

    def __init__(
        self, levels: list[LevelChoice], classes: int, ridge: float, rate: float
    ):
        self._classes = classes
        self._ends = np.cumsum([level.width for level in levels])
        self._levels = [
            proximal_level(level, ridge)
            if level.period > 1
            else delta_level(rate)
            for level in levels
        ]
        self._states = [
            made.init(np.zeros((level.width, classes), np.float32))
            for made, level in zip(self._levels, levels, strict=True)
        ]
        self._count = 0

    @property
    def parameters(self) -> int:
        """Number of weights of all levels."""
        return sum(state.params.size for state in self._states)

    @property
    def state_size(self) -> int:
        """Count of numbers that the levels store in addition to weights."""
        kept = [(state.gathered, state.inner) for state in self._states]
        return sum(leaf.size for leaf in jax.tree.leaves(kept))

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Learns the next part of the stream, ``[N, width]`` and ``[N]``."""
        parts = np.split(x, self._ends[:-1], 1)
        values = np.eye(self._classes, dtype=np.float32)[labels]
        self._read(len(self._levels) - 1, parts, values, self._count)
        self._count += len(x)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Returns the sum of the outputs of all levels, ``[N, classes]``."""
        return x @ np.concatenate([state.params for state in self._states])

    def _read(self, i, parts, left, begun):
        """Advances level ``i`` and all faster levels over some samples.

        Args:
            i: index of the level.
            parts: features of the samples for each level.
            left: error of the slower levels on the samples.
            begun: number of samples before these.
        """
        level, states = self._levels[i], self._states
        if level.period == 1:
            states[i] = level.update(states[i], parts[i], left, due=True)
            return
        cuts = range(
            level.period - begun % level.period, len(left), level.period
        )
        for rows in np.split(np.arange(len(left)), cuts):
            piece = slice(rows[0], rows[-1] + 1)
            mine = [part[piece] for part in parts]
            over = left[piece] - mine[i] @ states[i].params
            if i:
                self._read(i - 1, mine, over, begun + piece.start)
            new = mine[i].T @ mine[i], mine[i].T @ over
            due = bool((begun + piece.stop) % level.period == 0)
            states[i] = level.update(states[i], new, due=due, count=len(rows))
            if due:
                self._restart(i)

    def _restart(self, count):
        """Restarts the ``count`` fastest levels; their metrics stay."""
        for j in range(count):
            none = self._levels[j].init(np.zeros_like(self._states[j].params))
            self._states[j] = none._replace(inner=self._states[j].inner)


def proximal_level(choice: LevelChoice, ridge: float) -> Level:
    """Returns a level that takes the proximal step on its sums."""
    rho, start = choice.retention, np.eye(choice.width, dtype=np.float32)
    start *= np.float32(ridge)

    def init(weights):
        return LevelState(
            weights, (np.zeros_like(start), np.zeros_like(weights)), start, 0
        )

    def step(state, new):
        del new
        products, gradient = state.gathered
        metric = rho * state.inner + (1 - rho) * start + products
        # The gradient was taken at the current weights, so add the solution.
        moved = scipy.linalg.solve(metric, gradient, assume_a="pos")
        return state.params + moved, metric

    return Level(init, step, choice.period)


def delta_level(rate: float) -> Level:
    """Returns a level of period 1: the delta rule, with many ticks per scan."""

    def step(state, x, values):
        return _delta_rule(state.params, x, values, rate), ()

    return Level(
        lambda weights: LevelState(weights, (), (), 0),
        step,
        1,
        gather=lambda state, x, values: (),
    )


def _delta_rule(weights, x, values, rate):
    """Runs the scan, padded with zeros so that only a few lengths compile."""
    rows = 1 << max(6, (len(x) - 1).bit_length())
    x, values = (
        np.pad(array, ((0, rows - len(x)), (0, 0))) for array in (x, values)
    )
    return np.array(_scan(weights, x, values, rate))


@jax.jit
def _scan(weights, x, values, rate):
    beta = rate / (1 + rate * jnp.square(x).sum(1))
    # The outputs during the scan are not needed.
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
