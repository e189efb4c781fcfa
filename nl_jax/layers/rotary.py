"""Rotary position embedding, half-split form, and its scaling."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.array_typing import Channels
from nl_jax.checks import check_fields, is_number
from nl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Divisors of the rotary frequencies, by which a model reads further.

    ``"linear"`` divides each by ``factor``, ``"table"`` by its entry of
    ``table`` as well. ``"llama3"`` (Llama 3.1) divides by ``factor`` those that
    turn less than ``low_freq_factor`` times in ``original_context`` tokens,
    keeps those that turn more than ``high_freq_factor`` times, and interpolates
    between the two.

    Raises:
        InputError: for an invalid field, naming it and the allowed values.
    """

    kind: Literal["none", "linear", "llama3", "table"] = "none"
    """How frequencies are divided."""
    factor: float = 1.0
    """Divisor of low frequencies, or of all."""
    low_freq_factor: float = 1.0
    """Turns in the original context up to which ``factor`` is whole."""
    high_freq_factor: float = 4.0
    """Turns from which frequencies stay."""
    original_context: int = 8192
    """Tokens of context before the scaling."""
    table: tuple[float, ...] = ()
    """Divisors, one for each pair of channels of a head."""

    def __post_init__(self):
        check_fields(self, "rope_scaling.")
        listed = isinstance(self.table, (tuple, list))
        if not listed or not all(map(is_number, self.table)):
            raise InputError(
                f"rope_scaling.table={self.table!r} must be a tuple of numbers"
            )
        object.__setattr__(self, "table", tuple(self.table))
        numbers = {"factor": self.factor} | {
            f"table[{i}]": value for i, value in enumerate(self.table)
        }
        for name, value in numbers.items():
            if not 0 < value < math.inf:
                raise InputError(
                    f"rope_scaling.{name}={value} must be a positive number"
                )
        if not 0 < self.low_freq_factor < self.high_freq_factor < math.inf:
            raise InputError(
                f"rope_scaling.low_freq_factor={self.low_freq_factor} must be "
                f"above 0 and below high_freq_factor={self.high_freq_factor}"
            )
        if bool(self.table) != (self.kind == "table"):
            raise InputError(
                f"rope_scaling.table={self.table} goes with kind='table', "
                f"which needs one, not with {self.kind!r}"
            )

    def divisors(self, base: float, half: int) -> np.ndarray:
        """Returns the divisor of each of ``half`` frequencies, float64.

        Raises:
            InputError: if ``table`` has another length.

        Example:
            >>> RopeScaling("linear", factor=4.0).divisors(10_000.0, 2).tolist()
            [4.0, 4.0]
        """
        if self.kind == "none":
            return np.ones(half)
        if self.kind == "linear":
            return np.full(half, self.factor)
        if self.kind == "table":
            if len(self.table) != half:
                raise InputError(
                    f"rope_scaling.table has {len(self.table)} entries; heads "
                    f"of {2 * half} channels need {half}"
                )
            return self.factor * np.asarray(self.table)
        frequencies = base ** (-np.arange(half) / half)
        turns = self.original_context * frequencies / (2 * np.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return 1 / (kept + (1 - kept) / self.factor)


def rotate(
    x: Channels,
    at: jax.Array,
    base: float = 10_000.0,
    scaling: RopeScaling = RopeScaling(),
) -> Channels:
    """Rotates channel pairs ``(i, i + d / 2)`` by ``at * base^(-2 i / d)``.

    Args:
        x: ``[..., T, d]``, ``d`` even.
        at: positions ``[T]``, or ``[..., T]``, whose leading axes broadcast.
        base: base of the frequencies.
        scaling: divisors of the frequencies.

    Example:
        >>> import jax.numpy as jnp
        >>> rotate(jnp.array([[1.0, 0.0]]), jnp.array([0])).tolist()
        [[1.0, 0.0]]
    """
    half = x.shape[-1] // 2
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequencies = base ** (-jnp.arange(half, dtype=wide) / half)
    frequencies /= scaling.divisors(base, half).astype(wide)
    angle = at[..., None] * frequencies
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(wide), 2, -1)
    rotated = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return rotated.astype(x.dtype)
