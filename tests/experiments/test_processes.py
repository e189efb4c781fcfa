"""Two processes of two devices each, of which one is stopped or killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.experiments.test_kill import ROOT, curve, lines

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Starts both processes of a run, and ends what is left of them."""
    processes = []

    def begin(*flags, own=None):
        port = free_port()
        both = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "experiments.train_lm",
                    "--config=experiments/configs/smoke.py",
                    "--config.steps=1000000",
                    "--config.keep_checkpoints=2",
                    "--config.checkpoint_every=1000000",
                    f"--workdir={tmp_path / 'run'}",
                    f"--coordinator_address=localhost:{port}",
                    "--num_processes=2",
                    f"--process_id={number}",
                    *flags,
                    *(own or {}).get(number, []),
                ],
                cwd=ROOT,
                env=os.environ
                | {
                    "JAX_PLATFORMS": "cpu",
                    "PYTHONUNBUFFERED": "1",
                    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
                    + " --xla_force_host_platform_device_count=2",
                },
                stdout=(tmp_path / f"out{number}").open("w"),
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in range(2)
        ]
        processes.extend(both)
        return both

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def _wait_for_steps(tmp_path, processes, least=1):
    deadline = time.monotonic() + 240
    while len(lines(tmp_path / "run")) < least:
        assert time.monotonic() < deadline, _output(tmp_path)
        for process in processes:
            assert process.poll() is None, _output(tmp_path)
        time.sleep(0.1)


def _output(tmp_path):
    return [(tmp_path / f"out{n}").read_text() for n in range(2)]


def _ends(processes, seconds):
    """Exit statuses, if all processes end in time."""
    deadline = time.monotonic() + seconds
    return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in processes]


@pytest.mark.parametrize(
    ("number", "asked"),
    [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 1)],
)
def test_both_stop_after_the_same_step(start, tmp_path, number, asked):
    processes = start()
    _wait_for_steps(tmp_path, processes)
    processes[asked].send_signal(number)
    assert _ends(processes, 20) == [0, 0], _output(tmp_path)
    first, other = _output(tmp_path)
    assert "stopped by a signal after step" in first
    assert "step" not in other  # Only process 0 prints.
    done = len(lines(tmp_path / "run"))
    again = start()
    _wait_for_steps(tmp_path, again, done + 1)
    assert f"going on from step {done}" in _output(tmp_path)[0]


@pytest.mark.parametrize("killed", [0, 1])
def test_the_death_of_one_ends_the_other_with_a_line(start, tmp_path, killed):
    processes = start()
    _wait_for_steps(tmp_path, processes)
    processes[killed].kill()
    other = processes[1 - killed]
    assert other.wait(60) == 1
    last = _output(tmp_path)[1 - killed].strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "another process of the run has gone" in last


def test_an_error_of_one_ends_both_and_is_its_last_line(start, tmp_path):
    """Which may be a file that only one host has."""
    missing = tmp_path / "missing.txt"
    processes = start(own={1: [f"--config.data.paths={missing}"]})
    assert _ends(processes, 60 + 60) == [1, 2], _output(tmp_path)
    other, own = (text.strip().splitlines()[-1] for text in _output(tmp_path))
    assert own.startswith(f"error: data.paths: '{missing}' does not exist")
    assert other.startswith("error: ") and "another process" in other


def test_both_stop_within_an_evaluation(start, tmp_path):
    text = tmp_path / "long.txt"
    words = range(30_000)
    text.write_text("\n\n".join(f"Paragraph {n} of many more." for n in words))
    processes = start(
        f"--config.data.paths={text}",
        "--config.data.held_out=0.5",
        "--config.data.max_held_out_bytes=1000000",
        "--config.eval_every=1",
    )
    _wait_for_steps(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert _ends(processes, 20) == [0, 0], _output(tmp_path)
    assert "stopped by a signal after step 1" in _output(tmp_path)[0]


@pytest.mark.parametrize("axis", ["tensor", "sequence"])
def test_an_axis_may_go_across_processes(start, tmp_path, axis):
    """Data goes by the rows of a device, of which each process has all."""
    flags = ["--config.steps=4", "--config.model.name=transformer"]
    processes = start(*flags, "--config.mesh.data=1", f"--config.mesh.{axis}=4")
    config = "--config=experiments/configs/smoke.py"
    alone = f"--workdir={tmp_path / 'alone'}"
    subprocess.run(
        [sys.executable, "-m", "experiments.train_lm", config, alone, *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
    )
    assert _ends(processes, 240) == [0, 0], _output(tmp_path)
    found, expected = (
        [row["loss"] for row in curve(tmp_path / run) if "loss" in row]
        for run in ("run", "alone")
    )
    assert len(expected) == 4
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_process_that_compiles_for_long_is_waited_for():
    """Without that, a collective on CPUs gives up after 30 s."""
    program = """
import sys, time, jax
from jax.experimental import multihost_utils
from nl_jax.training.process import wait_for_processes
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
time.sleep(35 * jax.process_index())
wait_for_processes("compiled")
print(multihost_utils.process_allgather(jax.process_index()).tolist())
"""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"localhost:{port}", str(number)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "[0, 1]" in output, output
