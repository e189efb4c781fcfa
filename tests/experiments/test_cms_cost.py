"""The cost of learning in context: each arm measured, and what is refused."""

import pytest

from experiments.continuum import cms_cost

SMALL = (
    "--lengths=8,32",
    "--chunk=4",
    "--slower=2",
    "--width=8",
    "--layers=1",
    "--rounds=1",
)


def test_the_exponent_is_of_the_ends():
    rows = {}
    for arm in cms_cost.ARMS:
        for length, size in ((16, 3e6), (64, 6e6), (256, 12e6)):
            rows[arm, length] = {
                "forward_seconds": 1.0,
                "both_seconds": 2.0,
                "forward_bytes": 1e6,
                "both_bytes": size,
            }
    lines, growth = cms_cost.summarize(rows, [16, 64, 256])
    assert growth["local"] == pytest.approx(0.5)
    assert lines[-1] == "| local | 256 | 1.0 | 1.0 | 1.0 | 12.0 | 0.50 |"


@pytest.mark.slow
def test_every_arm_is_measured_once(finished):
    first, record = finished(cms_cost, *SMALL)
    assert len(record["rows"]) == 2 * len(cms_cost.ARMS)
    assert all(row["both_bytes"] > 0 for row in record["rows"])
    again, _ = finished(cms_cost, *SMALL)
    assert "'arm': " in first and "'arm': " not in again


def test_wrong_flags_are_one_line(refused):
    for flag, words in (
        ("--lengths=64,32", "--lengths=64,32: must rise and be multiples"),
        ("--lengths=40", "multiples of --chunk=16"),
        ("--width=12", "--width=12: must be a multiple of 8"),
    ):
        refused(cms_cost, words, flag)
