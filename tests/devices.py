"""Programs that need more devices than this process has."""

import os
import pathlib
import subprocess
import sys

import jax


def run_on_devices(program, *arguments, devices=8):
    """Runs Python source on CPU devices of its own; returns what it printed.

    It is optimised as programs of this process are.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    plain = jax.config.read("jax_disable_most_optimizations")
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ
        | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(plain)),
        },
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
