"""Export of models to folders that other programs read."""

import json
import os
import pathlib
import secrets
import shutil

import jax.numpy as jnp
import numpy as np

from nl_jax.checks import check_choice
from nl_jax.errors import InputError
from nl_jax.pretrained.llama_export import as_llama
from nl_jax.pretrained.loading import Pretrained
from nl_jax.pretrained.own_layout import as_own
from nl_jax.pretrained.safetensors_source import import_safetensors

DTYPES = ("float32", "bfloat16")
"""Types in which weights can be saved."""


def save_pretrained(
    pretrained: Pretrained,
    folder: str | os.PathLike,
    *,
    dtype: str = "float32",
) -> str:
    """Saves a model for :func:`load_pretrained` (extra ``pretrained``).

    The folder gets ``config.json``, ``model.safetensors`` and, if there is a
    tokenizer, ``tokenizer.json``. Models that the Llama family holds are saved
    as such, which ``transformers`` reads too; all others in the layout of
    :mod:`nl_jax.pretrained.own_layout`. Saved in float32, a model gives the
    same logits again, bit for bit, if it computes in float32.

    Args:
        pretrained: model, parameters and tokenizer.
        folder: a new or empty folder. It appears once it is complete.
        dtype: one of ``DTYPES``; bfloat16 rounds the weights.

    Returns:
        The ``model_type``: ``"llama"``, ``"mistral"``, ``"qwen2"`` or
        ``"nl_jax"``.

    Raises:
        InputError: if the folder is not empty or cannot be written, or the
            configuration holds something that has no name.
    """
    check_choice("dtype", dtype, DTYPES)
    folder = pathlib.Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} exists already; give a new folder")
    safetensors = import_safetensors(folder)
    config = pretrained.model.config
    params = pretrained.variables["params"]
    entries, tensors = as_llama(config, params) or as_own(config, params)
    tensors = {
        name: np.ascontiguousarray(tensor, jnp.dtype(dtype))
        for name, tensor in tensors.items()
    }
    files = {"config.json": entries | {"torch_dtype": dtype}}
    if pretrained.tokenizer_json is not None:
        files["tokenizer.json"] = json.loads(pretrained.tokenizer_json)
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast"
        }
    target = folder.resolve()
    beside = target if target.is_dir() else target.parent
    fresh = beside / f"{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        fresh.mkdir(parents=True)
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (fresh / name).write_text(text + "\n", encoding="utf-8")
        # transformers needs the entry, which says how matrices lie.
        safetensors.numpy.save_file(
            tensors, fresh / "model.safetensors", {"format": "pt"}
        )
        # The package makes its file readable by the owner alone.
        mode = (fresh / "config.json").stat().st_mode
        for path in fresh.iterdir():
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir():  # It stays: it may be one that others are in.
            for path in fresh.iterdir():
                os.replace(path, target / path.name)
        else:
            os.replace(fresh, target)
    except (OSError, safetensors.SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"could not save {folder} ({why})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return entries["model_type"]
