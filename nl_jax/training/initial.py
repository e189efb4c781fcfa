"""Weights that a run begins with: those of another run, or pretrained ones."""

import logging
import os

from ml_collections import config_dict

from nl_jax.data import DataConfig, Tokenizer
from nl_jax.errors import DamagedError, InputError
from nl_jax.pretrained import Pretrained, load_pretrained, tokenizer_text
from nl_jax.pretrained.tokenizer_json import BYTES_JSON
from nl_jax.training.run_folder import open_folder
from nl_jax.training.same_config import is_file_name
from nl_jax.training.saved_runs import (
    load_model,
    saved_config,
    saved_sizes,
)
from nl_jax.training.train_config import TrainConfig, freeze

_LOG = logging.getLogger(__name__)


def load_weights(
    path: str | os.PathLike, step: int | None = None
) -> Pretrained:
    """Loads the model of a run, or a pretrained one.

    Args:
        path: working directory of a run, or a path that
            :func:`~nl_jax.pretrained.load_pretrained` takes.
        step: step of the run's checkpoint; ``None`` for the newest.

    Raises:
        InputError: as for :func:`load_model` and ``load_pretrained``.
    """
    if (open_folder(path, "--init_from") / "checkpoints").is_dir():
        loaded = load_model(path, step)
        text = tokenizer_text(loaded.tokenizer)
        return Pretrained(loaded.model, loaded.variables, text)
    if step is not None:
        raise InputError(f"step={step}: {path} holds no checkpoints")
    return load_pretrained(path)


def begin_run(
    config: config_dict.ConfigDict, workdir: str | os.PathLike
) -> tuple[TrainConfig, Pretrained | None]:
    """Returns the configuration of a run, and the weights to begin with.

    With ``config.init_from``, fields of the model that are not set, and the
    tokenizer, are those of the model there. A run in ``workdir`` that began so
    goes on with its own, whether ``init_from`` is set and exists or not, and
    needs no ``tokenizer.json`` any more.

    Args:
        config: configuration from :func:`flag_config`, with changes.
        workdir: working directory of the run.

    Raises:
        InputError: if a value is not allowed or the weights cannot be loaded.
    """
    config = config.copy_and_resolve_references()
    saved = saved_config(workdir)
    if saved and is_file_name(config.data.tokenizer):
        # The file may be gone.
        model = config.model
        model.vocab_size = model.vocab_size or saved["model"].get("vocab_size")
    if saved.get("init_from"):
        config.init_from = config.init_from or saved["init_from"]
        if config.data.tokenizer == DataConfig.tokenizer:
            config.data.tokenizer = saved["data"]["tokenizer"]
        return freeze(config, saved_sizes(workdir, saved)), None
    if saved or not config.init_from:
        return freeze(config), None
    found = _weights(config.init_from)
    unset = config.data.tokenizer == DataConfig.tokenizer
    if unset and found.tokenizer_json not in (None, BYTES_JSON):
        config.data.tokenizer = "bpe"
        _LOG.info("the tokenizer is that of %s", config.init_from)
    return freeze(config, found.model.config), found


def initial_weights(config: TrainConfig) -> Pretrained | None:
    """Loads the weights of ``config.init_from``, if any."""
    return _weights(config.init_from) if config.init_from else None


def _weights(path: str) -> Pretrained:
    """Loads weights; an error has no ``--step``, which training lacks."""
    try:
        return load_weights(path)
    except DamagedError as error:
        if error.intact is None:
            raise
        raise InputError(
            f"the newest checkpoint of {path} is damaged ({error.reason}); "
            f"save that of step {error.intact}, which is intact, with "
            f"experiments.export --step={error.intact}, and begin with that"
        ) from error


def initial_tokenizer(
    config: TrainConfig, found: Pretrained | None
) -> Tokenizer | None:
    """Returns the tokenizer of weights to begin with, if they have one."""
    if found is None:
        return None
    if found.tokenizer_json is None:
        _LOG.warning(
            "%s has no byte-level BPE tokenizer; ids are those of "
            "data.tokenizer=%r",
            config.init_from,
            config.data.tokenizer,
        )
        return None
    return found.tokenizer()
