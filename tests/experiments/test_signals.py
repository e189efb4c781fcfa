"""Ctrl-C and SIGTERM, sent to real processes at any moment."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.experiments.test_kill import ROOT, STEPS, curve, lines, start

pytestmark = pytest.mark.slow


def begin(name, *flags, cache=True):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    if not cache:
        env.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_compilation_ends_with_one_line(tmp_path, number):
    """The table of levels is printed right before the model is compiled."""
    process = begin("train_lm", f"--workdir={tmp_path / 'run'}", cache=False)
    while not process.stdout.readline().startswith("cms.level_2"):
        assert process.poll() is None
    time.sleep(1.0)
    process.send_signal(number)
    sent = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - sent < 6
    assert process.returncode == 128 + number
    assert errors.split("\n") == ["", f"stopped by {number.name}", ""]


def test_a_run_that_is_often_stopped_loses_nothing(tmp_path):
    """Between steps, in an evaluation, and while saving, as it happens."""
    flags = "--config.eval_every=9"
    alone = start(tmp_path / "alone", flags)
    assert alone.wait() == 0
    stopped, codes = tmp_path / "stopped", []
    for target in sorted(random.sample(range(1, STEPS), 4)):
        process = start(stopped, flags)
        while len(lines(stopped)) < target and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(random.choice([signal.SIGINT, signal.SIGTERM]))
        _, errors = process.communicate()
        codes.append(process.returncode)
        assert "Traceback" not in errors
    assert set(codes) <= {0, 130, 143}
    process = start(stopped, flags)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert curve(stopped) == curve(tmp_path / "alone")


def test_a_stopped_sample_saves_its_state(tmp_path):
    here = f"--workdir={tmp_path / 'run'}"
    small = "--config=experiments/configs/smoke.py"
    assert begin("train_lm", here, small).wait() == 0
    state = tmp_path / "state"
    process = begin(
        "generate", here, "--tokens=100000", f"--save_state={state}"
    )
    assert process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    more = begin("generate", here, "--tokens=5", f"--load_state={state}")
    out, errors = more.communicate()
    assert more.returncode == 0 and out, errors


def test_two_runs_in_one_folder(tmp_path):
    first = start(tmp_path)
    while not pathlib.Path(tmp_path, "lock").exists():
        assert first.poll() is None
        time.sleep(0.01)
    second = start(tmp_path)
    _, errors = second.communicate()
    assert second.returncode == 2 and errors.count("\n") == 1
    assert f"is in use by process {first.pid} on" in errors
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert len(lines(tmp_path)) == STEPS + 1
