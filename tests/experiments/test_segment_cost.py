"""The cost of segment ids: each case measured once, and what is refused."""

import pytest

from experiments.speed import segment_cost

SMALL = (
    "--models=transformer,mamba/local",
    "--lengths=64",
    "--width=8",
    "--batch=2",
    "--rounds=1",
)


@pytest.mark.slow
def test_every_case_is_measured_once(finished):
    first, record = finished(segment_cost, *SMALL)
    assert [row["model"] for row in record["rows"]] == [
        "transformer",
        "mamba/local",
    ]
    assert all(row["packed_seconds"] > 0 for row in record["rows"])
    again, _ = finished(segment_cost, *SMALL)
    words = "mamba/local at 64 tokens after"
    assert words in first and words not in again


def test_wrong_flags_are_one_line(refused):
    for flag, words in (
        ("--models=hop", "--models=hop: model 'hop' does not exist"),
        ("--models=hope/lokal", "--models=hope/lokal: "),
        ("--lengths=8", "64"),
    ):
        refused(segment_cost, words, flag)
