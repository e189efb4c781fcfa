"""Traces of a run's steps, for XProf."""

import logging
import tempfile

import jax
from etils import epath

from nl_jax.errors import InputError
from nl_jax.training.run_folder import copy_tree, is_remote

_LOG = logging.getLogger(__name__)


class StepProfiler:
    """Writes a trace of some steps; ``xprof --logdir=FOLDER`` shows it.

    A trace that fails costs a warning, not the run.

    Args:
        folder: folder of the trace, local or remote.
        steps: numbers of the steps, from 1.
    """

    def __init__(self, folder: epath.Path, steps: range):
        self._folder, self._steps = folder, steps
        self._tracing = False

    def turns(self, step: int) -> bool:
        """Whether to call :meth:`turn` before a step, when all are complete."""
        return (step in self._steps) != self._tracing

    def turn(self) -> None:
        """Begins the trace, or ends and writes it."""
        self._tracing = not self._tracing
        try:
            if self._tracing:
                self._begin()
            else:
                self._end()
        except (RuntimeError, OSError) as error:
            self._steps = range(0)
            self._tracing = False
            reason = str(error).splitlines()[0]
            _LOG.warning("no trace in %s: %s", self._folder, reason)

    def close(self) -> None:
        """Writes a trace that has begun."""
        if self._tracing:
            self.turn()
        elif self._steps:
            _LOG.warning("the steps to trace were done before: no trace")

    def _begin(self):
        place = str(self._folder)
        if is_remote(self._folder):  # Profilers write local files only.
            place = tempfile.mkdtemp()
        self._local = epath.Path(place)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # Each call would slow the steps.
        jax.profiler.start_trace(place, profiler_options=options)

    def _end(self):
        jax.profiler.stop_trace()
        if self._local != self._folder:
            copy_tree(self._local, self._folder)
            self._local.rmtree()
        _LOG.info("a trace is written: xprof --logdir=%s", self._folder)
        self._steps = range(0)


def plan_trace(
    folder: epath.Path | None, last: int, first: int, count: int
) -> StepProfiler:
    """Returns the profiler of a run.

    Args:
        folder: folder of the run.
        last: its last step.
        first: first step to trace.
        count: number of steps to trace; 0 for no trace.

    Raises:
        InputError: if there are no such steps, or there is no folder.
    """
    if count and folder is None:
        raise InputError("profile needs a workdir, into which it writes")
    if count < 0 or (count and not 1 <= first <= last):
        raise InputError(
            f"profile={first}:{count} must begin with one of the steps 1 to "
            f"{last}, and have at least one"
        )
    steps = range(first, first + count)
    return StepProfiler((folder or epath.Path(".")) / "profile", steps)
