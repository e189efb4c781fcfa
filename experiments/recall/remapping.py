r"""Is self-modification worth something where tokens change their meaning?

A small Hope is trained on documents in two phases, between which the meaning of
tokens changes (``changing_meaning.py``):

======== =======================================================================
cipher   text of one source in a new cipher
keys     the same keys with new values
aliases  values are stored under names of names, and both are new
products the product of permutations so far; nothing changes
======== =======================================================================

Then it reads documents of more phases, as it is, and with the memory or the
generators frozen at their learned start. If freezing the generators costs
nothing, they learn nothing in context that is used. ``hope`` has generators of
the gates; ``adaptive``, of the same size and trained alike, of k and v too.

Command (half a minute of a free core a run)::

    python -m experiments.remapping

Results: ``docs/hope_study.md``. Runs are stored in ``--out`` as JSON files,
and finished ones are not repeated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.recall.changing_meaning import PHASE, TASKS, VOCAB
from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grid, grouped, sweep
from experiments.shared.training import asked_loss, clipped_adamw, make_step
from experiments.study.freezing import frozen_parts
from experiments.study.variants import ADAPTIVE, as_large_as_hope
from nl_jax.models import LanguageModel, build
from nl_jax.nested.level_table import count_parameters

MODELS = {
    "hope": {},
    "hope-q": {"adaptive_q": True},
    "adaptive": ADAPTIVE,
}
"""Fields of self-modifying Titans, by the names of models."""
_PARTS = tuple(f"{16 * i} to {16 * (i + 1)}" for i in range(PHASE // 16))
_TEST_SEED = (0, 1)  # Differs from every integer seed.
_SETTINGS = {
    "steps": flags.integer(400, "Steps."),
    "batch": flags.integer(16, "Documents per step."),
    "width": flags.integer(64, "Of the model."),
    "layers": flags.integer(1, "Blocks."),
    "heads": flags.integer(2, "Of the mixer."),
    "eta_max": flags.number(2.0, "Largest step of a memory.", 1e-3, 2.0),
    "learning_rate": flags.number(1e-2, "Peak of warm-up and cosine.", 1e-9),
    "phases": flags.integer(4, "Of the documents that are read.", 2),
    "tests": flags.integer(128, "Documents that are read."),
}
FLAGS = {
    "tasks": flags.words(list(TASKS), "Tasks.", TASKS),
    "models": flags.words(["hope", "adaptive"], "Models.", MODELS),
    "seeds": flags.seeds([0, 1, 2]),
    **_SETTINGS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/remapping", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    flags.check_multiple(values, "width", "heads")
    settings = flags.pick(values, _SETTINGS)
    rows = sweep(
        Records(f"{values.out}/remapping", settings),
        grid(seed=values.seeds, task=values.tasks, model=values.models),
        functools.partial(run_one, settings=settings),
        jobs=values.jobs,
        after="{task}, {model}, seed {seed}: {bits:.3f} bits after {seconds} s",
    )
    summarize(rows, settings, values.out)


@functools.cache
def make_model(name, width, layers, heads, eta_max):
    """Returns a model of the size of ``hope`` with an MLP of its width.

    Smaller, ``adaptive`` would have no parameters left for an MLP.
    """
    titans = {"eta_max": eta_max, **MODELS[name]}
    fields = {
        "vocab_size": VOCAB,
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "cms": {"step_periods": (1,), "hidden": 1.0},
    }
    return build(as_large_as_hope("hope", fields, titans=titans))


def run_one(task, model, seed, settings):
    """Trains once; returns what is measured on documents of more phases."""
    shape = [settings[k] for k in ("width", "layers", "heads", "eta_max")]
    model = make_model(model, *shape)
    variables = train(model, task, seed, settings)
    rng = np.random.default_rng(_TEST_SEED)
    tokens, targets = TASKS[task](rng, settings["tests"], settings["phases"])
    parts = {"": (model, variables), **frozen_parts(model, variables)}
    found = {
        part: by_part(*np.asarray(_read(*own, tokens, targets)), targets)
        for part, own in parts.items()
    }
    return {
        "parameters": count_parameters(variables),
        "bits": float(np.nanmean(_known(found[""]["bits"]))),
        "by_part": found,
    }


def train(model, task, seed, settings):
    """Returns parameters trained on documents of two phases."""
    rng = np.random.default_rng(seed)
    step, tx = _step(model, settings["learning_rate"], settings["steps"])
    variables = _init(model, seed)
    state = tx.init(variables)
    for _ in range(settings["steps"]):
        batch = TASKS[task](rng, settings["batch"], 2)
        variables, state, _ = step(variables, state, *batch)
    return variables


def _init(model, seed):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), tokens)


@functools.cache  # All tasks and seeds share a program.
def _step(model: LanguageModel, rate: float, steps: int):
    tx = clipped_adamw(rate, steps)

    def loss(variables, tokens, targets):
        return asked_loss(model.apply(variables, tokens)[0], targets)

    return make_step(loss, tx), tx


@functools.partial(jax.jit, static_argnums=0)
def _read(model, variables, tokens, targets):
    logits, _ = model.apply(variables, tokens)
    nats = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(targets, 0)
    )
    return nats / jnp.log(2), logits.argmax(-1) == targets


def by_part(bits, right, targets):
    """Returns means of the first phase's parts, then of those of all others.

    Args:
        bits: losses, ``[N, T]``.
        right: whether predictions are right, ``[N, T]``.
        targets: ``[N, T]``, -1 where nothing is asked.

    Returns:
        ``bits`` and ``right``, of the length of twice a phase's parts; ``None``
        where nothing is asked.
    """
    asked = targets >= 0
    shape = (len(targets), -1, len(_PARTS), PHASE // len(_PARTS))

    def means(values):
        sums = (values * asked).reshape(shape).sum((0, 3))
        count = asked.reshape(shape).sum((0, 3))
        sums, count = (
            np.concatenate([x[0], x[1:].sum(0)]) for x in (sums, count)
        )
        return np.where(count, sums / np.maximum(count, 1), None).tolist()

    return {"bits": means(bits), "right": means(right)}


def summarize(rows, settings, out):
    """Writes losses by position after a change, and what freezing adds."""
    heads = [f"first phase, {part}" for part in _PARTS]
    heads += [f"later, {part}" for part in _PARTS]
    lines, record = [], {"settings": settings, "rows": rows}
    for unit, name, factor in (("bits", "Bits", 1), ("right", "Right, %", 100)):
        cells = []
        for (task, model), own in grouped(rows, "task", "model").items():
            for part in own[0]["by_part"]:
                found = factor * np.array(
                    [
                        _means(row, part, unit)
                        - (_means(row, "", unit) if part else 0)
                        for row in own
                    ]
                )
                shown = [_shown(column, part) for column in found.T]
                cells.append([task, model, part or "none", *shown])
        head = ["task", "model", "frozen", *heads]
        lines += [f"{name}:", "", *table.markdown(head, cells), ""]
    lines.append(
        "Mean ± standard error over seeds; with a frozen part, what is more."
    )
    write(out, "remapping", lines, record, _draw(rows))


def _means(row, part, unit):
    return _known(row["by_part"][part][unit])


def _known(means):
    """Returns what :func:`by_part` did, with NaN for ``None``."""
    return np.array(means, float)


def _shown(values, part):
    if np.isnan(values).any():
        return ""
    return table.mean_error(values, "+.2f" if part else ".2f")


def _draw(rows):
    curves = {
        f"{task}, {model}, {part or 'none'}": (
            range(2 * len(_PARTS)),
            np.mean([_means(row, part, "bits") for row in own], 0),
        )
        for (task, model), own in grouped(rows, "task", "model").items()
        for part in own[0]["by_part"]
    }
    return plot.curves(
        plot.Panel(
            curves,
            "thirds of the first phase, and of later ones",
            "bits",
            style="o-",
        ),
        legend=None,
    )


REPORT = Report(
    "Tokens whose meaning changes",
    ("task", "model"),
    {
        "bits": Column("bits", ".3f"),
        "parameters": Column("parameters", ",.0f"),
    },
    [Plot("bits", "bits per question")],
)
