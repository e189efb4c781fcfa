"""What the scripts share: flags, log lines, and errors on one line."""

import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from nl_jax.errors import InputError

# What ml_collections raises for fields that are not there or of a wrong type.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError)


def run(
    define: Callable[[flags.FlagValues], None],
    main: Callable[[flags.FlagValues], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Parses flags and runs ``main``; wrong input is one line and exit 2.

    Args:
        define: defines the script's flags on the values that it is given.
        main: takes the parsed values.
        argv: arguments behind the script's name; ``sys.argv`` if not given.
    """
    if argv is not None:
        # config_flags finds its --config.field=value there and nowhere else.
        sys.argv = [sys.argv[0], *argv]
    _log_to_stdout()
    values = flags.FlagValues()
    try:
        define(values)
        if "--help" in sys.argv:
            print(sys.modules[main.__module__].__doc__)
            print(values.get_help())
            return
        rest = values(sys.argv)
    except OSError as error:
        _fail(f"cannot load --config: {str(error).strip().splitlines()[-1]}")
    except _FLAG_ERRORS as error:
        _fail(_flag_message(error))
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; flags begin with --")
    try:
        main(values)
    except InputError as error:
        _fail(error)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{place}")


def check_names(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ``InputError`` for names that are not known."""
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"--{flag}={','.join(unknown)}: allowed are {', '.join(known)}"
        )


def integers(flag: str, words: Sequence[str], least: int) -> list[int]:
    """Returns the numbers of a list flag; raises ``InputError`` for others."""
    if not all(word.isdecimal() and int(word) >= least for word in words):
        raise InputError(
            f"--{flag}={','.join(words)}: must be integers >= {least}"
        )
    return [int(word) for word in words]


def half_decades(middle: float, count: int) -> list[float]:
    """Returns learning rates around one, each half a decade from the next.

    Example:
        >>> half_decades(0.01, 3)
        [0.00316, 0.01, 0.0316]
    """
    return [
        float(f"{middle * 10 ** ((i - count // 2) / 2):.3g}")
        for i in range(count)
    ]


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
    text = str(error).replace("\\n", " ").replace("\\", "").replace("'", "")
    text = " ".join(text.split()).strip('"')
    if isinstance(error, (AttributeError, KeyError)):
        return f"--config has no field {text}; see nl_jax.training.TrainConfig"
    return text or type(error).__name__


def _fail(message: Any) -> NoReturn:
    sys.stdout.flush()
    line = " ".join(str(message).split())
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)
