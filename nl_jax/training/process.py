"""Process-level helpers: versions, memory, signals and atomic file writes."""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import signal
import subprocess
import sys
import threading
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Returns versions and devices, on which results can depend."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
    out = {name: importlib.metadata.version(name) for name in names}
    out["numpy"] = importlib.metadata.version("numpy")
    out["python"] = platform.python_version()
    out["backend"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return out


def git_revision() -> str | None:
    """Returns the Git revision of this code, with ``+`` if it was edited."""
    folder = pathlib.Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def peak_memory_bytes() -> int:
    """Returns the peak resident set size of this process, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory_bytes() -> int:
    """Returns this process's resident set size; without Linux, its peak."""
    status = pathlib.Path("/proc/self/statm")
    if not status.exists():
        return peak_memory_bytes()
    return int(status.read_text().split()[1]) * resource.getpagesize()


class StopSignal:
    """Context in which the first SIGINT or SIGTERM only sets ``asked``."""

    asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        del frame
        self.asked = True
        # A second signal has its usual effect.
        signal.signal(number, self._before[number])


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file atomically."""
    path = pathlib.Path(path)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(fresh, path)
