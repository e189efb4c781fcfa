"""Signals while Python imports, collects garbage, or is ending already."""

import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
IMPORTING = """
import gc, signal, sys
sys.argv[0] = "-m"
import experiments
"""
RUNNING = """
import gc, signal, sys
from experiments.shared.interrupts import ExitAtSignal
"""
# As JAX does, whose callback of the collector is written in Python.
SWALLOWED = """
gc.callbacks.append(lambda *_: signal.raise_signal(signal.{0}))
gc.collect()
print("lost")
"""
RENAMED = """
try:
    signal.raise_signal(signal.{0})
except KeyboardInterrupt:
    raise ImportError("lost")
"""
TWICE = """
try:
    signal.raise_signal(signal.{0})
finally:
    gc.callbacks.append(lambda *_: signal.raise_signal(signal.{0}))
    gc.collect()
    print("lost")
"""


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(
    "code",
    [SWALLOWED, RENAMED, TWICE],
    ids=["swallowed", "renamed", "twice"],
)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_script(running, code, name):
    code = code.format(name)
    if running:
        code = "with ExitAtSignal():" + code.replace("\n", "\n    ")
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            (RUNNING if running else IMPORTING) + code,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 128 + signal.Signals[name]
    assert (found.stdout, found.stderr) == ("", f"\nstopped by {name}\n")


def test_importing_the_package_leaves_signals_alone():
    code = (
        "import signal; was = signal.getsignal(signal.SIGINT)\n"
        "import experiments; assert signal.getsignal(signal.SIGINT) is was"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
