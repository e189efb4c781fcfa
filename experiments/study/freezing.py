"""What a trained model loses if one of its memories does not learn.

Bits per byte by position in long documents, read from their beginning: as the
model is, and with one part that keeps its learned start. A part that costs
nothing when it is frozen learns nothing that is used.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax import continual
from nl_jax.layers import MixerConfig, TitansConfig
from nl_jax.memory.associative import Memory
from nl_jax.models import LanguageModel

_PIECE = 1024
Frozen = tuple[LanguageModel, Any]
"""A model and its parameters."""


def frozen_parts(model: LanguageModel, variables: Any) -> dict[str, Frozen]:
    """Returns the model with each of its parts frozen alone, by their names.

    These are the memories of self-modifying and deep Titans, and levels that
    learn in context. Other models have none.
    """
    config, parts = model.config, {}
    mixer = config.choices
    names = ("memory", "generators") if type(mixer) is TitansConfig else ()
    if hasattr(mixer, "memory") and not names:
        names = ("memory",)
    for name in names:
        changed = dataclasses.replace(config, mixer=_frozen(mixer, name))
        parts[name] = LanguageModel(changed), variables
    if model.learns_in_context:
        for number in range(1, len(config.cms.periods) + 1):
            still = _at_rate_0(variables, f"level_{number}_log_rate")
            parts[f"level {number}"] = model, still
    return parts


def _frozen(mixer: Any, part: str) -> MixerConfig:
    """Returns a mixer one of whose properties is a memory that never learns."""
    kind = type(mixer)
    found = getattr(kind, part).fget
    own = type(
        f"Frozen{kind.__name__}",
        (kind,),
        {part: property(lambda self: _still(found(self)))},
    )
    fields = [field.name for field in dataclasses.fields(kind) if field.init]
    return own(**{name: getattr(mixer, name) for name in fields})


def _still(memory: Memory) -> Memory:
    """Returns a memory whose steps have length 0 and that forgets nothing."""

    def still(run: Callable) -> Callable:
        def frozen(state, k, v, q, gates, *more, **options):
            zero = jax.tree.map(jnp.zeros_like, gates)
            gates = gates._replace(eta=zero.eta, log_alpha=zero.log_alpha)
            return run(state, k, v, q, gates, *more, **options)

        return frozen

    return memory._replace(step=still(memory.step), scan=still(memory.scan))


def _at_rate_0(variables: Any, name: str) -> Any:
    def change(path, leaf):
        found = path[-1].key == name
        return jnp.full_like(leaf, -jnp.inf) if found else leaf

    return jax.tree_util.tree_map_with_path(change, variables)


def measure(
    model: LanguageModel,
    variables: Any,
    documents: np.ndarray,
    edges: Sequence[int],
) -> dict[str, list[list[float]]]:
    """Returns bits per token of each document between positions.

    Args:
        model: trained model.
        variables: its parameters.
        documents: ids ``[N, T]``.
        edges: positions, rising, of which the last is at most ``T``.

    Returns:
        Under ``""`` for the model as it is, and by the names of
        :func:`frozen_parts`: for each document the means between edges.
    """
    models = {"": (model, variables), **frozen_parts(model, variables)}
    return {
        name: by_position(*found, documents, edges)
        for name, found in models.items()
    }


def by_position(
    model: LanguageModel,
    variables: Any,
    documents: np.ndarray,
    edges: Sequence[int],
) -> list[list[float]]:
    """Returns what :func:`measure` does, of one model."""
    pieces = continual.stream(
        model, variables, documents[:, : edges[-1]], chunk=_PIECE
    )
    # The first token has no loss.
    nats = [np.full((len(documents), 1), np.nan)]
    nats += [piece.nats for piece in pieces]
    return means_between(np.concatenate(nats, 1) / np.log(2), edges)


def means_between(bits: np.ndarray, edges: Sequence[int]) -> list[list[float]]:
    """Returns the means of ``[N, T]`` between edges, leaving out NaN.

    Example:
        >>> means_between(np.array([[np.nan, 1, 2, 4]]), [0, 2, 4])
        [[1.0, 3.0]]
    """
    means = [
        np.nanmean(bits[:, start:end], axis=1)
        for start, end in itertools.pairwise(edges)
    ]
    return np.stack(means, 1).round(5).tolist()


def costs(
    measured: Mapping[str, Sequence[Sequence[float]]],
) -> dict[str, list[tuple[float, float]]]:
    """Returns what each part costs when it is frozen, by position.

    Args:
        measured: from :func:`measure`.

    Returns:
        Mean and standard error over documents of the difference.

    Example:
        >>> costs({"": [[1.0], [2.0]], "memory": [[1.5], [2.5]]})
        {'memory': [(0.5, 0.0)]}
    """
    whole = np.asarray(measured[""])
    found = {}
    for name, bits in measured.items():
        if name:
            more = np.asarray(bits) - whole
            error = more.std(0, ddof=1) / len(more) ** 0.5
            found[name] = list(
                zip(more.mean(0).tolist(), error.tolist(), strict=True)
            )
    return found
