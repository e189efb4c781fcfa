"""Files with the state of a model or a sampler.

The format is NumPy's ``.npz``, with one array per leaf and a JSON header with
the model's configuration. Files are read without pickle, so that they cannot
run code, and replaced atomically: an interrupted save leaves the old one.
"""

import contextlib
import json
import os
import pathlib
import secrets
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.continual.sampling import SamplerState, first_state
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, ModelConfig, to_json
from nl_jax.models.config_json import same_periods
from nl_jax.models.language_model import ModelState
from nl_jax.models.model_state import check_state
from nl_jax.training.same_config import differences

_FORMAT = "nl_jax state 1"
_DAMAGED = (
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors that NumPy and zipfile raise for invalid files."""


def save_state(
    path: str | os.PathLike,
    model: LanguageModel,
    state: ModelState | SamplerState,
    *,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Saves a state, to continue from it later or on another machine.

    The state is only valid with the model's configuration and parameters. The
    file does not contain the parameters, nor the definition of optax
    transformations in ``cms.inner``.

    Args:
        path: path of the file; an existing file is replaced.
        model: model from :func:`nl_jax.models.build`.
        state: state of the model, or of a :class:`Sampler`.
        meta: JSON values that must be the same when the state is loaded, such
            as the step of the parameters.

    Raises:
        ValueError: if the state is of another model.
        InputError: if the file cannot be written; an existing file is kept.
    """
    fast = state.fast if isinstance(state, SamplerState) else state
    rows = check_state(model, fast)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    header = {
        "format": _FORMAT,
        "kind": type(state).__name__,
        "rows": rows,
        "segment": fast.segment is not None,
        "dtypes": [str(leaf.dtype) for leaf in leaves],
        "config": _config(model),
        "meta": dict(meta or {}),
    }
    arrays = {f"leaf_{i}": _plain(leaf) for i, leaf in enumerate(leaves)}
    path = pathlib.Path(path).absolute()
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise InputError(
            f"could not save {path} ({error.strerror or error})"
        ) from error


def load_state(
    path: str | os.PathLike,
    model: LanguageModel,
    variables: Any,
    *,
    kind: type = ModelState,
    meta: Mapping[str, Any] | None = None,
) -> Any:
    """Loads a state saved by :func:`save_state`.

    Args:
        path: path of the file.
        model: model of the same configuration.
        variables: parameters with which the state was made.
        kind: type of the state, ``ModelState`` or ``SamplerState``.
        meta: JSON values with which the state was saved.

    Returns:
        The state, on the default device.

    Raises:
        InputError: if the file is missing, damaged, not a state, or of another
            configuration; the message names what differs.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, as earlier versions saved states; save the "
            "state anew, as a file"
        )
    if not path.exists():
        raise InputError(f"{path} does not exist; save a state there first")
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            version, rows = header["format"], int(header["rows"])
            # Older files lack these; they hold the state of a model.
            found_kind = header.get("kind", "ModelState")
            has_segment = header.get("segment", False)
            found_meta = header.get("meta", {})
            found = header["config"] | {"meta": found_meta}
            leaves = [
                file[f"leaf_{index}"].view(jnp.dtype(dtype))
                for index, dtype in enumerate(header["dtypes"])
            ]
    except _DAMAGED as error:
        raise InputError(f"{path} is damaged or not a saved state") from error
    if version != _FORMAT:
        raise InputError(
            f"{path} has the format {version!r}; this version reads {_FORMAT!r}"
        )
    if found_kind != kind.__name__:
        raise InputError(f"{path} holds a {found_kind}, not a {kind.__name__}")
    own = _config(model) | {"meta": dict(meta or {})}
    for name, old, new in differences(found, own, to_json(ModelConfig())):
        if name == "cms.token_periods" and same_periods(old, new, model.config):
            continue
        raise InputError(
            f"{path} is the state of another model: it has {name}={old!r}, "
            f"this one {new!r}"
        )

    def first(variables):
        state = model.init_state(variables, rows)
        if has_segment:
            state = state._replace(segment=jnp.zeros(rows, jnp.int32))
        if kind is SamplerState:
            return first_state(model, variables)._replace(fast=state)
        return state

    shapes, tree = jax.tree.flatten(jax.eval_shape(first, variables))
    if [(a.shape, a.dtype) for a in leaves] != [
        (a.shape, a.dtype) for a in shapes
    ]:
        raise InputError(
            f"{path} is the state of another version of this model; its "
            "arrays have other shapes"
        )
    return jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves])


def _config(model):
    """Returns the configuration; optimizers without name are placeholders."""
    text = json.dumps(to_json(model.config), default=lambda _: "a function")
    return json.loads(text)


def _plain(leaf):
    """Views types that NumPy's format lacks, such as bfloat16, as integers."""
    return leaf if leaf.dtype.isbuiltin else leaf.view(f"u{leaf.itemsize}")
