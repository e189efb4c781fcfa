"""Flags of a script, as a table from name to kind, default and help.

The ``FLAGS`` of a script map each name to the result of one of the functions
below, called with the default and the help text.
:mod:`experiments.shared.cli` defines and parses the flags.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from nl_jax.errors import InputError

_LAST_SEED = 2**32 - 1
FlagValues = flags.FlagValues
Flag = Callable[[str, FlagValues], Any]
"""A function of a name and values that defines the flag."""


def integer(
    default: int | None,
    text: str,
    least: int | None = 1,
    most: int = 2**31 - 1,
    *,
    multiple_of: int = 1,
) -> Flag:
    """An integer between bounds, or a multiple of another integer."""

    def define(name, values):
        flags.DEFINE_integer(
            name, default, text, least, most, flag_values=values
        )
        if multiple_of > 1:
            flags.register_validator(
                name,
                lambda value: value % multiple_of == 0,
                "must be even"
                if multiple_of == 2
                else f"must be a multiple of {multiple_of}",
                flag_values=values,
            )

    return define


def number(
    default: float, text: str, least: float | None = None, most=None
) -> Flag:
    """A real number between bounds."""

    def define(name, values):
        flags.DEFINE_float(name, default, text, least, most, flag_values=values)
        flags.register_validator(
            name, math.isfinite, "must be a finite number", flag_values=values
        )

    return define


def string(default: str | None, text: str) -> Flag:
    """Any text."""
    return lambda name, values: flags.DEFINE_string(
        name, default, text, flag_values=values
    )


def folder(default: str | None, text: str) -> Flag:
    """A folder to write into, which need not exist."""

    def usable(path):
        while path and not os.path.lexists(path):
            path = os.path.dirname(os.path.abspath(path))
        return path is None or (
            os.path.isdir(path) and os.access(path, os.W_OK)
        )

    def define(name, values):
        flags.DEFINE_string(name, default, text, flag_values=values)
        flags.register_validator(
            name,
            usable,
            "must be a folder that can be written to, or a new one",
            flag_values=values,
        )

    return define


def switch(text: str) -> Flag:
    """A switch that is off by default."""
    return lambda name, values: flags.DEFINE_bool(
        name, False, text, flag_values=values
    )


def choice(default: str, known: Iterable[str], text: str) -> Flag:
    """One of some names."""
    return lambda name, values: flags.DEFINE_enum(
        name, default, list(known), text, flag_values=values
    )


def words(
    default: Sequence[str], text: str = "", known: Iterable[str] = ()
) -> Flag:
    """Texts separated by commas; ``known`` limits them if it is given."""
    known = list(known)

    def check(word):
        if known and word not in known:
            raise ValueError(f"allowed are {', '.join(known)}")
        return word

    if known:
        text = f"{text} Out of {', '.join(known)}.".strip()
    return _listed(default, text, check, filled=bool(known))


def integers(
    default: Sequence[int], text: str, least: int, most: int = 2**31 - 1
) -> Flag:
    """Integers separated by commas, between bounds."""

    def parse(word):
        if not (word.isdecimal() and least <= int(word) <= most):
            raise ValueError(f"must be integers >= {least} and <= {most}")
        return int(word)

    return _listed(default, text, parse, filled=True)


def numbers(
    default: Sequence[float],
    text: str,
    valid: Callable[[float], bool] = lambda value: True,
    must: str = "must be numbers",
) -> Flag:
    """Real numbers separated by commas, each of which must be ``valid``."""

    def parse(word):
        try:
            found = float(word)
        except ValueError as error:
            raise ValueError(f"{must}; {error}") from error
        if not (math.isfinite(found) and valid(found)):
            raise ValueError(must)
        return found

    return _listed(default, text, parse, filled=True)


def seeds(default: Sequence[int], text: str = "One run each.") -> Flag:
    """Seeds separated by commas."""
    return integers(default, text, 0, _LAST_SEED)


def seed(text: str) -> Flag:
    """A seed, 0 by default."""
    return integer(0, text, 0, _LAST_SEED)


def jobs() -> Flag:
    """The number of cells that a sweep runs at the same time."""
    return integer(1, "Runs at the same time, a process each.")


def pick(values: FlagValues, names: Iterable[str]) -> dict[str, Any]:
    """Returns the values of some flags by name, for a record."""
    return {name: values[name].value for name in names}


def check_multiple(values: FlagValues, name: str, of: str) -> None:
    """Raises ``InputError`` unless a flag is a multiple of another one."""
    if values[name].value % values[of].value:
        raise InputError(
            f"--{name}={values[name].value}: must be a multiple of "
            f"--{of}={values[of].value}"
        )


def define(table: Mapping[str, Flag], values: FlagValues) -> None:
    """Defines all flags of a table."""
    for name, flag in table.items():
        flag(name, values)


class _ListParser(flags.ArgumentParser):
    """Parses each item of a list separated by commas."""

    def __init__(self, item: Callable[[str], Any]):
        self._item = item
        self.syntactic_help = "a list separated by commas"

    def parse(self, argument):
        if not isinstance(argument, str):  # A default.
            return list(argument)
        return [self._item(word) for word in flags.ListParser().parse(argument)]

    def flag_type(self):
        return "list"


def _listed(default, text, item, *, filled):
    """A list; one that is filled by default must not be empty."""

    def define(name, values):
        flags.DEFINE(
            _ListParser(item),
            name,
            default,
            text,
            flag_values=values,
            serializer=flags.CsvListSerializer(","),
        )
        if filled and default:
            flags.register_validator(
                name, bool, "must not be empty", flag_values=values
            )

    return define
