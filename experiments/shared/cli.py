"""Runs a script: flags, log lines, and errors on one line."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import logging as absl_logging
from absl.flags import Error

from experiments.shared import flags
from experiments.shared.explained import explain
from experiments.shared.interrupts import ExitAtSignal
from experiments.shared.sweep import FailedCellsError, collect_failures
from experiments.shared.workers import StoppedError

# Errors that ml_collections raises for unknown fields and wrong types.
_FLAG_ERRORS = (Error, AttributeError, KeyError, TypeError, ValueError)


def run(script: ModuleType, argv: Sequence[str] | None = None) -> None:
    """Runs a script on its flags; wrong input prints one line and exits with 2.

    At SIGINT and SIGTERM it prints one line too, and exits with 130 or 143. If
    cells of its sweeps failed, it says which and why, and exits with 1.

    Args:
        script: has ``FLAGS``, a table of flags, and ``main``, which takes the
            parsed values. ``--help`` shows its docstring. Arguments that are
            not flags go to the flag, or the flags in turn, that ``POSITIONAL``
            names, if there are any.
        argv: arguments after the script's name; by default from ``sys.argv``.
    """
    with ExitAtSignal():
        _run(script, argv)


def _run(script, argv):
    if argv is not None:
        # config_flags reads --config.field=value from sys.argv only.
        sys.argv = [sys.argv[0], *argv]
    _log_to_stdout()
    values = flags.FlagValues()
    try:
        flags.define(script.FLAGS, values)
        if "--help" in sys.argv:
            print(script.__doc__)
            print(values.get_help())
            return
        rest = values(sys.argv)
        _take_positional(script, values, rest[1:])
        values.validate_all_flags()
    except OSError as error:
        _fail(f"cannot load --config: {str(error).strip().splitlines()[-1]}")
    except Exception as error:  # A configuration file may raise any.
        place = _place_in_config(error)
        if not place and not isinstance(error, _FLAG_ERRORS):
            raise
        _fail(
            f"cannot load --config: {place}" if place else _flag_message(error)
        )
    try:
        with collect_failures() as failed:
            try:
                script.main(values)
            finally:
                for line in failed:
                    print(f"error: failed: {line}", file=sys.stderr)
        sys.stdout.flush()
        if failed:
            sys.exit(
                f"error: failed cells: {len(failed)}; the same command tries "
                "these again"
            )
    except FailedCellsError:
        sys.exit("error: no cell of the sweep has a result")
    except StoppedError:
        print("stopped; the same command goes on with this run")
    except BrokenPipeError:
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        _fail(line)


def _take_positional(script, values, given):
    names = getattr(script, "POSITIONAL", ())
    names = (names,) if isinstance(names, str) else names
    several = len(names) == 1 and isinstance(values[names[0]].default, list)
    unexpected = [] if several else given[len(names) :]
    if unexpected:
        _fail(f"unexpected argument {unexpected[0]!r}; flags begin with --")
    if several and given:
        given = [given]
    for name, word in zip(names, given, strict=False):
        values[name].value = word


def _log_to_stdout() -> None:
    # Orbax logs each of its steps; problems that matter raise errors.
    absl_logging.set_verbosity(absl_logging.FATAL)
    handler = _Lines(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("nl_jax")
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class _Lines(logging.StreamHandler):
    """Writes log lines while anyone reads them; a run goes on without."""

    def handleError(self, record):
        if isinstance(sys.exception(), BrokenPipeError):
            _drop_output()
        else:
            super().handleError(record)


def _drop_output() -> None:
    # Whoever read it has gone, and Python would complain at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _place_in_config(error: BaseException | None) -> str:
    """Returns the line of a configuration file that raised an error, if any."""
    while error:
        why = f"{type(error).__name__}: {error}"
        # ml_collections gives this name to the module.
        lines = [
            f"{frame.f_code.co_filename}, line {number}: {why}"
            for frame, number in traceback.walk_tb(error.__traceback__)
            if frame.f_globals.get("__name__") == "config_config"
        ]
        if lines:
            return lines[-1]
        if getattr(error, "name", None) == "get_config":
            return "it has no function get_config"
        if isinstance(error, SyntaxError) and error.filename != "<unknown>":
            return f"it is not Python: {error}"
        error = error.__context__
    return ""


def _flag_message(error: BaseException) -> str:
    text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
    text = " ".join(text.split()).strip('"').removeprefix("flag ")
    if isinstance(error, (AttributeError, KeyError)):
        return f"--config has no field {text}; see nl_jax.training.TrainConfig"
    return text or type(error).__name__


def _fail(message: Any) -> NoReturn:
    sys.stdout.flush()
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
