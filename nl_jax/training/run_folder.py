"""Folders of runs, local ones and those that only ``epath`` can reach."""

import os
import pathlib
import re

from etils import epath

from nl_jax.errors import InputError


def open_folder(path: str | os.PathLike, flag: str = "--workdir") -> epath.Path:
    """Returns a path, absolute if it is local, whether or not it exists.

    Args:
        path: a local path, or one such as ``gs://bucket/run``.
        flag: that names another folder, for the error message.

    Raises:
        InputError: if the scheme is unknown, its package is missing, or one of
            its slashes.

    Example:
        >>> open_folder("runs/default").is_absolute()
        True
        >>> open_folder("ftp://host/run")
        Traceback (most recent call last):
        nl_jax.errors.InputError: --workdir=ftp://host/run has an unknown ...
    """
    if re.match(r"[a-z][\w+.-]+:/", os.fspath(path)) and not is_remote(path):
        raise InputError(
            f"{flag}={path} must have two slashes after its scheme"
        )
    if not is_remote(path):
        return epath.Path(pathlib.Path(path).absolute())
    try:
        found = epath.Path(path)
        # Orbax can save to other schemes only if epath finds them locally.
        if is_remote(found) and not os.fspath(found).startswith("gs://"):
            raise KeyError
        found.exists()
    except KeyError as error:
        raise InputError(
            f"{flag}={path} has an unknown scheme; give a local folder or one "
            "such as gs://bucket/run"
        ) from error
    except ImportError as error:
        raise InputError(
            f"{flag}={path} needs a package: {error}; for gs:// pip install "
            '"nl-jax[gcs]"'
        ) from error
    except Exception as error:  # Each storage has its own errors.
        raise InputError(
            f"cannot reach {flag}={path}: {str(error).splitlines()[0]}"
        ) from error
    return found


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path has a scheme, such as ``gs://``."""
    return "://" in os.fspath(path)


def copy_tree(source: epath.Path, target: epath.Path) -> None:
    """Copies all files of a folder into another, which may be remote."""
    for folder, _, files in source.walk():
        into = target / folder.relative_to(source)
        into.mkdir(parents=True, exist_ok=True)
        for name in files:
            (into / name).write_bytes((folder / name).read_bytes())
