"""What the scripts share: flags, log lines, and errors on one line."""

import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging

from nl_jax.training import InputError

__all__ = ["run", "write_json"]

# What ml_collections raises for fields that are not there or of a wrong type.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError)


def run(main: Callable[[], Any], argv: Sequence[str] | None = None) -> None:
    """Parses flags, runs ``main`` and exits; wrong input is one clear line."""
    argv = list(sys.argv if argv is None else argv)
    _log_to_stdout()
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise InputError(
                f"unexpected argument {rest[1]!r}; flags begin with --"
            )
    except InputError as error:
        _fail(error)
    except _FLAG_ERRORS as error:
        _fail(_flag_message(error))
    except OSError as error:
        _fail(str(error).strip().splitlines()[-1])
    if any(flag in argv for flag in ("--help", "--helpfull")):
        return
    try:
        main()
    except InputError as error:
        _fail(error)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{place}")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a file that is whole or not there."""
    path = pathlib.Path(path)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(fresh, path)


def _log_to_stdout() -> None:
    # Orbax reports each of its steps; what matters of it comes as an error.
    absl_logging.set_verbosity(absl_logging.FATAL)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("nl_jax")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


def _flag_message(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if isinstance(error, (AttributeError, KeyError)):
        text = f"unknown field of --config: {' '.join(lines)}"
    return text.strip("\"'")


def _fail(message: Any) -> None:
    sys.stdout.flush()
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
