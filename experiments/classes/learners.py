r"""Baselines for continual learning of classes.

``learn`` trains a learner on one task after another, and ``scores`` returns how
likely each class is. No learner is told the task at the test.

- :class:`Softmax`, a linear head trained with Adam. By itself it is naive
  fine-tuning; with ``penalty`` it is elastic weight consolidation (Kirkpatrick
  et al. 2017) on the exact diagonal of the Fisher matrix; with ``buffer`` it
  replays stored examples; on all tasks at once it is joint training.
- :class:`ClassMeans`, :class:`KLDA` and :class:`KLDAEnsemble`, statistics that
  do not depend on the order of the tasks. They are strong if the features are
  good.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from scipy.special import softmax

from experiments.classes.features import Cosines


class _Anchor(NamedTuple):
    """The sum over finished tasks of EWC's quadratic penalties."""

    fisher: jax.Array
    weighted: jax.Array  # Fisher times the weights at the end of the task.


class Softmax:
    r"""A linear head, cross-entropy over all classes, Adam.

    With a penalty :math:`\lambda` the loss has an additional term
    :math:`\tfrac\lambda2 \sum_t F_t (W - W_t)^2`, where :math:`F_t` is the mean
    over task ``t`` of :math:`x^2 p (1 - p)` at its end. With a buffer, stored
    examples are half of each batch.

    Args:
        width: of the features.
        classes: outputs.
        seed: of the batches and of the stored examples.
        epochs: over each task.
        batch: examples per step.
        rate: of Adam.
        penalty: EWC's :math:`\lambda`.
        buffer: number of stored examples, equally many of each class.
        renew: whether Adam's state is reset for every task.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        seed: int,
        *,
        epochs: int,
        batch: int,
        rate: float,
        penalty: float = 0.0,
        buffer: int = 0,
        renew: bool = True,
    ):
        self._w = jnp.zeros((width, classes))
        self._anchor = _Anchor(*(jnp.zeros_like(self._w) for _ in range(2)))
        self._rng = np.random.default_rng(seed)
        self._epochs, self._batch = epochs, batch
        self._penalty, self._buffer = penalty, buffer
        self._kept: tuple[np.ndarray, np.ndarray] | None = None
        self._tx, self._renew = optax.adam(rate), renew
        self._state = self._tx.init(self._w)
        self._step = _softmax_step(self._tx)

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Trains on a task: features ``[N, width]`` and labels ``[N]``."""
        if self._renew:
            self._state = self._tx.init(self._w)
        for rows in self._batches(len(x)):
            xs, ys = x[rows], labels[rows]
            if self._kept is not None:
                xs, ys = self._with_kept(xs, ys)
            self._w, self._state = self._step(
                self._w, self._state, xs, ys, self._anchor, self._penalty
            )
        if self._penalty:
            fisher = _fisher(self._w, x)
            self._anchor = _Anchor(
                self._anchor.fisher + fisher,
                self._anchor.weighted + fisher * self._w,
            )
        if self._buffer:
            self._keep(x, labels)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Logits, ``[N, classes]``."""
        return np.asarray(x @ self._w)

    @property
    def kept(self) -> np.ndarray:
        """Labels of the stored examples."""
        return np.empty(0, int) if self._kept is None else self._kept[1]

    def _batches(self, count):
        """Yields the rows of all batches.

        The last batch of an epoch is filled up from its start: batches of one
        size compile once.
        """
        for _ in range(self._epochs):
            order = self._rng.permutation(count)
            size = -(-count // self._batch) * self._batch
            yield from np.resize(order, size).reshape(-1, self._batch)

    def _with_kept(self, x, labels):
        old = self._rng.integers(len(self._kept[1]), size=self._batch // 2)
        new = self._batch - len(old)
        return (
            np.concatenate([x[:new], self._kept[0][old]]),
            np.concatenate([labels[:new], self._kept[1][old]]),
        )

    def _keep(self, x, labels):
        if self._kept is not None:
            x = np.concatenate([self._kept[0], x])
            labels = np.concatenate([self._kept[1], labels])
        classes = np.unique(labels)
        share = max(1, self._buffer // len(classes))
        rows = [
            self._rng.permutation(np.flatnonzero(labels == k))[:share]
            for k in classes
        ]
        rows = np.concatenate(rows)[: self._buffer]
        self._kept = x[rows], labels[rows]


class ClassMeans:
    """Nearest class mean, in the Euclidean distance.

    Args:
        width: of the features.
        classes: outputs.
        decay: share of the statistics that is kept when more are added.
    """

    def __init__(self, width: int, classes: int, decay: float = 1.0):
        self._sums = np.zeros((classes, width))
        self._counts = np.zeros(classes)
        self._decay = decay

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Adds a task to the means."""
        members = np.eye(len(self._counts), dtype=x.dtype)[labels]
        self._sums = self._decay * self._sums + members.T @ x
        self._counts = self._decay * self._counts + members.sum(0)

    @property
    def means(self) -> np.ndarray:
        """Means, ``[classes, width]``; zero for classes not yet seen."""
        seen = np.where(self._counts > 0, self._counts, 1)
        return self._sums / seen[:, None]

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Returns minus half the squared distances, ``[N, classes]``.

        A term that is equal for all classes is left out.
        """
        means = self.means.astype(x.dtype)
        return x @ means.T - 0.5 * np.square(means).sum(1)


class KLDA(ClassMeans):
    r"""Kernel linear discriminant analysis (Momeni et al., arXiv 2412.15571).

    Class means of random cosines, at distances in one covariance, :math:`(1 -
    s) \Sigma + s \tfrac{\mathrm{tr}\Sigma}{d} I`, where :math:`\Sigma` is the
    covariance within classes. All classes are equally likely, however many
    examples they have. Unlike the paper's covariance it is shrunk, so that it
    has an inverse from the first task on.

    Args:
        cosines: of this learner.
        classes: outputs.
        shrinkage: :math:`s`, in (0, 1].
        decay: share of the statistics that is kept when more are added.
    """

    def __init__(
        self,
        cosines: Cosines,
        classes: int,
        shrinkage: float,
        decay: float = 1.0,
    ):
        width = cosines.width
        super().__init__(width, classes, decay)
        self._products = np.zeros((width, width), np.float32)
        self._cosines, self._shrinkage = cosines, shrinkage

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Adds vectors to the means of their cosines and the covariance."""
        z = self._cosines(x)
        super().learn(z, labels)
        self._products = self._decay * self._products + z.T @ z

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Returns log-likelihoods ``[N, classes]``, up to the same term.

        They are minus infinity for classes that have no examples.
        """
        z, means, total = self._cosines(x), self.means, self._counts.sum()
        weighted = means * self._counts[:, None]
        within = (self._products - weighted.T @ means) / total
        spread = np.trace(within) / len(within)
        within *= 1 - self._shrinkage
        within.flat[:: len(within) + 1] += self._shrinkage * spread
        maps = scipy.linalg.solve(
            within.astype(z.dtype), means.T.astype(z.dtype), assume_a="pos"
        )
        found = z @ maps - 0.5 * (means.T * maps).sum(0)
        return np.where(self._counts > 0, found, -np.inf)


class KLDAEnsemble:
    """The mean of the class probabilities of several KLDA.

    Args:
        members: with different cosines.
    """

    def __init__(self, members: Sequence[KLDA]):
        self._members = members

    def learn(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Adds vectors to all members."""
        for member in self._members:
            member.learn(x, labels)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Returns mean probabilities, ``[N, classes]``."""
        each = [softmax(member.scores(x), 1) for member in self._members]
        return np.mean(each, 0)


def _softmax_step(tx):
    @jax.jit
    def step(w, state, x, labels, anchor, penalty):
        def loss(w):
            error = optax.softmax_cross_entropy_with_integer_labels(
                x @ w, labels
            ).mean()
            # The squares of all tasks, expanded, up to a constant.
            held = 0.5 * anchor.fisher * w**2 - anchor.weighted * w
            return error + penalty * held.sum()

        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    return step


@jax.jit
def _fisher(w, x):
    p = jax.nn.softmax(x @ w)
    return jnp.square(x).T @ (p * (1 - p)) / len(x)
