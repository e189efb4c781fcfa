"""Checkpoints of parameters, optimizer, data position, config and tokenizer.

Orbax writes them in the background to a temporary folder, which it renames once
it is complete: a run that is killed leaves the last good checkpoint intact.
Checkpoints can be restored onto any mesh. Whatever is read is compared with the
checksums in the metadata, on any mesh too.
"""

import contextlib
import datetime
import gc
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from nl_jax.errors import DamagedError, InputError
from nl_jax.training.checksums import array_sums, json_sum
from nl_jax.training.run_folder import is_remote, open_folder
from nl_jax.training.train_state import TrainState

_LOG = logging.getLogger(__name__)
_ORBAX_ERRORS = (KeyError, ValueError, TypeError, OSError, RuntimeError)
"""What Orbax and TensorStore raise for damaged files and failed writes."""
_ENTRIES: dict[str, dict[str, type]] = {
    "config": {"model": dict, "data": dict, "optimizer": dict, "steps": int},
    "tokenizer": {"kind": str, "hash": str},
    "data": {"iterator": dict, "sha256": str},
    "versions": {},
    "evaluated": {},
    "seconds_in_steps": {},
    "started": {},
    "sums": {"meta": str, "variables": dict, "optimizer": dict},
}
"""Entries of the metadata, and what those hold at least."""
_NEWER = ("evaluated", "seconds_in_steps", "started", "sums")
"""Entries that the first checkpoints lack."""


