"""Versions, memory, signals, locks and atomic file writes of a process."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from nl_jax.errors import InputError

_LOG = logging.getLogger(__name__)


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


@contextlib.contextmanager
def locked(folder: pathlib.Path, flag: str = "--workdir") -> Iterator[None]:
    """Context in which no other process writes into a folder.

    Process 0 of a run holds the lock for all. The operating system releases it
    when that process ends, in whatever way; the file stays.

    Args:
        folder: the folder, which is created if necessary.
        flag: that names another folder, for the error message.

    Raises:
        InputError: if another process holds the lock, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        owner = ""
        if jax.process_index() == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / "lock").open("a+"))
            except OSError as error:
                owner = f"cannot be used ({error.strerror})"
            else:
                owner = _take(file)
        refused = bool(owner)
        if jax.process_count() > 1:
            found = multihost_utils.broadcast_one_to_all(np.int32(refused))
            refused = bool(found)
        if refused:
            raise InputError(
                f"{folder} {owner or 'is refused by process 0'}; give another "
                f"{flag}"
            )
        yield


def _take(file) -> str:
    """Locks a file, and writes its owner; returns why it is not possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return f"is in use by {file.read().strip() or 'another process'}"
    except OSError as error:
        # Some network filesystems have no locks.
        _LOG.warning("cannot lock %s (%s)", file.name, error.strerror)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return ""


class StopSignal:
    """Context in which the first SIGINT or SIGTERM only sets ``asked``.

    The second one raises ``KeyboardInterrupt``.
    """

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
        if self.asked:
            raise KeyboardInterrupt(number)
        self.asked = True


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file atomically."""
    path = pathlib.Path(path)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(fresh, path)
