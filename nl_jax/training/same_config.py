"""Comparison of a run's configuration with that of its checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Any

from nl_jax.errors import InputError
from nl_jax.models import ModelConfig, to_json
from nl_jax.models.config_json import same_periods
from nl_jax.training.train_config import TrainConfig

_FREE_FIELDS = (
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "stall_seconds",
    "tensorboard",  # Of earlier versions.
    "accept_new_config",
    "mesh.",
    "sample.",
)
_FIXED_FIELDS = (
    "model.",
    "data.tokenizer",
    "data.bpe_vocab_size",
    "optimizer.name",  # The checkpoint holds this optimizer's state,
    "optimizer.options",  # whose shapes may depend on these.
)


def check_same_config(
    workdir, saved: Mapping[str, Any], config: TrainConfig
) -> None:
    """Checks that a resumed run has the configuration it was started with.

    With ``config.accept_new_config`` only the model, the tokenizer and the
    optimizer's name and options must be the same, and, if one of them is
    ``"contiguous"``, ``data.reading`` and ``batch_size``.

    Args:
        workdir: working directory, for the error message.
        saved: configuration in the checkpoint.
        config: configuration of the resumed run.

    Raises:
        InputError: if a field differs; the message names the first one.
    """
    defaults = to_json(TrainConfig(model=ModelConfig()))
    read = saved["data"].get("reading")
    for name, old, new in differences(saved, to_json(config), defaults):
        fixed = name.startswith(_FIXED_FIELDS) or (
            # The checkpoint holds the memory of each row that reads on.
            name in ("data.reading", "batch_size")
            and "contiguous" in (config.data.reading, read)
        )
        if name.startswith(_FREE_FIELDS) or (name == "init_from" and not new):
            continue
        if name == "model.cms.token_periods" and same_periods(
            old, new, config.model
        ):
            continue
        if name == "data.tokenizer" and is_file_name(old) and is_file_name(new):
            continue  # Their hashes are compared.
        if config.accept_new_config and not fixed:
            continue
        remedy = "use another --workdir"
        if not fixed:
            remedy += ", or go on with --config.accept_new_config=True"
        raise InputError(
            f"{workdir} holds a run with {name}={old!r}, but now "
            f"{name}={new!r}; {remedy}"
        )


def is_file_name(tokenizer: Any) -> bool:
    """Returns whether ``data.tokenizer`` is the path of a tokenizer."""
    return str(tokenizer).endswith(".json")


def differences(
    saved: Mapping, own: Mapping, defaults: Mapping
) -> Iterator[tuple[str, Any, Any]]:
    """Yields the fields in which two configurations differ.

    Every ``remat`` is left out: it changes what the backward pass keeps, and
    no more than the roundings of a result.

    Args:
        saved: configuration in a file, which may lack newer fields.
        own: current configuration.
        defaults: values of the fields that ``saved`` lacks.

    Yields:
        Name, saved value and current value.

    Example:
        >>> old, new = {"a": {"b": 1}}, {"a": {"b": 2, "c": 0}}
        >>> list(differences(old, new, {"a": {"b": 0, "c": 0}}))
        [('a.b', 1, 2)]
    """
    flat_saved, flat_own = _flat(_overlay(defaults, saved)), _flat(own)
    for name in sorted({*flat_saved, *flat_own}):
        old, new = flat_saved.get(name), flat_own.get(name)
        if old != new and name.rpartition(".")[2] != "remat":
            yield name, old, new


def _overlay(defaults: Mapping, saved: Mapping) -> dict[str, Any]:
    """Adds the fields that ``saved`` lacks, at any depth."""
    out = {**defaults, **saved}
    for name, value in saved.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            out[name] = _overlay(default, value)
    return out


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