class Checkpoints:
    """Reader and writer of the checkpoints in ``workdir/checkpoints``.

    Args:
        workdir: working directory of the run.
        every: number of steps between checkpoints; ``None`` for reading only.
        keep: number of newest checkpoints to keep.
        keep_every: steps between those kept besides; 0 for none.

    Raises:
        InputError: if the folder holds no checkpoints, and in each method if
            files cannot be read or written.
    """

    def __init__(
        self,
        workdir,
        *,
        every: int | None = None,
        keep: int = 3,
        keep_every: int = 0,
    ):
        self.directory = open_folder(workdir) / "checkpoints"
        self._saving: int | None = None
        self.unverified: set[int] = set()
        """Steps that were read, from before there were checksums."""
        self._reading = every is None
        missing = InputError(
            f"{workdir} holds no checkpoint; give the --workdir of a training "
            "run"
        )
        if self._reading and not self.directory.is_dir():
            raise missing
        policies = ocp.training.save_decision_policies
        kept = ocp.training.preservation_policies
        try:
            if not self._reading:
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
                preservation_policy=kept.AnyPreservationPolicy(
                    [
                        kept.LatestN(keep),
                        *([kept.EveryNSteps(keep_every)] if keep_every else ()),
                    ]
                ),
                cleanup_tmp_directories=not self._reading,
            )
        except _ORBAX_ERRORS as error:
            raise InputError(
                f"cannot open {self.directory} ({_first_line(error)}); give "
                "another --workdir"
            ) from error
        if self._reading and self.latest is None:
            raise missing

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint; ``None`` if there is none."""
        return max(self.steps, default=None)

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, in ascending order."""
        return [saved.step for saved in self._checkpointer.checkpoints]

    def sizes(self) -> dict[int, tuple[datetime.datetime, int]]:
        """Returns when each step was saved, and its bytes on the disk."""
        return {
            saved.step: (
                saved.commit_timestamp,
                sum(
                    (folder / name).stat().length
                    for folder, _, names in (
                        self.directory / str(saved.step)
                    ).walk()
                    for name in names
                ),
            )
            for saved in self._checkpointer.checkpoints
        }

    def due(self, step: int) -> bool:
        """Whether to save now, because of the interval or a preemption."""
        return self._checkpointer.should_save(step)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]):
        """Starts to save; returns once ``state`` may be donated."""
        self.wait()
        self._saving = step
        need = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if not is_remote(self.directory):
            free = shutil.disk_usage(self.directory).free
            if free < need + 2**20:
                self._fail(
                    step, f"it needs {need >> 10} KiB, {free >> 10} are free"
                )
        parts = state.parts()
        sums: dict[str, Any] = {n: array_sums(p) for n, p in parts.items()}
        sums["meta"] = json_sum(meta)
        try:
            self._checkpointer.save_checkpointables_async(
                step, parts | {"meta": {**meta, "sums": sums}}, force=True
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
        if step not in self.steps:
            known = ", ".join(map(str, self.steps))
            raise InputError(
                f"step={step}: {self.directory.parent} has checkpoints of the "
                f"steps {known}"
            )
        return self._load(step, {})["meta"] | {"step": step}

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Reads the state, with the shardings of ``shapes``."""
        parts = shapes.parts()
        found = self._load(step, parts)
        return TrainState(**{part: found[part] for part in parts})

    def variables(self, step: int, shapes: Any) -> Any:
        """Reads only the parameters, with the shardings of ``shapes``."""
        return self._load(step, {"variables": shapes})["variables"]

    def set_aside(self, step: int) -> None:
        """Moves a checkpoint to the folder ``damaged`` of the run."""
        if jax.process_index() == 0:
            target = self.directory.parent / "damaged"
            target.mkdir(exist_ok=True)
            (target / str(step)).rmtree(missing_ok=True)
            (self.directory / str(step)).rename(target / str(step))
            _LOG.warning("moved %s to %s", self.directory / str(step), target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved")
        self._checkpointer.reload()

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        with _without_tracebacks():
            try:
                return self._read(step, abstract)
            except _ORBAX_ERRORS as error:
                reason = _first_line(error)
            good = self._sound_before(step, abstract)
            gc.collect()
        remedy = "start again in another --workdir"
        if good is None and "optimizer" in abstract:
            variables = {"variables": abstract["variables"]}
            with _without_tracebacks():
                weights = self._sound_before(step + 1, variables)
            if weights is not None:
                remedy += (
                    f", with the weights of step {weights}, which are intact: "
                    f"--init_from={self.directory.parent}"
                )
        if good is not None:
            flag = f"--step={good}" if self._reading else "--skip_damaged"
            remedy = f"that of step {good} is intact: go on with {flag}"
        raise DamagedError(
            f"{self.directory / str(step)} is damaged or not a checkpoint of "
            f"this model ({reason}); {remedy}",
            reason,
            good,
        )

    def _sound_before(self, step: int, abstract: dict[str, Any]) -> int | None:
        """Returns the newest earlier step that can be read."""
        for earlier in reversed(self.steps):
            if earlier < step:
                with contextlib.suppress(*_ORBAX_ERRORS):
                    self._read(earlier, abstract)
                    return earlier
        return None

    def _read(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """Reads the metadata and what ``abstract`` names, and verifies both."""
        for part in abstract:
            if not (self.directory / str(step) / part).is_dir():
                raise ValueError(f"its {part} is missing")
        try:
            found = self._checkpointer.load_checkpointables(
                step, {"meta": None, **abstract}
            )
        except _ORBAX_ERRORS as error:
            parts = " and ".join(abstract or ["metadata"])
            why = getattr(error, "strerror", None)
            raise ValueError(
                f"its {parts} cannot be read" + (f": {why}" if why else "")
            ) from error
        meta = found["meta"]
        _check_entries(meta)
        sums = meta.pop("sums", None)
        if sums is None:
            self.unverified.add(step)
            if abstract:
                _LOG.warning(
                    "the checkpoint of step %d is from before there were "
                    "checksums, and cannot be verified",
                    step,
                )
            return found
        if sums["meta"] != json_sum(meta):
            raise ValueError("its metadata has another checksum")
        for part in abstract:
            for name, value in array_sums(found[part]).items():
                if sums[part].get(name) != value:
                    raise ValueError(f"{part}/{name} has another checksum")
        return found

    def _fail(self, step, why: str, error: BaseException | None = None):
        last = self.last_good()
        intact = "no checkpoint was saved before"
        if last is not None:
            intact = f"the checkpoint of step {last} is intact"
        raise InputError(
            f"could not save step {step} in {self.directory} ({why}); "
            f"{intact}: make space and run the same command to go on"
        ) from error


def _check_entries(meta: Any) -> None:
    """Raises ``ValueError`` unless metadata has the entries of this library."""
    if not isinstance(meta, dict) or not {"config", "tokenizer"} <= {*meta}:
        raise ValueError("it is not one of nl_jax")
    for name in sorted(meta.keys() - _ENTRIES.keys()):
        raise ValueError(f"its metadata has {name!r}, an unknown entry")
    for name, types in _ENTRIES.items():
        if name not in meta and name in _NEWER:
            continue
        entry = meta.get(name)
        if types and not (
            isinstance(entry, dict)
            and all(isinstance(entry.get(k), t) for k, t in types.items())
        ):
            raise ValueError(f"the entry {name!r} of its metadata is damaged")


@contextlib.contextmanager
def _without_tracebacks():
    """Hides pages about the coroutines and callbacks of a failed read."""
    hooks = sys.unraisablehook, sys.excepthook
    log = logging.getLogger("asyncio")
    sys.unraisablehook = lambda _: None
    sys.excepthook = lambda *_: None
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        log.disabled = False
        sys.unraisablehook, sys.excepthook = hooks


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
