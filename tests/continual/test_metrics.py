"""The worked example of the specification, definitions, and bad input."""

import numpy as np
import pytest

from nl_jax.continual import metrics

R = [[0.8, 0.1, 0.2], [0.9, 0.7, 0.3], [0.6, 0.5, 0.9]]
B = [0.1, 0.1, 0.1]
ALL = [name for name in metrics.__all__ if name != "Convention"]


@pytest.mark.parametrize(
    ("name", "gem", "continuum", "avalanche"),
    [
        ("average_accuracy", 2 / 3, 2 / 3, 2 / 3),
        ("average_incremental_accuracy", 34 / 45, 34 / 45, 34 / 45),
        ("accuracy_a", 11 / 15, 11 / 15, 11 / 15),
        ("forgetting", 0.25, 0.25, 0.20),
        ("backward_transfer", -0.20, -0.10, -0.20),
        ("forward_transfer", 0.10, 0.20, 0.10),
        ("remembering", 0.80, 0.90, 0.80),
    ],
)
def test_the_worked_example(name, gem, continuum, avalanche):
    metric = getattr(metrics, name)
    assert metric(R, B) == pytest.approx(gem, abs=1e-12)
    found = metric(R, B, convention="continuum")
    assert found == pytest.approx(continuum, abs=1e-12)
    found = metric(np.array(R), np.array(B), "avalanche")
    assert found == pytest.approx(avalanche, abs=1e-12)
    assert type(found) is float


def test_definitions_written_as_loops():
    rng = np.random.default_rng(0)
    T = 5
    R, b = rng.random((T, T)), rng.random(T)
    bwt = sum(R[T - 1, j] - R[j, j] for j in range(T - 1)) / (T - 1)
    assert metrics.backward_transfer(R) == pytest.approx(bwt)
    every = [R[i, j] - R[j, j] for i in range(T) for j in range(i)]
    found = metrics.backward_transfer(R, convention="continuum")
    assert found == pytest.approx(np.mean(every))
    best = [max(R[i, j] for i in range(j, T - 1)) for j in range(T - 1)]
    lost = np.mean([best[j] - R[T - 1, j] for j in range(T - 1)])
    assert metrics.forgetting(R) == pytest.approx(lost)
    fwt = np.mean([R[j - 1, j] - b[j] for j in range(1, T)])
    assert metrics.forward_transfer(R, b) == pytest.approx(fwt)
    later = [R[i, j] for j in range(T) for i in range(j)]
    found = metrics.forward_transfer(R, convention="continuum")
    assert found == pytest.approx(np.mean(later))


def test_only_what_is_read_must_be_there():
    """Tasks not learned yet need no accuracy, but for forward transfer."""
    seen = np.where(np.tri(3, dtype=bool), R, np.nan)
    for name in ALL:
        for convention in ("gem", "continuum", "avalanche"):
            metric = getattr(metrics, name)
            if name == "forward_transfer":
                with pytest.raises(ValueError, match=r"R\[0, 1\] is nan"):
                    metric(seen, B, convention)
            else:
                whole = metric(R, B, convention)
                assert metric(seen, B, convention) == whole
    for name, hole in [
        ("average_accuracy", (2, 0)),
        ("forgetting", (1, 0)),
        ("backward_transfer", (1, 1)),
        ("accuracy_a", (1, 0)),
    ]:
        holes = np.array(R)
        holes[hole] = np.nan
        with pytest.raises(ValueError, match=rf"R\[{hole[0]}, {hole[1]}\]"):
            getattr(metrics, name)(holes)
    unknown = [np.nan, 0.1, 0.1]  # Nothing comes before the first task.
    assert metrics.forward_transfer(R, unknown) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ALL)
def test_bad_input(name):
    metric = getattr(metrics, name)
    with pytest.raises(ValueError, match=r"R has shape \(2, 3\); needs \[T"):
        metric(R[:2], B)
    with pytest.raises(ValueError, match="convention='mine' must be one of"):
        metric(R, B, convention="mine")
    percent = [[100 * value for value in row] for row in R]
    with pytest.raises(ValueError, match=r"needs accuracies in \[0, 1\]"):
        metric(percent, B)


def test_bad_baselines_and_too_few_tasks():
    with pytest.raises(ValueError, match="b=None: forward transfer with"):
        metrics.forward_transfer(R)
    with pytest.raises(ValueError, match=r"b has shape \(2,\); needs \(3,\)"):
        metrics.forward_transfer(R, B[:2])
    with pytest.raises(ValueError, match=r"b\[2\] is nan"):
        metrics.forward_transfer(R, [0.1, 0.1, np.nan])
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        with pytest.raises(ValueError, match="T >= 2"):
            getattr(metrics, name)([[0.5]], [0.1])
    assert metrics.average_accuracy([[0.5]]) == 0.5
