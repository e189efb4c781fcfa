"""Metrics of continual learning on a sequence of tasks.

All functions take the same arguments:

- ``R``, ``[T, T]``: ``R[i, j]`` is the accuracy on task ``j`` after learning
  task ``i``.
- ``b``, ``[T]``: accuracies of an untrained model, which only
  :func:`forward_transfer` reads; ``None`` elsewhere.
- ``convention``: source of the definition where libraries differ.

Accuracies are in [0, 1] and all tasks have the same weight. Entries that a
metric does not read may be NaN; for others that are not accuracies, for too few
tasks and for an unknown convention the functions raise ``ValueError``.

Libraries define three of the metrics differently:

=================== ===================== ===================== ==============
metric              ``"gem"``             ``"continuum"``       ``"avalanche"``
=================== ===================== ===================== ==============
forgetting          from the best         from the best         from the first
backward transfer   at the end            at all times          at the end
forward transfer    next task, above b    all later tasks       next task,
                                                                above b
=================== ===================== ===================== ==============

``"gem"`` is Lopez-Paz & Ranzato (2017), with the forgetting of Chaudhry et al.
(2018); ``"continuum"`` is Díaz-Rodríguez et al. (2018), whose formulas the
library continuum follows (its release 1.2.7 sums over other indices: backward
transfer omits the preceding task, forward transfer is taken below the
diagonal); ``"avalanche"`` is the library Avalanche, version 0.6.0. Metrics that
are not in the table are the same in all three.

References:
    Lopez-Paz & Ranzato, *Gradient Episodic Memory*, arXiv 1706.08840.
    Chaudhry et al., *Riemannian Walk*, arXiv 1801.10112.
    Díaz-Rodríguez et al., *Don't forget, there is more than forgetting*,
    arXiv 1810.13166.
    Rebuffi et al., *iCaRL*, arXiv 1611.07725.
"""

from typing import Any, Literal, get_args

import numpy as np

from nl_jax.checks import check_choice

__all__ = [
    "Convention",
    "accuracy_a",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "remembering",
]

Convention = Literal["gem", "continuum", "avalanche"]
"""Source of the definitions where they differ."""


def average_accuracy(
    R: Any, b: Any = None, convention: Convention = "gem"
) -> float:
    """Mean accuracy over all tasks at the end, ACC of GEM.

    Reads the last row of ``R``.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(average_accuracy(R), 4)
        0.6667
    """
    del b
    R = _matrix(R, convention)
    last = np.zeros(R.shape, bool)
    last[-1] = True
    return float(_needed("R", R, last).mean())


def average_incremental_accuracy(
    R: Any, b: Any = None, convention: Convention = "gem"
) -> float:
    """Mean over time of the mean accuracy on the tasks seen so far (iCaRL).

    Reads ``R`` on and below the diagonal.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(average_incremental_accuracy(R), 4)
        0.7556
    """
    del b
    R = _matrix(R, convention)
    seen = np.tri(len(R), dtype=bool)
    _needed("R", R, seen)
    sums = np.where(seen, R, 0.0).sum(1)
    return float((sums / seen.sum(1)).mean())


def accuracy_a(R: Any, b: Any = None, convention: Convention = "gem") -> float:
    r"""Mean of all accuracies on tasks seen, A of Díaz-Rodríguez et al.

    .. math:: \frac{2}{T(T+1)} \sum_{i \ge j} R_{ij}

    Later times have more weight than in :func:`average_incremental_accuracy`.
    Reads ``R`` on and below the diagonal.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(accuracy_a(R), 4)
        0.7333
    """
    del b
    R = _matrix(R, convention)
    return float(_needed("R", R, np.tri(len(R), dtype=bool)).mean())


def forgetting(R: Any, b: Any = None, convention: Convention = "gem") -> float:
    r"""Mean loss of accuracy on all but the last task.

    .. math:: \frac{1}{T-1} \sum_{j<T} \Big(
       \max_{j \le l < T} R_{lj} - R_{Tj} \Big)

    This is Chaudhry et al., eq. 3. Avalanche replaces the best accuracy since
    the task was learned by the first, :math:`R_{jj}`. Needs two tasks and reads
    ``R`` on and below the diagonal.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(forgetting(R), 4)
        0.25
        >>> round(forgetting(R, convention="avalanche"), 4)
        0.2
    """
    if convention == "avalanche":
        return -backward_transfer(R, b, convention)
    R = _matrix(R, convention, least=2)
    seen = np.tri(len(R), dtype=bool)
    seen[-1, -1] = False
    _needed("R", R, seen)
    best = np.where(seen, R, -np.inf)[:-1, :-1].max(0)
    return float((best - R[-1, :-1]).mean())


