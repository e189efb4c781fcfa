"""Entries of a pretrained model's configuration, checked as they are read."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from nl_jax.errors import InputError


class Facts:
    """Reader of a configuration, which checks the type of each entry.

    Args:
        path: name of the file in error messages.
        entries: entries by name.
        prefix: common prefix of all names.

    Example:
        >>> Facts("config.json", {"heads": 4}).count("heads")
        4
    """

    def __init__(
        self, path: object, entries: Mapping[str, Any], prefix: str = ""
    ):
        self.path = path
        self._entries = entries
        self._prefix = prefix
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._entries

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an entry, or ``default`` if it is missing or null."""
        self._read.add(self._prefix + name)
        value = self._entries.get(self._prefix + name)
        return default if value is None else value

    def count(
        self, name: str, default: int | None = None, least: int = 1
    ) -> int:
        """Returns an integer of at least ``least``."""
        value = self.get(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least:
            self.refuse(name, value, f"an integer >= {least}")
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """Returns a positive number."""
        value = self.get(name, default)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < math.inf:
            self.refuse(name, value, "a positive number")
        return float(value)

    def need(self, name: str, default: Any, *allowed: Any) -> Any:
        """Returns an entry that must be one of the allowed values."""
        value = self.get(name, default)
        if value not in allowed:
            self.refuse(name, value, " or ".join(map(repr, allowed)))
        return value

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Checks that all entries were read or are null, except ``harmless``.

        Args:
            harmless: regexes of names that do not change a model's numbers.

        Raises:
            InputError: if there are others.
        """
        for name, value in self._entries.items():
            if name in self._read or value is None:
                continue
            if not any(re.fullmatch(pattern, name) for pattern in harmless):
                shown = repr(value)[:60]
                raise InputError(
                    f"{self.path}: {name}={shown} is not known to this version "
                    "and may change the model; remove the entry if it does not"
                )

    def refuse(self, name: str, value: Any, allowed: str) -> NoReturn:
        """Raises ``InputError``."""
        raise InputError(
            f"{self.path}: {self._prefix}{name}={value!r}; this version reads "
            f"{allowed}"
        )


def check_window(window: int | None, context: int) -> int:
    """Returns the number of tokens that attention sees.

    Raises:
        ValueError: if ``window`` is not between 1 and ``context``.
    """
    if window is None:
        return context
    whole = isinstance(window, int) and not isinstance(window, bool)
    if not whole or not 1 <= window <= context:
        raise ValueError(
            f"window={window!r} must be from 1 to {context}, the context of "
            "the pretrained model"
        )
    return window
