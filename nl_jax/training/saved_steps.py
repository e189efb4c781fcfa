"""The checkpoints of a run, listed and verified."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from nl_jax.errors import DamagedError
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.saved_runs import saved_model
from nl_jax.training.train_config import OptimizerConfig
from nl_jax.training.train_state import TrainState, begin_memory


class SavedStep(NamedTuple):
    """A checkpoint."""

    step: int
    saved: datetime.datetime
    """When it was written."""
    n_bytes: int
    """Size on the disk."""
    problem: str
    """Why it cannot be read or verified; empty if all of it is as saved."""


def list_steps(workdir) -> list[SavedStep]:
    """Reads all checkpoints of a run, and compares their checksums.

    Args:
        workdir: working directory of ``experiments.train_lm``.

    Raises:
        InputError: if it holds no checkpoints, or those of another version.
    """
    checkpoints, out = Checkpoints(workdir), []
    for step, (saved, n_bytes) in checkpoints.sizes().items():
        problem = ""
        try:
            shapes = _shapes(workdir, checkpoints.meta(step))
            checkpoints.restore(step, shapes)
            if step in checkpoints.unverified:
                problem = "not verified: it is from before there were checksums"
        except DamagedError as error:
            problem = error.reason
        out.append(SavedStep(step, saved, n_bytes, problem))
    checkpoints.close()
    return out


def _shapes(workdir, meta: Mapping[str, Any]) -> TrainState:
    """Returns the shapes of a saved state, on one device."""
    model, shapes = saved_model(workdir, meta)
    names = {field.name for field in dataclasses.fields(OptimizerConfig)}
    fields = meta["config"].get("optimizer", {}).items()
    optimizer = make_optimizer(
        OptimizerConfig(**{name: v for name, v in fields if name in names}),
        meta["config"]["steps"],
        model.logical_axes(),
        model.parameter_periods(shapes),
    )
    reading = meta["config"]["data"].get("reading", "windows")
    of = reading, meta["config"].get("batch_size", 0)
    memory = jax.eval_shape(lambda v: begin_memory(model, v, *of), shapes)
    state = TrainState(shapes, jax.eval_shape(optimizer.init, shapes), memory)
    (sharding,) = {leaf.sharding for leaf in jax.tree.leaves(shapes)}
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
        state,
    )
