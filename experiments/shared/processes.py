"""Runs of several processes: how they find each other, and end together.

When a process of a run dies, the others' C++ code aborts with a dump of its
stack. Each process therefore works in a child of its own, whose end its parent
tells in one line.
"""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import flags as absl_flags

from experiments.shared import flags
from experiments.shared.explained import explain
from nl_jax.errors import InputError

_HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as dead."""
_CHILD = "NL_JAX_CHILD"
_PR_SET_PDEATHSIG = 1
_GONE = (
    "another process of the run has gone, or cannot be reached; start all of "
    "them again to go on from the last checkpoint"
)
_KILLED = (
    "somebody killed this process, or the system did because it took too much "
    "memory; start all processes again to go on from the last checkpoint"
)

PROCESS_FLAGS = {
    "distributed": flags.switch(
        "Join the other processes of a run on TPUs, SLURM or Kubernetes, which "
        "JAX finds by itself."
    ),
    "coordinator_address": flags.string(
        None, "Join them elsewhere: host:port of process 0."
    ),
    "num_processes": flags.integer(None, "Number of processes of the run."),
    "process_id": flags.integer(None, "Number of this process, from 0.", 0),
}


def run_together(
    module: str, values: absl_flags.FlagValues, main: Callable[[], None]
) -> None:
    """Runs ``main`` together with other processes, if flags say so.

    Args:
        module: the script's name, to start it again as a child.
        values: flags, among them :data:`PROCESS_FLAGS`.
        main: what to run.

    Raises:
        InputError: if flags are missing or contradict each other, or the other
            processes cannot be reached.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given = {name: getattr(values, name) for name in names}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(names):
        if not values.distributed:
            main()
            return
    elif missing:
        raise InputError(
            f"--{missing[0]} is missing; --coordinator_address, "
            "--num_processes and --process_id are given together"
        )
    elif not re.fullmatch(r".+:\d+", given["coordinator_address"]):
        raise InputError(
            f"--coordinator_address={given['coordinator_address']} must be "
            "host:port of process 0"
        )
    elif given["process_id"] >= given["num_processes"]:
        raise InputError(
            f"--process_id={given['process_id']} must be less than "
            f"--num_processes={given['num_processes']}"
        )
    if _CHILD not in os.environ:
        _watch_child(module)
    end_with(int(os.environ[_CHILD]))
    try:
        jax.distributed.initialize(
            **given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"cannot join the other processes: {reason}"
        ) from error
    if jax.process_index():
        logging.getLogger("nl_jax").setLevel(logging.WARNING)
    try:
        main()
    except Exception as error:  # noqa: BLE001 It is explained.
        _leave(error)


def _leave(error: Exception) -> NoReturn:
    """Ends at once: at a normal end JAX would wait for the others, and abort.

    They notice.
    """
    line, status = explain(error), 2
    if line is None:
        status = 1
        if isinstance(error, jax.errors.JaxRuntimeError):
            line = str(error).splitlines()[0]
            if jax.process_count() > 1:
                line = f"{_GONE} ({line})"
        else:
            traceback.print_exc()
    if line is not None:
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _watch_child(module) -> NoReturn:
    """Starts this script again, passes signals on, and ends with its status."""
    child = subprocess.Popen(
        [sys.executable, "-m", module, *sys.argv[1:]],
        env=os.environ | {_CHILD: str(os.getpid())},
        start_new_session=True,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    status = child.wait()
    if status < 0:
        name = signal.Signals(-status).name
        why = _KILLED if -status == signal.SIGKILL else _GONE
        print(f"error: ended by {name}: {why}", flush=True)
        status = 1
    os._exit(status)


def end_with(parent: int) -> None:
    """Has Linux kill this process when its parent ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
