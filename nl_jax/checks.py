"""Checks of arguments, with error messages of one form."""

import math
import numbers
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.errors import InputError

NO_PARAMS = (
    "You are using a transformation that requires the current value of "
    "parameters, but you are not passing `params` when calling `update`."
)
"""Message of optax, which does not export it."""

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raises ``InputError`` with a message unless a condition holds."""
    if not condition:
        raise InputError(message)


def is_integer(value: Any) -> bool:
    """Returns whether ``value`` is an integer of Python or NumPy.

    Example:
        >>> is_integer(2), is_integer(np.int64(2)), is_integer(True)
        (True, True, False)
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_count(
    name: str, value: Any, least: int = 1, below: int = 2**31
) -> int:
    """Returns ``value`` if it is an integer in ``[least, below)``.

    ``below`` is a power of 2; JAX's integers have 32 bits, seeds without sign.
    An array, as ``optax.inject_hyperparams`` makes of every number, is none.

    Example:
        >>> check_count("period", 0)
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: period=0 must be an integer >= 1

    Raises:
        InputError: for any other value.
    """
    if isinstance(value, jax.Array):
        raise InputError(
            f"{name} is an array, but it must be static: "
            f"optax.inject_hyperparams(..., static_args={name!r})"
        )
    if not is_integer(value) or value < least:
        raise InputError(f"{name}={value!r} must be an integer >= {least}")
    if value >= below:
        power = below.bit_length() - 1
        raise InputError(f"{name}={value!r} must be less than 2**{power}")
    return int(value)


def default_count(
    name: str, value: Any, default: int, *, least: int = 1
) -> int:
    """Returns ``value`` after :func:`check_count`, or the default of ``None``.

    Signatures of optimizers have ``None`` for integers that must be static,
    because ``optax.inject_hyperparams`` makes arrays of all other defaults.

    Example:
        >>> default_count("period", None, 8)
        8
    """
    if value is None:
        return default
    return check_count(name, value, least)


