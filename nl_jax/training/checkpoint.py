"""Checkpoints of parameters, optimizer, data position, config and tokenizer.

Orbax writes them in the background to a temporary folder, which it renames once
it is complete: a run that is killed leaves the last good checkpoint intact.
Checkpoints can be restored onto any mesh.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from nl_jax.errors import InputError
from nl_jax.training.step import TrainState

_ORBAX_ERRORS = (KeyError, ValueError, TypeError, OSError, RuntimeError)
"""What Orbax and TensorStore raise for damaged files and failed writes."""


class Checkpoints:
    """Reader and writer of the checkpoints in ``workdir/checkpoints``.

    Args:
        workdir: working directory of the run.
        every: number of steps between checkpoints; ``None`` for reading only.
        keep: number of newest checkpoints to keep.

    Raises:
        InputError: if the folder holds no checkpoints, and in each method if
            files cannot be read or written.
    """

    def __init__(self, workdir, *, every: int | None = None, keep: int = 3):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._saving: int | None = None
        reading = every is None
        missing = InputError(
            f"{workdir} holds no checkpoint; give the --workdir of a training "
            "run"
        )
        if reading and not self.directory.is_dir():
            raise missing
        policies = ocp.training.save_decision_policies
        try:
            if not reading:
                self.directory.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                context=_orbax_context(),
                save_decision_policy=policies.AnySavePolicy(
                    [
                        policies.FixedIntervalPolicy(every or 1),
                        policies.PreemptionCheckpointingPolicy(),
                    ]
                ),
                preservation_policy=(
                    ocp.training.preservation_policies.LatestN(keep)
                ),
                cleanup_tmp_directories=not reading,
            )
        except _ORBAX_ERRORS as error:
            raise InputError(
                f"cannot open {self.directory} ({_first_line(error)}); give "
                "another --workdir"
            ) from error
        if reading and self.latest is None:
            raise missing

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; ``None`` if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def due(self, step: int) -> bool:
        """Whether to save now, because of the interval or a preemption."""
        return self._checkpointer.should_save(step)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]):
        """Starts to save; returns once ``state`` may be donated."""
        self.wait()
        self._saving = step
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(self.directory).free
        if free < need + 2**20:
            self._fail(
                step, f"it needs {need >> 10} KiB, {free >> 10} are free"
            )
        try:
            self._checkpointer.save_checkpointables_async(
                step,
                {
                    "variables": state.variables,
                    "optimizer": state.optimizer,
                    "meta": dict(meta),
                },
                force=True,
            )
        except _ORBAX_ERRORS as error:
            self._fail(step, _first_line(error), error)

    def wait(self):
        """Waits until everything is on disk."""
        try:
            self._checkpointer.wait()
        except _ORBAX_ERRORS as error:
            self._fail(self._saving, _first_line(error), error)

    def last_good(self) -> int | None:
        """Waits, and returns the step of the newest checkpoint on disk.

        Ignores a failing save: the caller already has an error to report.
        """
        with contextlib.suppress(*_ORBAX_ERRORS):
            self._checkpointer.wait()
        self._checkpointer.reload()
        return self.latest

    def close(self):
        """Stops all threads, without errors; call :meth:`wait` first."""
        with contextlib.suppress(*_ORBAX_ERRORS):
            self._checkpointer.close()

    def meta(self, step: int | None = None) -> dict[str, Any]:
        """Reads the metadata of a checkpoint, by default of the newest."""
        step = self.latest if step is None else step
        meta = self._load(step, {"meta": None})["meta"]
        if not isinstance(meta, dict) or not {"config", "tokenizer"} <= {*meta}:
            raise InputError(
                f"{self.directory / str(step)} is not a checkpoint of nl_jax; "
                "give the --workdir of a training run"
            )
        return meta | {"step": step}

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Reads the state, with the shardings of ``shapes``."""
        found = self._load(
            step, {"variables": shapes.variables, "optimizer": shapes.optimizer}
        )
        return TrainState(found["variables"], found["optimizer"])

    def variables(self, step: int, shapes: Any) -> Any:
        """Reads only the parameters, with the shardings of ``shapes``."""
        return self._load(step, {"variables": shapes})["variables"]

    def _load(
        self, step: int | None, abstract: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except _ORBAX_ERRORS as error:
            place = self.directory / str(step)
            others = [c.step for c in self._checkpointer.checkpoints]
            others = [other for other in others if other != step]
            remedy = "start again in another --workdir"
            if others:
                remedy = f"delete that folder to go on from step {others[-1]}"
            raise InputError(
                f"{place} is damaged or not a checkpoint of this model; "
                f"{remedy} ({_first_line(error)})"
            ) from error

    def _fail(self, step, why: str, error: BaseException | None = None):
        last = self.last_good()
        intact = "no checkpoint was saved before"
        if last is not None:
            intact = f"the checkpoint of step {last} is intact"
        raise InputError(
            f"could not save step {step} in {self.directory} ({why}); "
            f"{intact}: make space and run the same command to go on"
        ) from error


def _orbax_context() -> ocp.Context:
    """Returns a context that saves ``meta`` as JSON instead of arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _first_line(error: BaseException) -> str:
    """Returns the first line of an error, shortened in the middle."""
    text = str(error).strip().strip("\"'") or type(error).__name__
    text = text.splitlines()[0]
    # Messages of the operating system are at the end.
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"
