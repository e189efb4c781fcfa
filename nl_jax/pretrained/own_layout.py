"""Models of this library in safetensors, of any kind.

``config.json`` has ``model_type`` ``"nl_jax"``, a ``format``, and as ``model``
the fields of :class:`~nl_jax.models.ModelConfig`. Tensors have the names and
shapes of parameters, blocks stacked: ``blocks.mixer.w_q`` is ``[n_layers, D,
D]``.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, ModelConfig, configure, to_json
from nl_jax.models.config_json import check_named
from nl_jax.pretrained.entries import Facts
from nl_jax.pretrained.harmless import HF_HARMLESS

KIND = "nl_jax"
_FORMAT = 1


def as_own(
    config: ModelConfig, params: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns a model's ``config.json`` and tensors.

    Raises:
        InputError: if an object in the configuration has no name.
    """
    check_named(config)
    entries = {"model_type": KIND, "format": _FORMAT, "model": to_json(config)}
    flat = traverse_util.flatten_dict(params, sep=".")
    return entries, {name: np.asarray(leaf) for name, leaf in flat.items()}


def read_own(source, entries, window):
    """Reads a model of this library as described by its ``config.json``."""
    if window is not None:
        raise InputError(
            f"window={window!r} goes with models of other libraries; "
            f"{source.path} has the one that it was trained with"
        )
    facts = Facts(source.path, entries)
    facts.need("format", None, _FORMAT)
    fields = facts.get("model")
    facts.finish(HF_HARMLESS)
    try:
        config = configure(ModelConfig(), **fields)
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{source.path}: its entry model is damaged or of another version "
            f"({error})"
        ) from error
    model = LanguageModel(config)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
    )
    params = {
        name: jnp.asarray(source.take(name, leaf.shape))
        for name, leaf in traverse_util.flatten_dict(
            shapes["params"], sep="."
        ).items()
    }
    source.finish()
    return model, {"params": traverse_util.unflatten_dict(params, sep=".")}
