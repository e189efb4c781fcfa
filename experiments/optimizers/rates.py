"""Optimizers by name, the rates tried for each, and the best of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from experiments.shared.records import Row
from experiments.shared.sweep import grouped
from nl_jax.optimizers import NAMED


def named(
    name: str, **options: Any
) -> Callable[..., optax.GradientTransformation]:
    """Returns an optimizer in ``NAMED`` as a function of rate and decay."""

    def make(rate, decay=0.0):
        return optax.chain(
            NAMED[name].build(**options),
            optax.add_decayed_weights(decay),
            optax.scale_by_learning_rate(rate),
        )

    return make


def tried_rates(rows: Sequence[Row]) -> dict[str, dict[float, list[Row]]]:
    """Returns the runs of every optimizer at every rate, rates rising."""
    return {
        name: dict(sorted(grouped(group, "rate").items()))
        for name, group in grouped(rows, "optimizer").items()
    }


def best_rates(
    means: Mapping[str, Mapping[float, Any]], loss: Callable[[Any], float]
) -> dict[str, float]:
    """Returns the rate with the lowest loss of each optimizer.

    Among equals it is the first; optimizers that always diverged are left out.

    Args:
        means: of every optimizer at every rate; ``None`` if a run diverged.
        loss: of a mean, by which rates are compared.

    Example:
        >>> best_rates({"m3": {0.1: 2.0, 1.0: None}, "lion": {1.0: None}}, abs)
        {'m3': 0.1}
    """
    best = {}
    for name, rates in means.items():
        finite = [rate for rate, mean in rates.items() if mean is not None]
        if finite:
            best[name] = min(finite, key=lambda rate: loss(rates[rate]))
    return best


def list_tried(
    means: Mapping[str, Mapping[float, Any]],
    best: Mapping[str, float],
    what: str,
    loss: Callable[[Any], float],
) -> list[str]:
    """Returns a Markdown item for each optimizer with the loss at each rate."""
    lines = []
    for name, rates in means.items():
        each = ", ".join(
            f"{rate:g}: {'diverged' if mean is None else f'{loss(mean):.3f}'}"
            for rate, mean in rates.items()
        )
        edge = best.get(name) in (min(rates), max(rates)) and len(rates) > 1
        note = "; the best rate is at the edge" if edge else ""
        lines.append(f"- {name}, {what} by rate: {each}{note}")
    return lines