def is_number(value: Any) -> bool:
    """Returns whether ``value`` is a finite real number, and no array.

    Example:
        >>> is_number(0.1), is_number("0.1"), is_number(float("nan"))
        (True, False, False)
        >>> is_number(10**400)
        False
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # An integer that no float holds.
        return False


def check_number(name: str, value: Any) -> None:
    """Raises ``InputError`` unless ``value`` is a finite number.

    Example:
        >>> check_number("rate", "0.1")
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: rate='0.1' must be a finite number
    """
    if not is_number(value):
        raise InputError(f"{name}={value!r} must be a finite number")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises ``InputError`` unless ``value`` is among ``allowed``.

    Example:
        >>> check_choice("read", "never", ("before", "after"))
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: read='never' must be one of 'before', 'after'
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise InputError(
            f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}"
        )


def check_fields(
    config: Any, prefix: str = "", *, free: Iterable[str] = (), **least: int
) -> None:
    """Checks the fields of a dataclass that are of plain types.

    Those are ``Literal``, ``bool``, ``int``, ``float``, ``str``, and each of
    them or ``None``. Integers must be at least 1, or what ``least`` says of
    their name, and less than 2**31 (``seed``: 2**32), and become Python's;
    numbers must be finite. Fields in ``free`` are left out.

    Raises:
        InputError: naming the field, with ``prefix``, and what is allowed.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass
        ... class Config:
        ...     rate: float | None = None
        >>> check_fields(Config())
        >>> check_fields(Config(float("nan")), "config.")
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: config.rate=nan must be a finite number
    """
    for name, hint in get_type_hints(type(config)).items():
        value, shown = getattr(config, name, None), prefix + name
        kinds = [hint]
        if get_origin(hint) in (Union, types.UnionType):
            kinds = [k for k in get_args(hint) if k is not types.NoneType]
            if value is None and len(kinds) < len(get_args(hint)):
                continue
        kind = kinds[0] if len(kinds) == 1 and name not in free else None
        if get_origin(kind) is Literal:
            check_choice(shown, value, get_args(kind))
        elif kind is int:
            below = 2**32 if name == "seed" else 2**31
            count = check_count(shown, value, least.get(name, 1), below)
            object.__setattr__(config, name, count)
        elif kind is float:
            check_number(shown, value)
        elif kind in (bool, str) and not isinstance(value, kind):
            words = "True or False" if kind is bool else "text"
            raise InputError(f"{shown}={value!r} must be {words}")


def choose(
    name: str,
    value: str | T,
    table: Mapping[str, T],
    kind: type = object,
    fits: Callable[[T], bool] = lambda entry: True,
    needs: str = "",
) -> T:
    """Returns the entry of ``table`` named ``value``, or ``value`` itself.

    Only strings are looked up.

    Args:
        name: name of the argument, for error messages.
        value: a name in the table, or an object.
        table: objects by name, to which users may add their own.
        kind: required type of objects.
        fits: predicate of the entries and objects that are allowed.
        needs: what ``fits`` asks for, in words.

    Raises:
        InputError: if a name is not in the table, an object is of another type,
            or either does not fit.

    Example:
        >>> table = {"slow": 0.1, "none": 0.0}
        >>> choose("rate", "slow", table), choose("rate", 0.5, table)
        (0.1, 0.5)
        >>> choose("rate", "fast", table)
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: rate='fast' must be one of 'slow', 'none'; \
a new name has to be put into that table first
    """
    if not isinstance(value, str):
        found, known = value, isinstance(value, kind)
    elif known := value in table:
        found = table[value]
    if known and fits(found):
        return found
    names = [repr(key) for key, entry in table.items() if fits(entry)]
    own = "" if kind is object else f", or of type {kind.__name__}{needs}"
    new = "" if known else "; a new name has to be put into that table first"
    value = getattr(value, "name", value) if known else value
    raise InputError(
        f"{name}={value!r} must be one of {', '.join(names)}{own}{new}"
    )


def check_stream(
    layer: str, x: Any, d_model: int, ranks: tuple[int, ...] = (3,)
) -> jax.Array:
    """Returns ``x`` as an array if it is ``[B, T, D]`` of real numbers.

    Where ``ranks`` has 2, ``B`` may be missing.

    Example:
        >>> check_stream("LSTM", jnp.ones((3, 8)), 8)
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: LSTM got float32[3, 8]; needs real numbers, \
[batch >= 1, length >= 1, 8]
    """
    x = jnp.asarray(x)
    real = jnp.issubdtype(x.dtype, jnp.floating)
    if not real or x.ndim not in ranks or not x.size or x.shape[-1] != d_model:
        raise InputError(
            f"{layer} got {x.dtype}{list(x.shape)}; needs real numbers, "
            f"[batch >= 1, length >= 1, {d_model}]"
        )
    return x


def check_ids(name: str, ids: Any, vocab_size: int) -> None:
    """Raises ``InputError`` unless all ids are in the vocabulary.

    Example:
        >>> check_ids("tokens", np.array([1, 300]), 256)
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: tokens has the id 300; the model has 0 to 255
    """
    least, most = ids.min(), ids.max()
    if least < 0 or most >= vocab_size:
        raise InputError(
            f"{name} has the id {least if least < 0 else most}; the model has "
            f"0 to {vocab_size - 1}"
        )


def check_tokens(name: str, tokens: Any, vocab_size: int) -> jax.Array:
    """Returns tokens as int32 ``[B, T]``; traced ids are not compared.

    Raises:
        InputError: for another shape, other numbers, or ids that do not exist.
    """
    traced = isinstance(tokens, jax.core.Tracer)
    ids = tokens if traced else np.asarray(tokens)
    if ids.ndim != 2 or not ids.size:
        raise InputError(
            f"{name} has shape {ids.shape}; needs [batch, length >= 1]"
        )
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"{name} has dtype {ids.dtype}; needs integers")
    if not traced:
        check_ids(name, ids, vocab_size)
    return jnp.asarray(tokens, jnp.int32)


def leaf_name(path: tuple) -> str:
    """Returns the name of a leaf in error messages, from its path in a tree."""
    return jax.tree_util.keystr(path) or "the leaf"


def check_real(tree: Any) -> None:
    """Raises ``InputError`` unless all leaves are of real numbers.

    Example:
        >>> check_real({"ids": jnp.arange(2)})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        nl_jax.errors.InputError: ['ids'] has dtype int32, which no ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            reason = (
                "of which only the parts are supported; wrap the optimizer in "
                "optax.contrib.split_real_and_imaginary"
            )
        else:
            reason = "which no gradient moves; leave it out with optax.masked"
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"{leaf_name(path)} has dtype {leaf.dtype}, {reason}"
            )
