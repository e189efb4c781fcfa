"""Reader of folders and files in the layout of the Hugging Face Hub.

``config.json`` describes the model; ``model.safetensors``, or the shards listed
in ``model.safetensors.index.json``, hold its tensors. None of them can contain
code, and only files inside the folder are opened.
"""

import json
import pathlib
from typing import Any

from nl_jax.errors import InputError
from nl_jax.pretrained.tensor_source import TensorSource

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Suffixes of formats that can run code when they are read."""

INDEX = "model.safetensors.index.json"
"""Name of the file that lists the shards of a model."""

_DTYPES = ("F64", "F32", "F16", "BF16")


def refuse_pickle(path: pathlib.Path) -> None:
    """Raises ``InputError`` if a file's name or content is that of a pickle."""
    if path.suffix.lower() in PICKLES:
        _refuse(path, f"{path.suffix} files are pickles")
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(4)
        # Pickle protocols 2 to 5, and the archive in which PyTorch saves them.
        if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
            _refuse(path, "it is a pickle")
        if start == b"PK\x03\x04":
            _refuse(path, "it is an archive, as PyTorch writes pickles")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
        InputError: if the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror or error})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged; it is not JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object")
    return value


def open_safetensors(path: pathlib.Path) -> tuple[TensorSource, dict[str, Any]]:
    """Opens the safetensors files of a model.

    Args:
        path: a folder, or a ``.safetensors`` file next to ``config.json``.

    Returns:
        The tensors, and the content of ``config.json``.

    Raises:
        InputError: if a file is missing, damaged or outside the folder.
    """
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else _files(folder)
    config = read_json(folder / "config.json")
    owners: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        refuse_pickle(file)
        opened = _open(file)
        for name in opened.keys():  # noqa: SIM118
            if name in owners:
                raise InputError(f"{file}: the tensor {name} is there twice")
            owners[name] = opened
            part = opened.get_slice(name)
            shapes[name], kinds[name] = (
                tuple(part.get_shape()),
                part.get_dtype(),
            )

    def read(name):
        if kinds[name] not in _DTYPES:
            raise InputError(
                f"{path}: the tensor {name} has dtype {kinds[name]}; this "
                f"version reads {', '.join(_DTYPES)}"
            )
        return owners[name].get_tensor(name)

    return TensorSource(path, shapes, read), config


def _files(folder):
    single = folder / "model.safetensors"
    index = folder / INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise InputError(
            f"{folder} holds neither model.safetensors nor "
            "model.safetensors.index.json"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index} has no weight_map from tensors to files")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if pathlib.PurePath(name).name != name or "\\" in name:
            raise InputError(
                f"{index} names the shard {name!r}; a shard is a file in the "
                "same folder"
            )
        refuse_pickle(folder / name)
        if not name.endswith(".safetensors"):
            raise InputError(
                f"{index} names the shard {name!r}; needs .safetensors files"
            )
    return [folder / name for name in names]


def import_safetensors(path: object):
    """Imports the package, which ``path`` needs.

    Raises:
        InputError: if it is missing.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise InputError(
            f"{path} needs the package safetensors: "
            'pip install "nl-jax[pretrained]"'
        ) from error
    return safetensors


def _open(file):
    safetensors = import_safetensors(file)
    if not file.is_file():
        raise InputError(f"{file} is missing")
    try:
        return safetensors.safe_open(file, framework="numpy")
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{file} is truncated, damaged or no safetensors file ({error})"
        ) from error


def _refuse(path, why):
    raise InputError(
        f"{path} is refused: {why}, which run code when they are read; "
        "give safetensors or GGUF"
    )
