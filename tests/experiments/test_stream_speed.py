"""The long stream: its text, its verdicts and what it writes."""

import itertools

import numpy as np
import pytest

from experiments.streams import stream_speed
from nl_jax.models import build


def test_rows_read_on_from_their_own_places():
    source = stream_speed.pieces(bytes(range(10)), 2, 4)
    found = np.concatenate(list(itertools.islice(source, 3)), 1)
    assert found[0].tolist() == [*range(10), 0, 1]
    assert found[1].tolist() == [*range(5, 10), *range(7)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, []),
        ({"resident_bytes": 3e6}, ["memory grew by 2.0 MB"]),
        ({"finite": False}, ["a loss or norm is not finite"]),
        ({"rate": 80.0}, ["the rate of a window is 20 % from the median"]),
    ],
)
def test_what_is_judged(change, words):
    row = {"finite": True, "rate": 100.0, "resident_bytes": 1e6}
    rows = [row, row, row | change, row]
    assert stream_speed.judge(rows, memory_limit=1, rate_limit=0.1) == words


def test_every_level_of_its_model_learns():
    model = stream_speed.make_model()
    assert model.learns_in_context and len(model.config.cms.periods) == 2
    assert model.config.mixer == "titans"


def test_the_script_writes_every_window(
    finished, script, tmp_path, monkeypatch
):
    def small():
        return build(
            "hope-attention",
            d_model=8,
            n_heads=2,
            n_layers=1,
            cms={
                "objective": "next_token",
                "token_periods": (4, 8),
                "hidden": 1.0,
            },
        )

    monkeypatch.setattr(stream_speed, "make_model", small)
    flags = (
        "--rows=2",
        "--chunk=8",
        "--rate_limit=1e9",
        "--memory_limit=1e3",
        f"--out={tmp_path}",
    )
    out, record = finished(stream_speed, "--tokens=960", *flags)
    assert "memory constant, rate steady, no NaN" in out
    assert [row["tokens"] for row in record["windows"]] == [
        48 * number for number in range(1, 21)
    ]
    assert all(row["finite"] and row["rate"] > 0 for row in record["windows"])
    assert min(record["windows"][-1]["moved"]) > 0
    status, _, errors = script(
        stream_speed, "--tokens=960", *flags, "--rate_limit=-1"
    )
    assert status == 1, errors
    status, _, errors = script(stream_speed, "--tokens=100", *flags)
    assert status == 2 and "--tokens=100: needs at least 640" in errors
