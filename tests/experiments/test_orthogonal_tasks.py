"""Orthogonal tasks: the problem, the measure, the smallest run."""

import jax
import numpy as np
import optax
import pytest

from experiments.optimizers import orthogonal_tasks
from experiments.optimizers.task_sequence import (
    forgotten,
    learn,
    loss,
    make_data,
)


def test_tasks_share_no_direction():
    inputs, targets, layers = make_data(0, tasks=3, dim=4, hidden=5)
    assert inputs.shape[::2] == (3, 12) and targets.shape[:2] == (3, 128)
    products = np.einsum("inx,jmx->ijnm", inputs, inputs)
    size = np.abs(products).max((2, 3))
    assert (size[~np.eye(3, dtype=bool)] < 1e-5).all()
    assert (size.diagonal() > 1).all()
    # No coordinate belongs to one task alone.
    assert (np.abs(inputs).max(1) > 0.1).all()
    first, second = jax.vmap(jax.grad(loss), (None, 0, 0))(
        layers, inputs, targets
    )
    cosines = [
        abs(np.vdot(g[0], g[1])) / np.linalg.norm(g[0]) / np.linalg.norm(g[1])
        for g in (first, second)
    ]
    assert cosines[0] < 1e-5 < 1e-2 < cosines[1]


def test_forgotten_of_a_worked_example():
    losses = np.array([[0.5, 1.0, 1.0], [0.6, 0.4, 0.9], [0.8, 0.3, 0.5]])
    # (0.8 - 0.5) and (0.3 - 0.4); the last task has had no time to forget.
    assert forgotten(losses) == pytest.approx(0.1)
    assert forgotten(np.stack([losses, 2 * losses])) == pytest.approx(
        np.array([0.1, 0.2])
    )


def test_only_memory_forgets_orthogonal_tasks():
    """Gradient descent on one layer leaves other tasks as they are."""
    data = make_data(1, tasks=3, dim=4, hidden=0)
    losses, steps, made = learn(optax.sgd, 0.6, 0.05, 0, data, 200)
    assert made and 3 <= steps < 600
    assert losses[np.triu_indices(3, 1)] == pytest.approx(1, abs=1e-5)
    assert abs(forgotten(losses)) < 1e-5
    own = np.diagonal(losses)
    assert (own <= 0.4).all() and (own > 0.3).all()

    def momentum(rate):
        return optax.sgd(rate, 0.9)

    losses, _, made = learn(momentum, 0.6, 0.05, 0, data, 200)
    assert made and abs(forgotten(losses)) > 0.05


def test_nothing_is_learned_after_a_task_that_fails():
    data = make_data(1, tasks=3, dim=4, hidden=0)
    losses, steps, made = learn(optax.sgd, 0.6, 1e-6, 0, data, 7)
    assert not made and steps == 7
    assert (losses == losses[0]).all()


def test_script(finished):
    arguments = (
        "--tasks=2",
        "--dim=2",
        "--hidden=4",
        "--steps=100",
        "--rates=6",
        "--seeds=0,1",
        "--tuning_seeds=2",
        "--progress=0.5",
        "--optimizers=momentum,m3",
    )
    out, record = finished(orthogonal_tasks, *arguments)
    assert "not reached" not in out
    momentum, m3 = (np.mean(row["forgotten"]) for row in record["rows"])
    assert f"| m3 than momentum | {100 * (momentum - m3):.1f} +- " in out
    for row in record["rows"]:
        losses = np.array(row["losses"])
        assert losses.shape == (1, 2, 2, 2)
        assert forgotten(losses) == pytest.approx(np.array(row["forgotten"]))
        assert (np.array(row["last task"]) >= 0.5).all()
        best = np.array(row["tuning"][0], float)
        assert row["rates"] == [row["tried"][np.nanargmin(best)]]
    again, _ = finished(orthogonal_tasks, *arguments)
    assert again in out and "momentum: " not in again


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizers=lion", "allowed are momentum, "),
        ("--tasks=1", "--tasks=1"),
        (
            "--progress=much",
            "--progress=much: must be between 0 and 1; c",
        ),
        ("--progress=0.5,1", "--progress=0.5,1: must be between 0 and 1"),
        ("--seeds=100", "--tuning_seeds: must not be among --seeds"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(orthogonal_tasks, words, flag)
