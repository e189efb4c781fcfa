"""Versions, memory, signals, locks and atomic file writes of a process."""

import contextlib
import faulthandler
import fcntl
import functools
import importlib.metadata
import itertools
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
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from nl_jax.errors import InputError
from nl_jax.training.run_folder import is_remote

_LOG = logging.getLogger(__name__)
_DAY_MS = 24 * 60 * 60 * 1000


def versions() -> dict[str, str]:
    """Returns versions and devices, on which results can depend."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
    out = {name: importlib.metadata.version(name) for name in names}
    out["numpy"] = importlib.metadata.version("numpy")
    out["python"] = platform.python_version()
    out["backend"] = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return out


@functools.cache
def git_revision() -> str | None:
    """Returns the Git revision of this code, with ``+`` if it was edited.

    That of the first call: files that change later are not what runs.
    """
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
def locked(folder: os.PathLike, flag: str = "--workdir") -> Iterator[None]:
    """Context in which no other process writes into a folder.

    Process 0 of a run holds the lock for all. The operating system releases it
    when that process ends, in whatever way; the file stays. Remote folders have
    no locks.

    Args:
        folder: the folder, which is created if necessary.
        flag: that names another folder, for the error message.

    Raises:
        InputError: if another process holds the lock, or it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        owner = ""
        if jax.process_index() == 0 and not is_remote(folder):
            try:
                os.makedirs(folder, exist_ok=True)
                file = stack.enter_context(open(f"{folder}/lock", "a+"))
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
    """Context in which the first SIGINT or SIGTERM asks a run to stop.

    The second one raises ``KeyboardInterrupt``. If there are several processes,
    all stop after the same step, to whichever a signal is sent: JAX's service
    for preemption hears SIGTERM, and SIGINT is passed on to it.

    Args:
        stall_seconds: seconds without :meth:`agree` after which all threads'
            stacks are printed; ``None`` for never.
    """

    asked = False

    def __init__(self, stall_seconds: float | None = None):
        self._stall_seconds = stall_seconds
        self._shared = jax.process_count() > 1
        self._interrupted = False
        self._turns = itertools.count(1)

    def __enter__(self) -> "StopSignal":
        self._before = {}
        numbers = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            for number in numbers[:1] if self._shared else numbers:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *unused) -> None:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self) -> bool:
        """Sets ``asked`` alike in all processes, and returns it.

        All call it as often: after every step, and while they evaluate.
        """
        # A notebook's sys.stderr has no file to which C could write.
        if self._stall_seconds and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(
                self._stall_seconds, repeat=True, file=sys.__stderr__.fileno()
            )
        if self._shared:
            now = multihost_utils.reached_preemption_sync_point(
                next(self._turns)
            )
            self.asked = self.asked or now
        return self.asked

    def _ask(self, number, frame) -> None:
        del frame
        if self._interrupted:
            raise KeyboardInterrupt(number)
        self._interrupted = True
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.asked = True


def wait_for_processes(what: str) -> None:
    """Waits until all processes of a run have done something.

    Collectives on CPUs wait for half a minute only. Compiling can take longer
    where process 0 has kept its programs and the others have not.
    """
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=_DAY_MS)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file atomically."""
    file = epath.Path(path)
    fresh = file.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    fresh.replace(file)


def cache_programs(folder: epath.Path) -> None:
    """Has JAX keep compiled programs in a folder, unless it does elsewhere.

    A local folder must be this user's, since what lies in it is run.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    if not is_remote(folder):
        try:
            os.makedirs(folder, exist_ok=True)
            own = os.stat(folder).st_uid == os.getuid()
            usable = own and os.access(folder, os.W_OK | os.X_OK)
        except OSError:
            usable = False
        if not usable:
            _LOG.warning("compiled programs cannot be kept in %s", folder)
            return
    jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