def backward_transfer(
    R: Any, b: Any = None, convention: Convention = "gem"
) -> float:
    r"""Mean effect of later tasks on earlier ones; negative for forgetting.

    .. math:: \frac{1}{T-1} \sum_{j<T} (R_{Tj} - R_{jj}) \qquad
       \frac{2}{T(T-1)} \sum_{j<i} (R_{ij} - R_{jj})

    The left one, at the end, is GEM's and Avalanche's; the right one, at all
    times, that of Díaz-Rodríguez et al., ``"continuum"``. Needs two tasks.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(backward_transfer(R), 4)
        -0.2
        >>> round(backward_transfer(R, convention="continuum"), 4)
        -0.1
    """
    del b
    R = _matrix(R, convention, least=2)
    below = np.tri(len(R), k=-1, dtype=bool)
    if convention != "continuum":
        below[:-1] = False
    learned = np.eye(len(R), dtype=bool)
    learned[-1, -1] = False
    _needed("R", R, below | learned)
    return float((R - np.diagonal(R))[below].mean())


def forward_transfer(
    R: Any, b: Any = None, convention: Convention = "gem"
) -> float:
    r"""Mean effect of earlier tasks on those not learned yet.

    .. math:: \frac{1}{T-1} \sum_{j>1} (R_{j-1,j} - b_j) \qquad
       \frac{2}{T(T-1)} \sum_{i<j} R_{ij}

    The left one is GEM's and Avalanche's: accuracy on the next task relative
    to ``b``. The right one is that of Díaz-Rodríguez et al., ``"continuum"``:
    accuracy on all later tasks, without ``b``. Needs two tasks and reads ``R``
    above the diagonal.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(forward_transfer(R, [0.1, 0.1, 0.1]), 4)
        0.1
        >>> round(forward_transfer(R, convention="continuum"), 4)
        0.2
    """
    R = _matrix(R, convention, least=2)
    if convention == "continuum":
        above = ~np.tri(len(R), dtype=bool)
        return float(_needed("R", R, above).mean())
    if b is None:
        raise ValueError(
            f"b=None: forward transfer with convention={convention!r} needs "
            "the accuracies of a model that has learned nothing, [T]"
        )
    b = np.asarray(b, float)
    if b.shape != (len(R),):
        raise ValueError(
            f"b has shape {b.shape}; needs ({len(R)},), one for each task of R"
        )
    _needed("b", b, np.arange(len(b)) > 0)
    ahead = _needed("R", R, np.eye(len(R), k=1, dtype=bool))
    return float((ahead - b[1:]).mean())


def remembering(R: Any, b: Any = None, convention: Convention = "gem") -> float:
    r"""REM of Díaz-Rodríguez et al., 1 when nothing is forgotten.

    .. math:: 1 - |\min(\mathrm{BWT}, 0)|

    ``BWT`` is :func:`backward_transfer`.

    Example:
        >>> R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
        >>> round(remembering(R), 4)
        0.8
        >>> round(remembering(R, convention="continuum"), 4)
        0.9
    """
    return 1.0 - abs(min(backward_transfer(R, b, convention), 0.0))


def _matrix(R, convention, least=1):
    check_choice("convention", convention, get_args(Convention))
    R = np.asarray(R, float)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or len(R) < least:
        raise ValueError(
            f"R has shape {R.shape}; needs [T, T] with T >= {least}, row i "
            "after learning task i, column j the accuracy on task j"
        )
    return R


def _needed(name, values, where):
    """Returns ``values[where]``; raises unless all are accuracies."""
    bad = np.argwhere(where & ~((values >= 0) & (values <= 1))).tolist()
    if bad:
        value = values[tuple(bad[0])]
        raise ValueError(
            f"{name}{bad[0]} is {value}, and this metric reads it; needs "
            "accuracies in [0, 1]"
        )
    return values[where]
