"""Adaptive against fixed periods: the streams, the matching, what is kept."""

import numpy as np

from experiments.continuum import adaptive_frequency as experiment
from experiments.continuum.changing_text import streams

SMALL = (
    "--arms=surprise:1.01",
    "--seeds=0",
    "--rates=0.01",
    "--least=1",
    "--most=3",
    "--steps=2",
    "--length=96",
    "--rows=2",
    "--segment=32",
    "--width=8",
)


def test_streams_change_their_source_and_read_on():
    texts = [np.arange(100), np.arange(1000, 1100)]
    rows = streams(texts, 2, 50, 20, seed=0)
    assert rows.shape == (2, 50)
    assert [(row // 1000)[[0, 20, 40]].tolist() for row in rows] == [
        [0, 1, 0],
        [1, 0, 1],
    ]
    assert (rows[0, 40] - rows[0, 19]) % 100 == 1


def test_runs_are_kept_and_updates_are_matched(finished):
    first, _ = finished(experiment, *SMALL)
    again, record = finished(experiment, *SMALL)
    assert "surprise:1.01 0 0.01" in first
    assert again.startswith("| slower level")
    adaptive, fixed = (
        mean for name, mean in record["best"].items() if name != "static"
    )
    assert 2 <= adaptive["updates"] <= 6
    nearest = min((6, 3, 2), key=lambda n: abs(n - adaptive["updates"]))
    assert fixed["updates"] == nearest


def test_wrong_flags_are_one_line(refused):
    for flag, words in (
        ("--arms=mood:1", "allowed are coherence, surprise"),
        ("--arms=surprise", "--arms=surprise: needs a number above 0"),
        ("--rates=fast", "--rates=fast: needs a number above 0"),
        ("--length=100", "--length=100: must be a multiple of 16"),
        ("--least=1", "--least=1: must be at least 2 with coherence"),
        ("--least=40", "--least=40: must be at most --most=32"),
        ("--width=12", "--width=12: must be a multiple of 8"),
    ):
        refused(experiment, words, flag)
