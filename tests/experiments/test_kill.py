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


_SWEEP = """
import os, pathlib, sys, time
from experiments.shared.records import Records
from experiments.shared.sweep import grid, sweep

def run(x):
    folder = pathlib.Path(sys.argv[1])
    (folder / f"{x}-{os.getpid()}").touch()
    while x and not (folder / "go").exists():
        time.sleep(0.01)
    return {"y": 2 * x}

if __name__ == "__main__":
    records = Records(f"{sys.argv[1]}/r", {})
    rows = sweep(records, grid(x=[0, 1, 2]), run, jobs=2)
    print([row["y"] for row in rows])
"""


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_repeats_no_cell(tmp_path):
    (tmp_path / "script.py").write_text(_SWEEP)

    def start():
        return subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )

    first = start()
    while len(list(tmp_path.glob("[12]-*"))) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.communicate()
    for path in tmp_path.glob("[12]-*"):
        pid = path.name.partition("-")[2]
        deadline = time.monotonic() + 10
        while pathlib.Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, "a run outlives its sweep"
            time.sleep(0.05)
        path.unlink()
    (tmp_path / "go").touch()
    again = start()
    out, _ = again.communicate()
    assert again.returncode == 0 and out.splitlines()[-1] == "[0, 2, 4]"
    assert len(list(tmp_path.glob("0-*"))) == 1
    assert len(list(tmp_path.glob("[12]-*"))) == 2
