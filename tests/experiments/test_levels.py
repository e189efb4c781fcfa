"""Levels by number and lowest frequency: periods, sizes and the script."""

import jax
import numpy as np
import pytest

from experiments.continuum import levels
from nl_jax.nested.level_table import count_parameters


def test_periods_are_powers_of_two_from_16_to_the_slowest():
    assert levels.periods_of(1, 128) == (128,)
    assert levels.periods_of(2, 128) == (16, 128)
    assert levels.periods_of(4, 128) == (16, 32, 64, 128)
    assert levels.periods_of(4, 1024) == (16, 64, 256, 1024)


def test_parameters_do_not_grow_with_the_number_of_levels():
    tokens = jax.ShapeDtypeStruct((1, 1), np.int32)
    sizes = []
    for count in (1, 2, 4):
        periods = levels.periods_of(count, 128)
        model = levels._model(count, 32, periods)
        sizes.append(
            count_parameters(
                jax.eval_shape(model.init, jax.random.key(0), tokens)
            )
        )
    assert max(sizes) < 1.01 * min(sizes)


def row(count, slowest, rate, seed, nats):
    cell = {"levels": count, "slowest": slowest, "rate": rate, "seed": seed}
    gain = None if nats is None else 2.5 - nats
    return {**cell, "nats": nats, "static": 2.5, "gain": gain}


def test_each_number_of_levels_is_shown_at_its_best_rate(capsys, tmp_path):
    rows = [
        *(row(1, 128, 0.1, seed, 2.0 + seed) for seed in (0, 1)),
        *(row(1, 128, 0.2, seed, 1.0 if seed else None) for seed in (0, 1)),
        *(row(2, 128, 0.1, seed, 3.0) for seed in (0, 1)),
        *(row(2, 128, 0.2, seed, 1.5) for seed in (0, 1)),
    ]
    levels.summarize(rows, {}, tmp_path)
    out = capsys.readouterr().out
    # A rate at which one seed diverged is not the best.
    assert "| 1 level | 2.5000 ± 0.0000 | 2.5000 ± 0.5000 |" in out
    assert "| 2 levels | 2.5000 ± 0.0000 | 1.5000 ± 0.0000 |" in out
    assert "| 2 levels | 2.5000 ± 0.0000 | 1.0000 ± 0.0000 |" in out


SMALL = (
    *("--levels=1,2", "--slowest=32", "--rates=1e-9", "--seeds=0"),
    *("--steps=2", "--length=64", "--rows=1", "--segment=32", "--width=8"),
)


@pytest.mark.slow
def test_levels_that_do_not_move_are_the_static_network(finished):
    _, record = finished(levels, *SMALL)
    assert [row["levels"] for row in record["rows"]] == [1, 2]
    for found in record["rows"]:
        assert found["nats"] == pytest.approx(found["static"], abs=1e-4)
        assert found["gain"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--slowest=96", "must be 16 times a power of two"),
        ("--slowest=64", "at least 128 for --levels=4"),
        ("--rates=0", "needs a number above 0"),
    ],
)
def test_wrong_flags(refused, flag, words):
    refused(levels, words, flag)
