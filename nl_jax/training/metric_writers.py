"""Where numbers go: JSON lines always, TensorBoard when asked."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Protocol

from nl_jax.errors import InputError


class MetricsWriter(Protocol):
    """Takes numbers of one step; only process 0 has one."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records values."""

    def close(self) -> None:
        """Finishes."""


class JsonLines:
    """One JSON object a line, on disk at once.

    Args:
        path: the file; it is continued if it exists.
        last_step: lines of later steps, written by a run that was cut off
            after its last checkpoint, are removed.
    """

    def __init__(self, path, last_step: int = 0):
        self._path = pathlib.Path(path)
        if self._path.exists():
            kept = read_json_lines(self._path)
            kept = [line for line in kept if line["step"] <= last_step]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(text)
            os.replace(fresh, self._path)
        self._file = self._path.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Scalars for TensorBoard, through tensorboardX."""

    def __init__(self, folder):
        try:
            import tensorboardX
        except ImportError as error:
            raise InputError(
                "tensorboard=True needs the package tensorboardX: "
                'pip install -e ".[tensorboard]"'
            ) from error
        self._writer = tensorboardX.SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def read_json_lines(path) -> list[dict]:
    """Returns the complete lines of a file; a cut-off last one is left out."""
    out = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out
