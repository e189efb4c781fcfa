"""Destinations of a run's metrics: JSON Lines, TensorBoard, W&B, trackio.

:func:`nl_jax.training.train` writes ``metrics.jsonl`` itself, and passes the
same values to any writers of yours.
"""

import importlib
import io
import json
import pathlib
import secrets
import time
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from nl_jax.checks import check_choice
from nl_jax.errors import InputError
from nl_jax.training.run_folder import is_remote, open_folder

_REMOTE_SECONDS = 60.0


class MetricsWriter(Protocol):
    """Destination of metrics; only process 0 calls it.

    Example:
        >>> class Printer:
        ...     def begin(self, step, config): ...
        ...     def write(self, step, values):
        ...         print(step, values)
        ...
        ...     def close(self): ...
        >>> Printer().write(1, {"loss": 0.5})  # As train(..., writers=) does.
        1 {'loss': 0.5}
    """

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Opens the destination.

        Args:
            step: step that the run goes on from, or 0. Values of later steps
                may exist, from before an interruption; they come again.
            config: configuration of the run, as JSON values.
        """

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records some values of one step."""

    def close(self) -> None:
        """Writes whatever is still buffered, and closes the destination.

        Called once, even if :meth:`begin` was not.
        """


class JsonLines:
    """Writes metrics as one JSON object per line.

    Lines of a local file are flushed at once. A remote file cannot be appended
    to: it is written anew after a minute, and by :meth:`flush`.

    Args:
        path: path of the file. Lines of an interrupted run that are later than
            the step it goes on from are removed.
    """

    def __init__(self, path):
        self._path = epath.Path(path)
        self._file: Any = None
        self._flushed = 0.0

    def begin(self, step: int, config: Mapping[str, Any] | None = None) -> None:
        """Opens the file."""
        kept: list[str] = []
        if self._path.exists():
            found = read_json_lines(self._path)
            kept = [_line(row) for row in found if row["step"] <= step]
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text("".join(kept))
            fresh.replace(self._path)
        if is_remote(self._path):
            self._file = io.StringIO()
            self._file.writelines(kept)
            self.flush()
        else:
            # epath opens no file that is flushed at each line.
            file = pathlib.Path(self._path)
            self._file = file.open("a", buffering=1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        self._file.write(_line({"step": step, **values}))
        if time.monotonic() - self._flushed > _REMOTE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was not written yet."""
        if isinstance(self._file, io.StringIO):
            self._path.write_text(self._file.getvalue())
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self.flush()
            self._file.close()


class TensorBoard:
    """Writes metrics as TensorBoard scalars (extra ``tensorboard``).

    Args:
        folder: folder of the event files.

    Raises:
        InputError: if tensorboardX is not installed.
    """

    def __init__(self, folder):
        self._folder = folder
        self._writer: Any = None
        self._package = _import("tensorboardX", "tensorboard")

    def begin(self, step: int, config: Mapping[str, Any] | None = None) -> None:
        """Opens the files; scalars of later steps are no longer shown."""
        self._writer = self._package.SummaryWriter(
            str(self._folder),
            purge_step=step + 1,
            filename_suffix=f".{step}",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes whatever is still buffered, and closes the files."""
        if self._writer is not None:
            self._writer.close()


class Tracker:
    """Writes metrics to Weights & Biases or trackio (extras of their names).

    A run that goes on is one run there too.

    Args:
        package: ``"wandb"`` or ``"trackio"``.
        folder: folder of the run; it gives the name, and keeps its identity.
        project: name of the project.
        **options: further arguments of the package's ``init``, such as
            ``mode="offline"`` for W&B.

    Raises:
        InputError: if the package is not installed.
    """

    def __init__(self, package: str, folder, project="nl_jax", **options: Any):
        check_choice("package", package, ("wandb", "trackio"))
        self._package = _import(package, package)
        self._folder, self._project = open_folder(folder), project
        self._options = options
        self._run: Any = None

    def begin(self, step: int, config: Mapping[str, Any]) -> None:
        """Begins the run, or takes it up again.

        Raises:
            InputError: if the package refuses to, for instance without a login.
        """
        package = self._package.__name__
        kept = self._folder / f"{package}_run"
        if not kept.exists():
            kept.write_text(secrets.token_hex(4))
        name = f"{self._folder.name}-{kept.read_text()}"
        options = {"name": name, "resume": "allow", "config": dict(config)}
        errors: tuple[type[Exception], ...] = (
            OSError,
            RuntimeError,
            ValueError,
        )
        if package == "wandb":
            # Its runs have an identity besides their name.
            options |= {"id": name}
            if not is_remote(self._folder):
                options |= {"dir": str(self._folder)}
            errors += (self._package.Error,)
        try:
            self._run = self._package.init(
                project=self._project, **options | self._options
            )
        except errors as error:
            raise InputError(f"{package} cannot begin: {error}") from error

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finishes the run."""
        if self._run is not None:
            self._run.finish()


def read_json_lines(path) -> list[dict]:
    """Returns the records of a run; omits a last line that was cut off.

    Raises:
        InputError: if another line is not a record of a run.
    """
    try:
        lines = epath.Path(path).read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error})") from error
    out = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            if line.startswith("{") and not line.endswith("\n"):
                break
            found = None
        step = found.get("step") if isinstance(found, dict) else None
        if not isinstance(step, int):
            raise InputError(
                f"{path} is no record of a run: line {number} has no step; "
                "move that file away, or give another --workdir"
            )
        out.append(found)
    return out


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f'{package} is not installed: pip install "nl-jax[{extra}]"'
        ) from error
