"""Multi-query associative recall: models, sequences and slices."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.study.variants import ADAPTIVE, PLAIN, as_large_as_hope
from nl_jax.errors import InputError
from nl_jax.models import build, names

_CACHE = {"segment": 32, "segments": 16, "restart": True}
RUNS = {
    **{name: (name, {}) for name in names()},
    "hope-no-momentum": ("hope", {"titans": {"momentum": False}}),
    "hope-gd": ("hope", {"titans": {"rule": "gd"}}),
    "hope-l2": ("hope", {"titans": {"objective": "l2"}}),
    "hope-memory-gain-1": ("hope", {"titans": {"memory_gain": 1.0}}),
    "hope-linear": ("hope", {"titans": {"architecture": "linear"}}),
    "hope-shared": (
        "hope",
        {
            "titans": {
                "architecture": "linear",
                "value_norm": "input",
                "momentum": False,
            }
        },
    ),
    "hope-adaptive-k-v": ("hope", {"titans": ADAPTIVE}),
    "hope-cached": ("hope", {"cache": _CACHE}),
    "hope-plain": ("hope", {"titans": PLAIN}),
    "hope-plain-adaptive-k-v": ("hope", {"titans": PLAIN | ADAPTIVE}),
    "hope-plain-cached": ("hope", {"titans": PLAIN, "cache": _CACHE}),
    **{
        f"{name}-cached": (name, {"cache": _CACHE})
        for name in ("deltanet", "oja", "titans", "mamba")
    },
    "hope-mlp": ("hope", {"titans": {"architecture": "mlp", "expansion": 2}}),
    **{f"{name}-sized": (name, {}) for name in names() if name != "hope"},
}
"""Maps names of runs to a name in the registry and overrides. ``hope-shared``
runs all memories as one recurrence, ``-plain`` has no stream past the memories,
``-cached`` reads memories of earlier segments, and ``-sized`` has levels so
wide that the model has as many parameters as ``hope``."""


class Slice(NamedTuple):
    """Difficulty of sequences: number of tokens and of pairs."""

    length: int
    pairs: int

    def __str__(self):
        return f"{self.length}:{self.pairs}"


def parse_slices(
    words: Sequence[str], *, vocab: int, tokens: int
) -> list[Slice]:
    """Returns the slices of a list flag.

    Args:
        words: each a length and a number of pairs, for example ``64:4``.
        vocab: size of the vocabulary that pairs are drawn from.
        tokens: per step, enough for at least one sequence.

    Raises:
        InputError: for other words, for repeated slices, and for slices that
            do not fit.

    Example:
        >>> parse_slices(["64:4"], vocab=512, tokens=64)
        [Slice(length=64, pairs=4)]
    """
    flag = f"--slices={','.join(words)}"
    parts = [word.split(":") for word in words]
    if not parts or not all(
        len(part) == 2 and all(p.isdecimal() and int(p) for p in part)
        for part in parts
    ):
        raise InputError(f"{flag}: must be LENGTH:PAIRS, as in 64:4,128:8")
    slices = [Slice(int(length), int(pairs)) for length, pairs in parts]
    if len(set(slices)) < len(slices):
        raise InputError(f"{flag}: each slice once")
    for each in slices:
        _check_fit(each, vocab)
        if each.length > tokens:
            raise InputError(
                f"{flag}: tokens={tokens} hold no sequence of {each.length}"
            )
    return slices


def make_model(run, vocab, **fields):
    """Returns the model of a run: two blocks, of width 64 by default."""
    name, overrides = RUNS[run]
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 2}
    levels = {"cms": {"step_periods": (1,), "hidden": 2.0}}
    fields = shape | levels | overrides | fields | {"vocab_size": vocab}
    if run.endswith("-sized"):
        return build(as_large_as_hope(name, fields))
    return build(name, **fields)


def make_batch(rng, *, length, pairs, vocab, batch, power=0.01):
    """Draws sequences and their targets; targets are -1 between queries.

    Keys and values are drawn without replacement. The pairs come first, and
    each key is queried once, after a gap with probability ``~ gap^(power -
    1)``.

    Raises:
        InputError: if the pairs do not fit the length or the vocabulary.
    """
    _check_fit(Slice(length, pairs), vocab)
    slots = (length - 2 * pairs) // 2
    half = vocab // 2
    order = rng.random((batch, half)).argsort(-1)
    keys = 1 + rng.random((batch, half - 1)).argsort(-1)[:, :pairs]
    values = half + order[:, :pairs]
    odds = np.arange(1.0, slots + 1) ** (power - 1)
    # The largest scores with Gumbel noise are a draw without replacement.
    score = np.log(odds) + rng.gumbel(size=(batch, slots))
    at = 2 * pairs + 2 * (-score).argsort(-1)[:, :pairs]
    tokens = rng.integers(0, vocab, (batch, length))
    tokens[:, 0 : 2 * pairs : 2] = keys
    tokens[:, 1 : 2 * pairs : 2] = values
    targets = np.full((batch, length), -1)
    np.put_along_axis(tokens, at, keys, 1)
    np.put_along_axis(targets, at, values, 1)
    return tokens.astype(np.int32), targets.astype(np.int32)


def _check_fit(slice_, vocab):
    length, pairs = slice_
    if (length - 2 * pairs) // 2 < pairs:
        raise InputError(
            f"pairs={pairs} do not fit length={length}: at most {length // 4}"
        )
    if pairs > vocab // 2 - 1:
        raise InputError(
            f"pairs={pairs} need a vocab of at least {2 * pairs + 2}"
        )
