"""Reads trained models; saves and reads fast states."""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from nl_jax.data import Tokenizer, from_json
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, configure
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.compatibility import check_tokenizer
from nl_jax.training.storage import ORBAX_ERRORS, first_line, orbax_context


class LoadedModel(NamedTuple):
    """A trained model as a checkpoint holds it."""

    model: LanguageModel
    variables: Any
    tokenizer: Tokenizer
    meta: dict[str, Any]
    """Everything else: ``config``, ``tokenizer``, ``data``, ``step``."""


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


def save_tree(path, tree: Any, meta: Mapping[str, Any]):
    """Saves one tree of arrays, such as a fast state, as a folder.

    What was saved there before goes when the new one is whole: until then it
    is in its place, or for a moment beside it, with ``.old`` behind its name.

    Raises:
        InputError: if it cannot be written.
    """
    path = pathlib.Path(path).absolute()
    new, old = (path.with_name(path.name + end) for end in (".new", ".old"))
    try:
        with orbax_context():
            ocp.save_checkpointables(
                new, {"tree": tree, "meta": dict(meta)}, overwrite=True
            )
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        new.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except ORBAX_ERRORS as error:
        raise InputError(
            f"could not save {path}: {first_line(error)}"
        ) from error


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
        with orbax_context():
            found = ocp.load_checkpointables(path, {"meta": None})["meta"]
            if found != dict(meta):
                raise InputError(
                    f"{path} is the state of another model or tokenizer; use "
                    "the --workdir that it was saved with"
                )
            return ocp.load_checkpointables(path, {"tree": shapes})["tree"]
    except InputError:
        raise
    except ORBAX_ERRORS as error:
        raise InputError(
            f"{path} is damaged or not a saved state ({first_line(error)})"
        ) from error


def _placed(leaf) -> jax.ShapeDtypeStruct:
    """Orbax refuses a target that does not say where it goes."""
    sharding = leaf.sharding
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
