"""What arguments must be, and one way of saying that one is not."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

__all__ = ["check_choice", "check_count", "choose"]

T = TypeVar("T")


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raises ``ValueError`` unless ``value`` is an integer of ``least``.

    Example:
        >>> check_count("period", 0)
        Traceback (most recent call last):
        ...
        ValueError: period=0 must be an integer >= 1
    """
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer >= {least}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises ``ValueError`` unless ``value`` is among ``allowed``.

    Example:
        >>> check_choice("read", "never", ("before", "after"))
        Traceback (most recent call last):
        ...
        ValueError: read='never' must be one of 'before', 'after'
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(
            f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}"
        )


def choose(name: str, value: str | T, table: Mapping[str, T]) -> T:
    """Returns the entry that a name stands for, or the object itself.

    Raises:
        ValueError: for a name that is not in the table.

    Example:
        >>> choose("rate", "slow", {"slow": 0.1}), choose("rate", 0.5, {})
        (0.1, 0.5)
    """
    if not isinstance(value, str):
        return value
    check_choice(name, value, table)
    return table[value]
