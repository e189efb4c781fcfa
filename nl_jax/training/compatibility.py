"""What must not change between a checkpoint and who goes on from it."""

from collections.abc import Mapping
from typing import Any

from nl_jax.data import Tokenizer
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, ModelConfig
from nl_jax.training.train_config import to_json

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
_FIXED_FIELDS = (
    "model.",
    "data.tokenizer",
    "data.bpe_vocab_size",
    "optimizer.name",  # The state in the checkpoint is this rule's.
)
_MODEL = to_json(ModelConfig())


def upgrade_config(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's configuration in the fields of today.

    Fields that are younger than the checkpoint get what a run did without
    them; ``delta_net`` has become one of the matrix memories.

    Example:
        >>> old = {"model": {"mixer": "delta_net", "delta_net": {}}}
        >>> new = upgrade_config(old | {"optimizer": {}})
        >>> new["model"]["mixer"], new["optimizer"]["name"]
        ('matrix', 'adamw')
    """
    model, optimizer = dict(saved["model"]), dict(saved["optimizer"])
    optimizer.setdefault("name", "adamw")
    delta_net = dict(model.pop("delta_net", {}))
    if "matrix" not in model:
        if model.get("mixer") == "delta_net":
            model["mixer"] = "matrix"
        gated = delta_net.pop("gated", False)
        decay = {"decay": "scalar" if gated else "none"}
        model["matrix"] = decay | delta_net
    model = _overlay(_MODEL, model)
    return {**saved, "model": model, "optimizer": optimizer}


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
        accept: allow differences outside of the model, the tokenizer and the
            optimizer's name.

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


def check_text(workdir, saved: str, sha256: str, *, accept: bool):
    """Checks that a run reads the text that it began with.

    Args:
        workdir: for the message.
        saved: hash of the text in the checkpoint.
        sha256: hash of the text now.
        accept: allow another text.

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


def _overlay(defaults: Mapping, saved: Mapping) -> dict[str, Any]:
    """Fills what ``saved`` has no field for, at any depth."""
    out = {**defaults, **saved}
    for name, value in saved.items():
        if isinstance(value, Mapping) and isinstance(
            defaults.get(name), Mapping
        ):
            out[name] = _overlay(defaults[name], value)
    return out


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
