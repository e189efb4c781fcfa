"""The grid of levels and slowest periods: its levels, one small run, flags."""

import numpy as np
import pytest

from experiments.classes import levels_effect
from nl_jax.continual import metrics
from tests.experiments.conftest import word_table


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_levels_share_out_the_width_down_to_the_delta_rule(count):
    levels = levels_effect.make_levels(64, count, 256, 4, 0.9, 0.1)
    assert len(levels) == count and sum(level.width for level in levels) == 64
    assert levels[-1].period == 256 and levels[-1].retention == 0.9
    if count > 1:
        assert levels[0].period == 1 and levels[0].retention == 0
    assert all(level.width == 6 for level in levels[:-1])
    steps = [level.period for level in levels[1:]]
    assert steps == [256 // 4**i for i in range(count - 1)][::-1]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return word_table(tmp_path_factory.mktemp("data"), 40)


TINY = ("--tasks=3", "--width=64", "--seeds=0,1", "--slowest=32")


def test_a_slow_level_lasts_and_a_fast_one_is_up_to_date(finished, table):
    flags = (
        *TINY,
        f"--data={table}",
        "--levels=1,2",
        "--slowest=4,128",
        "--retention=0.5",
    )
    out, record = finished(levels_effect, *flags)
    assert len(record["rows"]) == 2 * 2 * 2
    for row in record["rows"]:
        assert row["forgetting"]["gem"] == pytest.approx(
            metrics.forgetting(np.array(row["R"])), abs=1e-5
        )

    def mean(key, levels, slowest):
        found = [
            row[key] if key == "new task" else row[key]["gem"]
            for row in record["rows"]
            if (row["levels"], row["slowest"]) == (levels, slowest)
        ]
        return np.mean(found)

    assert mean("forgetting", 1, 128) < mean("forgetting", 1, 4)
    assert mean("new task", 2, 128) > 0.2 + mean("new task", 1, 128)
    assert f"| 1 level | {100 * mean('forgetting', 1, 4):.1f} +- " in out
    again, _ = finished(levels_effect, *flags)
    assert again in out and "features of" not in again


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--slowest=24", "must be a multiple of 16"),
        ("--slowest=16", "must be a multiple of 16, and more"),
        ("--levels=0", "--levels=0"),
        ("--share=0.4", "nothing is left for the slowest of 4 levels"),
        ("--tasks=7", "there are only 6 classes"),
        ("--retention=2", "--retention=2"),
    ],
)
def test_wrong_flags(refused, table, flag, words):
    refused(levels_effect, words, *TINY, f"--data={table}", flag)
