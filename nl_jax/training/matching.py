"""Parameters put in place of others by name."""

import logging
from typing import Any

from flax import traverse_util

from nl_jax.errors import InputError

_LOG = logging.getLogger(__name__)


def put_weights(path: str, found: Any, drawn: Any) -> Any:
    """Replaces drawn parameters by those found under the same names.

    Logs the names of those that have no counterpart.

    Args:
        path: where the weights are from, for messages.
        found: parameters there.
        drawn: parameters of the run's model.

    Raises:
        InputError: if shapes differ, or no name is in both.

    Example:
        >>> import numpy as np
        >>> put_weights("a", {"x": np.ones(1)}, {"x": np.zeros(1), "y": 2})
        {'x': array([1.]), 'y': 2}
    """
    old = traverse_util.flatten_dict(found, sep=".")
    new = traverse_util.flatten_dict(drawn, sep=".")
    shared = sorted(old.keys() & new.keys())
    for name in shared:
        if old[name].shape != new[name].shape:
            raise InputError(
                f"init_from={path}: {name} has shape {old[name].shape}, in the "
                f"model of this run {new[name].shape}; leave fields of the "
                "model unset to have those of the weights"
            )
    if not shared:
        raise InputError(
            f"init_from={path} has no parameter of this model, such as "
            f"{min(new)}"
        )
    _LOG.info("began with %d parameters of %s", len(shared), path)
    for words, names in (
        ("drawn, since they are not there", new.keys() - old.keys()),
        ("there, but not in this model", old.keys() - new.keys()),
    ):
        if names:
            _LOG.info("%s: %s", words, ", ".join(sorted(names)))
    merged = new | {name: old[name] for name in shared}
    return traverse_util.unflatten_dict(merged, sep=".")
