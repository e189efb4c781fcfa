"""Loops of one model, timed in turn."""

import json

import pytest

from experiments.speed import loop_speed

SMALL = ("--width=8", "--batch=2", "--length=64", "--rounds=1")


@pytest.mark.slow
def test_four_loops_are_timed(script, tmp_path):
    status, out, errors = script(
        loop_speed, *SMALL, "--steps=3", "--log_every=2", f"--out={tmp_path}"
    )
    assert status == 0, errors
    assert "| ahead | 2 together |" in out
    rows = json.loads((tmp_path / "loop_speed.json").read_text())["rows"]
    assert rows[0]["ratio"] == 1 and len(rows) == 4
    for row in rows:
        relative = row["step_seconds"] / rows[0]["step_seconds"]
        assert row["ratio"] == pytest.approx(relative)
