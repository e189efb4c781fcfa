"""Models that are trained to answer prompts, and write their answers."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.recall.task import RUNS
from experiments.shared import flags
from experiments.shared.records import Records, Row
from experiments.shared.sweep import grid, sweep
from experiments.shared.training import asked_loss, clipped_adamw, make_step
from nl_jax.continual import stream
from nl_jax.models import LanguageModel
from nl_jax.training import resident_memory_bytes

_EVERY = 50
SETTINGS = {
    "width": flags.integer(64, "Of the models.", multiple_of=2),
    "batch": flags.integer(32, "Prompts per step."),
    "steps": flags.integer(600, "Steps."),
    "learning_rate": flags.number(1e-2, "Peak of warm-up and cosine.", 0.0),
    "documents": flags.string(
        "topics", "Other text: topics, modules, speeches or a folder."
    ),
}
"""Flags of all experiments whose models answer prompts."""


def flags_of(
    name: str, tasks: Iterable[str], settings: Mapping[str, flags.Flag]
) -> dict[str, flags.Flag]:
    """Returns the flags of an experiment with these tasks and settings."""
    tasks = list(tasks)
    return {
        "tasks": flags.words(tasks, "Tasks.", tasks),
        "runs": flags.words(["hope", "deltanet"], known=RUNS),
        "seeds": flags.seeds([0]),
        **settings,
        "jobs": flags.jobs(),
        "out": flags.folder(f"runs/{name}", "Folder of the results."),
    }


def sweep_tasks(
    name: str,
    values: flags.FlagValues,
    settings: Mapping[str, Any],
    run: Callable[..., Mapping[str, Any]],
) -> list[Row]:
    """Runs all seeds, tasks and models of ``flags_of``; returns the rows."""
    return sweep(
        Records(f"{values.out}/{name}", settings),
        grid(seed=values.seeds, task=values.tasks, run=values.runs),
        functools.partial(run, settings=settings),
        after="{task}, {run}, seed {seed}: {scores} % after {seconds} s",
        jobs=values.jobs,
    )


class WrittenAnswer(NamedTuple):
    """An answer to each prompt, and the memory that reading took."""

    ids: np.ndarray
    """The likeliest tokens, one after the other, ``[N, A]``."""
    resident: list[int]
    """Bytes that the process held after each chunk."""


def with_targets(
    prompts: np.ndarray, answers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens to train on, and targets: -1 before the answer.

    Example:
        >>> with_targets(np.array([[5, 6]]), np.array([[7, 8]]))
        (array([[5, 6, 7]]), array([[-1,  7,  8]]))
    """
    tokens = np.concatenate([prompts, answers[:, :-1]], 1)
    hidden = np.full((len(prompts), prompts.shape[1] - 1), -1)
    return tokens, np.concatenate([hidden, answers], 1)


def train_to_answer(
    model: LanguageModel,
    draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]],
    seed: int,
    settings: Mapping[str, Any],
    label: str,
) -> tuple[Any, list[list[float]]]:
    """Trains a model on the answers to prompts.

    Args:
        model: to be trained.
        draw: returns a batch of prompts and answers, ids ``[N, T]``.
        seed: of parameters and batches.
        settings: ``steps`` and ``learning_rate``.
        label: for lines of progress.

    Returns:
        Parameters, and losses ``[step, loss]``.
    """
    tx = clipped_adamw(settings["learning_rate"], settings["steps"])

    def loss(variables, tokens, targets):
        return asked_loss(model.apply(variables, tokens)[0], targets)

    step = make_step(loss, tx)
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(seed), tokens)
    rng, state, curve = np.random.default_rng(seed), tx.init(variables), []
    for number in range(1, settings["steps"] + 1):
        batch = with_targets(*draw(rng))
        variables, state, value = step(variables, state, *batch)
        if number % _EVERY == 0 or number == settings["steps"]:
            curve.append([number, round(float(value), 4)])
            print(f"{label} step {number} loss {value:.4f}", flush=True)
    return variables, curve


def write_answer(
    model: LanguageModel,
    variables: Any,
    prompts: Iterable[np.ndarray],
    count: int,
    chunk: int = 256,
) -> WrittenAnswer:
    """Reads prompts as a stream, at constant memory, and writes answers.

    Args:
        model: that writes.
        variables: its parameters.
        prompts: an array ``[N, T]``, or its parts in turn.
        count: tokens to write.
        chunk: tokens to be read at once.
    """
    resident = []
    for each in stream(model, variables, prompts, chunk=chunk):
        last = each
        resident.append(resident_memory_bytes())
    token = last.logits.argmax(-1)
    ids = _write(model, variables, token, last.state, count)
    return WrittenAnswer(np.asarray(ids), resident)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _write(model, variables, token, state, count):
    def step(carry, _):
        token, state = carry
        logits, state = model.apply(variables, token[:, None], state)
        return (logits[:, 0].argmax(-1), state), token

    _, tokens = jax.lax.scan(step, (token, state), None, count)
    return tokens.T
