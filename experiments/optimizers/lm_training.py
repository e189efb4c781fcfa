"""Trains a small language model with any optimizer, and watches its loss."""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.study.train_on_text import shape_of
from experiments.study.variants import as_large_as_hope
from nl_jax import training
from nl_jax.models import LanguageModel, build
from nl_jax.nested.level_table import count_parameters
from nl_jax.optimizers import NAMED


class Subject(NamedTuple):
    """An optimizer, and where the search for its setting starts."""

    name: str
    """In ``NAMED``."""
    rate: float
    beta: str
    """Its field or option that is the decay of its momentum."""
    middle: float
    """First value of ``beta``."""
    options: Mapping[str, Any] = MappingProxyType({})


class Compiled(NamedTuple):
    """Compiled functions of a model and its optimizer."""

    init: Any
    """From a key to parameters."""
    start: Any
    """From parameters to the optimizer's state."""
    step: Any
    """From parameters, state, ids ``[B, T + 1]`` and a rate to both."""
    evaluate: Any
    """From parameters and ids ``[N, T + 1]`` to bits per token."""


def train_one(
    subject: Subject,
    rate: float,
    beta: float,
    seed: int,
    *,
    texts: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains once; returns held-out losses and the steps to the target.

    Args:
        subject: the optimizer.
        rate: its learning rate after the warm-up.
        beta: decay of its momentum.
        seed: of parameters and batches.
        texts: paths of the training and the held-out part of one text, or of
            several, which take turns.
        settings: of the command.
    """
    length, total = settings["length"], settings["steps"]
    own = compiled(subject, beta, settings)
    train, held_out = (
        [read_ids(path) for path in paths] for paths in zip(*texts, strict=True)
    )
    asked = [windows(ids, length, settings["held_out"]) for ids in held_out]
    variables = own.init(jax.random.key(seed))
    state, rng = own.start(variables), np.random.default_rng(seed)
    phases = settings["phases"] if len(texts) > 1 else 1
    at: list[int] = []
    curves: list[list[float]] = [[] for _ in asked]
    for number in range(1, total + 1):
        ids = train[(number - 1) * phases // total % len(train)]
        starts = rng.integers(len(ids) - length, size=settings["batch"])
        rows = ids[starts[:, None] + np.arange(length + 1)]
        variables, state = own.step(variables, state, rows, rate)
        if number % settings["every"] and number < total:
            continue
        at.append(number)
        for curve, rows in zip(curves, asked, strict=True):
            curve.append(round(float(own.evaluate(variables, rows)), 4))
        if not np.isfinite(curves).all():
            names = ("score", "steps_to_target", "bits_per_byte")
            return dict.fromkeys(names)
    ends = [curve[-1] for curve in curves]
    bits, reached = float(np.mean(ends)), None
    score = bits
    if len(texts) == 1:
        reached = steps_to(settings["target"], at, curves[0])
        score = (
            total * bits / settings["target"] if reached is None else reached
        )
    return {
        "score": score,
        "steps_to_target": reached,
        "bits_per_byte": round(bits, 4),
        "ends": ends,
        "at": at,
        "curve": curves[0],
        "curve_then": curves[-1] if len(texts) > 1 else None,
        "parameters": count_parameters(variables),
    }


@functools.lru_cache
def read_ids(path: str) -> np.ndarray:
    """Returns the bytes of all documents of a JSONL file."""
    lines = pathlib.Path(path).read_text().splitlines()
    text = "\n".join(json.loads(line)["text"] for line in lines)
    return np.frombuffer(text.encode(), np.uint8)


def windows(ids: np.ndarray, length: int, most: int) -> np.ndarray:
    """Returns the first windows ``[N, length + 1]`` with ``most`` targets.

    Example:
        >>> windows(np.arange(9), 2, 5).tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    count = max(min(most, len(ids) - 1) // length, 1)
    starts = length * np.arange(count)
    return ids[starts[:, None] + np.arange(length + 1)]


def steps_to(
    target: float, at: Sequence[int], bits: Sequence[float]
) -> float | None:
    """Returns when a loss reaches a target, on lines between evaluations.

    Example:
        >>> steps_to(2.5, [10, 20, 30], [4.0, 3.0, 2.0])
        25.0
        >>> steps_to(1.0, [10, 20, 30], [4.0, 3.0, 2.0]) is None
        True
    """
    for n, found in enumerate(bits):
        if found <= target:
            if n == 0:
                return float(at[0])
            share = (bits[n - 1] - target) / (bits[n - 1] - found)
            return round(at[n - 1] + share * (at[n] - at[n - 1]), 1)
    return None


def make_model_and_optimizer(
    subject: Subject, beta: float, settings: Mapping[str, Any]
) -> tuple[LanguageModel, optax.GradientTransformation]:
    """Returns the model, and its optimizer with a rate of 1 at the peak."""
    model = build(as_large_as_hope(settings["model"], shape_of(settings)))
    own: dict[str, Any] = {subject.beta: beta}
    if subject.beta in NAMED[subject.name].options:
        fields = {**own, "options": subject.options}
    else:
        fields = {"options": {**subject.options, **own}}
    config = training.OptimizerConfig(
        name=subject.name,
        learning_rate=1.0,
        schedule=settings["schedule"],
        warmup_steps=max(settings["steps"] // 10, 1),
        weight_decay=0.0,
        **fields,
    )
    periods = model.parameter_periods(model.parameter_shapes())
    axes = model.logical_axes()
    tx = training.make_optimizer(config, settings["steps"], axes, periods)
    return model, tx


_COMPILED: dict[str, Compiled] = {}


def compiled(
    subject: Subject, beta: float, settings: Mapping[str, Any]
) -> Compiled:
    """Returns compiled functions, the same ones for all rates."""
    key = repr((subject, beta, settings))
    if key in _COMPILED:
        return _COMPILED[key]
    model, tx = make_model_and_optimizer(subject, beta, settings)

    def losses(variables, rows):
        rows = rows.astype(jnp.int32)
        logits, _ = model.apply(variables, rows[..., :-1])
        return training.token_losses(logits, rows[..., 1:])

    def step(variables, state, rows, rate):
        grads = jax.grad(lambda v: losses(v, rows).mean())(variables)
        updates, state = tx.update(grads, state, variables)
        # Without weight decay, updates are proportional to the rate.
        updates = jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates)
        return optax.apply_updates(variables, updates), state

    def evaluate(variables, rows):
        def one(row):
            return losses(variables, row[None]).mean()

        return jax.lax.map(one, rows, batch_size=16).mean() / jnp.log(2)

    def init(key):
        return model.init(key, jnp.zeros((1, 1), jnp.int32))

    made = Compiled(*map(jax.jit, (init, tx.init, step, evaluate)))
    return _COMPILED.setdefault(key, made)
