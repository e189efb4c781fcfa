"""Loading a trained model, and checks that a run can be resumed."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from nl_jax.data import DataConfig, Tokenizer, from_json
from nl_jax.errors import DamagedError, InputError
from nl_jax.models import LanguageModel, ModelConfig, configure
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.checksums import array_sums, json_sum
from nl_jax.training.metric_writers import read_json_lines
from nl_jax.training.process import versions
from nl_jax.training.same_config import check_same_config, is_file_name
from nl_jax.training.train_config import TrainConfig
from nl_jax.training.train_state import TrainState

_LOG = logging.getLogger(__name__)


class LoadedModel(NamedTuple):
    """A trained model, loaded from a checkpoint."""

    model: LanguageModel
    variables: Any
    tokenizer: Tokenizer
    meta: dict[str, Any]
    """``config``, ``tokenizer``, ``data``, ``versions`` and ``step``."""

    @property
    def state_meta(self) -> dict[str, Any]:
        """What a state of this model belongs to, as ``meta`` of its file."""
        return {
            "tokenizer": self.tokenizer.to_json()["hash"],
            "step": self.meta["step"],
            "weights": json_sum(array_sums(self.variables)),
        }


def load_model(workdir, step: int | None = None) -> LoadedModel:
    """Loads a trained model; the checkpoint alone is enough.

    Args:
        workdir: working directory of ``experiments.train_lm``.
        step: step of the checkpoint; ``None`` for the newest.

    Raises:
        InputError: if the checkpoint is missing, damaged or not of this
            library, or its tokenizer does not match the model.
    """
    checkpoints = Checkpoints(workdir)
    meta = checkpoints.meta(step)
    model, shapes = saved_model(workdir, meta)
    tokenizer = from_json(meta["tokenizer"])
    check_tokenizer(tokenizer, meta["tokenizer"], model)
    variables = checkpoints.variables(meta["step"], shapes)
    checkpoints.close()
    return LoadedModel(model, variables, tokenizer, meta)


def saved_model(
    workdir, meta: Mapping[str, Any]
) -> tuple[LanguageModel, dict[str, Any]]:
    """Returns a saved model, and its parameters' shapes on one device.

    Args:
        workdir: working directory, for the error message.
        meta: metadata of a checkpoint.

    Raises:
        InputError: if another version of this library has written it.
    """
    model = LanguageModel(saved_sizes(workdir, meta["config"]))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return model, jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device),
        shapes,
    )


def saved_sizes(workdir, config: Mapping[str, Any]) -> ModelConfig:
    """Returns the model of a run's configuration; errors as above."""
    try:
        return configure(ModelConfig(), **config["model"])
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{workdir} holds a model of another version: {error}"
        ) from error


def restore_newest(
    checkpoints: Checkpoints,
    config: TrainConfig,
    shapes: TrainState,
    skip_damaged: bool,
) -> tuple[dict[str, Any], TrainState]:
    """Reads the newest checkpoint of a run.

    Args:
        checkpoints: checkpoints of the run, at least one.
        config: configuration to go on with.
        shapes: shapes and shardings of the state.
        skip_damaged: whether to set damaged ones aside, if an earlier one is
            intact.

    Returns:
        Metadata, with the step, and the state.

    Raises:
        DamagedError: if the checkpoint cannot be read.
        InputError: if its configuration is another one.
    """
    while True:
        step = checkpoints.steps[-1]
        try:
            meta = checkpoints.meta(step)
            workdir = checkpoints.directory.parent
            check_same_config(workdir, meta["config"], config)
            state = checkpoints.restore(step, shapes)
        except DamagedError as error:
            if not skip_damaged or error.intact is None:
                raise
            checkpoints.set_aside(step)
            continue
        if meta["versions"] != versions():
            _LOG.warning(
                "the checkpoint was written with %s; numbers may differ in "
                "their last digits",
                meta["versions"],
            )
        return meta, state


def saved_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """Returns the configuration of the run in a folder; empty if there is none.

    It is that of the newest checkpoint whose metadata can be read.
    """
    with (
        contextlib.suppress(InputError),
        contextlib.closing(Checkpoints(workdir)) as checkpoints,
    ):
        for step in reversed(checkpoints.steps):
            with contextlib.suppress(DamagedError):
                return checkpoints.meta(step)["config"]
    return {}


def check_folder(workdir: epath.Path) -> None:
    """Checks that a run can be begun or resumed in a folder.

    Raises:
        InputError: if it is a file, or holds a ``config.json`` or
            ``metrics.jsonl`` that is not one of a run.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; give another --workdir")
    config, metrics = workdir / "config.json", workdir / "metrics.jsonl"
    if config.exists() and not (workdir / "checkpoints").exists():
        try:
            ours = {"model", "data", "optimizer"} <= {
                *json.loads(config.read_text())
            }
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise InputError(
                f"{config} is not that of a run; give another --workdir"
            )
    if metrics.exists():
        read_json_lines(metrics)


def check_tokenizer(tokenizer: Tokenizer, saved: Mapping, model: LanguageModel):
    """Checks that a model was trained with this tokenizer.

    Raises:
        InputError: if its hash differs, or it has more ids than the model.
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


def resumed_data(data: DataConfig, saved: Mapping[str, Any]) -> DataConfig:
    """Returns the data of a run that goes on.

    Args:
        data: data of the current configuration.
        saved: configuration in the checkpoint.

    Returns:
        The data, with the tokenizer of the checkpoint in place of a file that
        is gone.
    """
    file = data.tokenizer
    gone = is_file_name(file) and is_file_name(saved["data"]["tokenizer"])
    if not gone or pathlib.Path(file).expanduser().exists():
        return data
    _LOG.warning("%s is gone; its copy in the checkpoint is used", file)
    return dataclasses.replace(data, tokenizer="bpe")


def check_text(workdir, saved: str, sha256: str, *, accept: bool) -> None:
    """Checks that a resumed run reads the text it was started with.

    Args:
        workdir: working directory, for the error message.
        saved: hash of the text in the checkpoint.
        sha256: hash of the current text.
        accept: whether another text is allowed.

    Raises:
        InputError: if the hashes differ.
    """
    if saved != sha256 and not accept:
        raise InputError(
            f"the text has changed since {workdir} was begun (sha256 "
            f"{saved[:12]}, now {sha256[:12]}; the default text differs "
            "between Python versions); restore it, use another --workdir, or "
            "go on with --config.accept_new_config=True"
        )
