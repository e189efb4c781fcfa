"""kill -9 at random steps, start again: the run as if nothing had happened."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from tests.training.test_loop import CLOCKS

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 120


def start(workdir, *flags):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.train_lm",
            "--config=experiments/configs/smoke.py",
            "--config.model.d_model=16",
            "--config.model.titans.chunk_size=4",
            "--config.model.titans.memory_chunk_size=4",
            "--config.seq_len=16",
            "--config.sample.tokens=0",
            "--config.checkpoint_every=7",
            f"--config.steps={STEPS}",
            f"--workdir={workdir}",
            *flags,
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def curve(workdir):
    """Everything in the metrics but the clock, bit for bit."""
    records = [json.loads(line) for line in lines(workdir)]
    for record in records:
        for column in CLOCKS:
            record.pop(column, None)
    return records


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    alone = start(tmp_path / "alone")
    _, errors = alone.communicate()
    assert alone.returncode == 0, errors
    expected = curve(tmp_path / "alone")
    assert len(expected) == STEPS + 1

    killed = tmp_path / "killed"
    kills = []
    for first, last in ((10, 40), (50, 90)):
        target = random.randint(first, last)
        process = start(killed)
        while len(lines(killed)) < target and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        kills.append(len(lines(killed)))
    assert max(kills) < STEPS, f"killed too late: {kills}"
    process = start(killed)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "going on from step" in output
    assert curve(killed) == expected, f"killed after {kills} lines"
    # The checkpoints are the same too: what a third process would read on.
    results = [
        json.loads((path / "results.json").read_text())
        for path in (killed, tmp_path / "alone")
    ]
    key = "held_out_bits_per_byte"
    assert results[0][key] == results[1][key]
