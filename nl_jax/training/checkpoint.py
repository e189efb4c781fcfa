"""Checkpoints: parameters, optimizer, position in the data, config, tokenizer.

Orbax writes in the background into a temporary folder and renames it when all
is there, so that a run killed at any moment leaves the last good checkpoint as
it was. A checkpoint is restored onto any mesh.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from nl_jax.models import LanguageModel, configure
from nl_jax.training.errors import InputError
from nl_jax.training.step import TrainState
from nl_jax.training.tokenizer import Tokenizer, from_json

__all__ = [
    "Checkpoints",
    "LoadedModel",
    "check_same_config",
    "load_model",
    "load_tree",
    "save_tree",
]

# What Orbax and TensorStore raise for damaged files and failed writes.
_ORBAX_ERRORS = (KeyError, ValueError, TypeError, OSError, RuntimeError)

_FREE_FIELDS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "accept_new_config",
    "mesh.",
    "sample.",
)
_FIXED_FIELDS = ("model.", "data.tokenizer", "data.bpe_vocab_size")


class LoadedModel(NamedTuple):
    """A trained model as a checkpoint holds it."""

    model: LanguageModel
    variables: Any
    tokenizer: Tokenizer
    meta: dict[str, Any]
    """Everything else: ``config``, ``tokenizer``, ``data``, ``step``."""


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints``.

    Args:
        workdir: folder of the run.
        every: steps between checkpoints; ``None`` to only read.
        keep: newest checkpoints to keep.

    Raises:
        InputError: if there is something else in the folder, and from each
            method for files that cannot be read or written.
    """

    def __init__(self, workdir, *, every: int | None = None, keep: int = 3):
        self.directory = pathlib.Path(workdir).absolute() / "checkpoints"
        self._saving: int | None = None
        reading = every is None
        if reading and not self.directory.is_dir():
            raise InputError(
                f"{workdir} holds no checkpoint; give the --workdir of a "
                "training run"
            )
        policies = ocp.training.save_decision_policies
        try:
            self._checkpointer = ocp.training.Checkpointer(
                self.directory,
                context=_context(),
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
                f"cannot open {self.directory}: {_line(error)}"
            ) from error

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, if there is any."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def due(self, step: int) -> bool:
        """Whether the interval or a preemption asks for a checkpoint now."""
        return self._checkpointer.should_save(step)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any]):
        """Starts to save; returns when ``state`` may change again."""
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
            self._fail(step, _line(error), error)

    def wait(self):
        """Returns when everything is on disk."""
        try:
            self._checkpointer.wait()
        except _ORBAX_ERRORS as error:
            self._fail(self._saving, _line(error), error)

    def last_good(self) -> int | None:
        """Waits, and looks which checkpoint is the newest on disk.

        A save that fails meanwhile has no checkpoint, and who asks here has
        an error to report already.
        """
        with contextlib.suppress(*_ORBAX_ERRORS):
            self._checkpointer.wait()
        self._checkpointer.reload()
        return self.latest

    def close(self):
        """Lets go of threads; :meth:`wait` first to know that all is saved."""
        with contextlib.suppress(*_ORBAX_ERRORS):
            self._checkpointer.close()

    def meta(self, step: int) -> dict[str, Any]:
        """Reads everything but arrays."""
        meta = self._load(step, {"meta": None})["meta"]
        if not isinstance(meta, dict) or not {"config", "tokenizer"} <= {*meta}:
            raise InputError(
                f"{self.directory / str(step)} is not a checkpoint of nl_jax; "
                "give the --workdir of a training run"
            )
        return meta

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Reads arrays into shapes that carry shardings."""
        found = self._load(
            step, {"variables": shapes.variables, "optimizer": shapes.optimizer}
        )
        return TrainState(found["variables"], found["optimizer"])

    def variables(self, step: int, shapes: Any) -> Any:
        """Reads the parameters alone."""
        return self._load(step, {"variables": shapes})["variables"]

    def _load(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
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
                f"{remedy} ({_line(error)})"
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


def load_model(workdir, step: int | None = None) -> LoadedModel:
    """Loads a trained model; needs no config and no data.

    Args:
        workdir: of ``experiments.train_lm``.
        step: which checkpoint; ``None`` for the newest.

    Raises:
        InputError: for a missing, damaged or foreign checkpoint, or a
            tokenizer that does not match the model.
    """
    checkpoints = Checkpoints(workdir)
    step = checkpoints.latest if step is None else step
    if step is None:
        raise InputError(
            f"{workdir} holds no checkpoint; give the --workdir of a training "
            "run"
        )
    meta = checkpoints.meta(step) | {"step": step}
    tokenizer = from_json(meta["tokenizer"])
    model = LanguageModel(configure("hope", **meta["config"]["model"]))
    check_tokenizer(tokenizer, meta["tokenizer"], model)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device),
        shapes,
    )
    variables = checkpoints.variables(step, shapes)
    checkpoints.close()
    return LoadedModel(model, variables, tokenizer, meta)


def check_tokenizer(tokenizer: Tokenizer, saved: Mapping, model: LanguageModel):
    """Checks that a tokenizer is the one that a model was trained with.

    Raises:
        InputError: if its hash differs or it has more ids than the model.
    """
    found = tokenizer.to_json()["hash"]
    if found != saved["hash"]:
        raise InputError(
            f"the tokenizer ({found[:12]}) is not the one that the checkpoint "
            f"was trained with ({saved['hash'][:12]}); use the tokenizer of "
            "the checkpoint's own workdir"
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's "
            f"vocab_size={model.config.vocab_size} is smaller; leave "
            "model.vocab_size unset to follow the tokenizer"
        )


def check_same_config(
    workdir,
    saved: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    accept: bool,
):
    """Checks that a run continues with the configuration it began with.

    Args:
        workdir: for the message.
        saved: configuration in the checkpoint.
        config: configuration now.
        accept: allow differences outside of the model and the tokenizer.

    Raises:
        InputError: naming the first field that differs.
    """
    saved, config = _flat(saved), _flat(config)
    for name in sorted({*saved, *config}):
        old, new = saved.get(name), config.get(name)
        fixed = name.startswith(_FIXED_FIELDS)
        if old == new or name.startswith(_FREE_FIELDS):
            continue
        if accept and not fixed:
            continue
        remedy = "use another --workdir"
        if not fixed:
            remedy += ", or go on with --config.accept_new_config=True"
        raise InputError(
            f"{workdir} holds a run with {name}={old!r}, but now "
            f"{name}={new!r}; {remedy}"
        )


def save_tree(path, tree: Any, meta: Mapping[str, Any]):
    """Saves one tree of arrays, such as a fast state, into a new folder."""
    path = pathlib.Path(path).absolute()
    try:
        with _context():
            ocp.save_checkpointables(
                path, {"tree": tree, "meta": dict(meta)}, overwrite=True
            )
    except _ORBAX_ERRORS as error:
        raise InputError(f"could not save {path}: {_line(error)}") from error


def load_tree(path, shapes: Any, meta: Mapping[str, Any]) -> Any:
    """Loads what :func:`save_tree` saved beside the same ``meta``.

    Args:
        path: folder that :func:`save_tree` wrote.
        shapes: tree of arrays or ``ShapeDtypeStruct``; a leaf that names no
            sharding goes to the default device.
        meta: what was saved beside it.

    Raises:
        InputError: if it is not there, damaged, or of another model.
    """
    shapes = jax.tree.map(_placed, shapes)
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise InputError(f"{path} does not exist; save a state there first")
    try:
        with _context():
            found = ocp.load_checkpointables(path, {"meta": None})["meta"]
            if found != dict(meta):
                raise InputError(
                    f"{path} is the state of another model or tokenizer; use "
                    "the --workdir that it was saved with"
                )
            return ocp.load_checkpointables(path, {"tree": shapes})["tree"]
    except InputError:
        raise
    except _ORBAX_ERRORS as error:
        raise InputError(
            f"{path} is damaged or not a saved state ({_line(error)})"
        ) from error


def _placed(leaf) -> jax.ShapeDtypeStruct:
    """Orbax refuses a target that does not say where it goes."""
    sharding = leaf.sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _context() -> ocp.Context:
    """Orbax would save a dictionary of numbers as arrays; ours is JSON."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def _line(error: BaseException) -> str:
    text = str(error).strip().strip("\"'") or type(error).__name__
    text = text.splitlines()[0]
    # The system's own words are the last.
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"
