r"""Speed of language models: tokens per second, cost by length, decoding.

All models have as many parameters as the transformer; the width of their MLPs
is adjusted for that. The transformer's attention sees the whole length.

- ``throughput``: tokens per second of forward and backward of the next-token
  loss, and their ratio to the transformer's in the same rounds.
- ``scaling``: the same at several lengths; the cost of a token at the longest
  length relative to the shortest; and the length from which ``--overtaker`` is
  faster than the transformer. For this, both are measured at growing lengths
  until the transformer is slower.
- ``decoding``: seconds per token and bytes of state after 1 token and after
  ``--stream`` tokens.

Hope is timed with each kind of memory and each size of ``--chunks``: 16 is the
default of ``TitansConfig``, 64 that of the presets from ``125m`` on.

Command (hours on two cores, most of them at long lengths; ``--parts`` chooses
parts; a repeated command continues where it was stopped)::

    python -m experiments.benchmark_models --out=runs/benchmark_models

Measured on one of two cores while the other one was busy. At T 2,048 the
transformer processes 933 tokens per second. Ratios to it, medians of five
rounds, are ``deltanet`` 2.34, ``hope-shared/16`` 1.96, ``hope-linear/16`` 1.46,
``hope/16`` 1.43, ``titans`` 1.10, ``hope-mlp/64`` 0.35 and ``hope-mlp/16``
0.31. On a quieter machine it was 1,682 tokens per second, and the ratios 1.94,
1.61, 1.13, 1.08, and 0.31 and 0.26 for MLPs. A token at T 16,384 costs 0.73 to
1.01 times as much as at 1,024 in every recurrent model, three rounds
(``atlas``, which orthogonalises at every token, with one block and one round).
``hope/16`` becomes faster than the transformer at 1,346 tokens (1,622 in the
other run). Decoding a token after 100,000 tokens takes 0.91 to 1.08 times as
long as the first in every model, with the same bytes of state. All numbers:
docs/speed.md.
"""

import functools

from experiments.shared import flags, plot
from experiments.shared.records import Records, write
from experiments.speed import timed_models as timed
from experiments.speed import timed_parts
from nl_jax.errors import InputError

PARTS = ("throughput", "scaling", "decoding")
_SIZES = {
    "width": flags.integer(256, "Width of the models."),
    "layers": flags.integer(2, "Blocks."),
    "heads": flags.integer(4, "Heads."),
    "vocab": flags.integer(256, "Token ids."),
}
FLAGS = {
    **_SIZES,
    "batch": flags.integer(1, "Rows of a training step."),
    "length": flags.integer(2048, "Tokens of a row for the throughput."),
    "rounds": flags.integer(5, "Rounds of each measurement."),
    "stream": flags.integer(100_000, "Tokens before the last decoding step."),
    "piece": flags.integer(1000, "Tokens at a time that are streamed."),
    "calls": flags.integer(50, "Tokens decoded per round."),
    "parts": flags.words(list(PARTS), "What to measure.", PARTS),
    "models": flags.words([], "Which models; all if empty."),
    "chunks": flags.integers([16, 64], "Tokens per chunk of Hope.", 1),
    "lengths": flags.integers(
        [1024, 2048, 4096, 8192, 16384], "Lengths for the cost per token.", 1
    ),
    "crossing_lengths": flags.integers(
        [256, 512, 1024, 2048, 4096, 8192, 16384],
        "Where transformer and overtaker are compared, until it leads.",
        1,
    ),
    "overtaker": flags.string("hope/16", "Compared with transformer."),
    "out": flags.folder("runs/benchmark_models", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs the chosen parts, each with its own table, record and plot."""
    known = timed.variants(tuple(values.chunks))
    for flag, names in (
        ("models", values.models),
        ("overtaker", [values.overtaker]),
    ):
        if unknown := [name for name in names if name not in known]:
            raise InputError(
                f"--{flag}={','.join(unknown)}: allowed are {', '.join(known)}"
            )
    if values.stream % values.piece:
        raise InputError(
            f"--piece={values.piece} must divide --stream={values.stream}"
        )
    lengths, crossing = sorted(values.lengths), sorted(values.crossing_lengths)
    wanted = {name: known[name] for name in values.models or known}
    sizes = timed.ModelSizes(
        values.width, values.layers, values.heads, values.vocab
    )
    build = functools.partial(timed.equal_models, sizes=sizes)
    if "throughput" in values.parts:
        models = build(
            {"transformer": known["transformer"]} | wanted, window=values.length
        )
        records = _records(
            values, "throughput", ("batch", "length"), list(models)
        )
        found = timed_parts.throughput(values, records, models)
        _write(values, "throughput", *found)
    if "scaling" in values.parts:
        pair = ["transformer", values.overtaker]
        models = build(
            wanted | {name: known[name] for name in pair},
            window=max(lengths + crossing),
        )
        records = _records(
            values, "scaling", ("batch", "rounds"), [lengths, crossing]
        )
        found = timed_parts.scaling(
            values, records, models, list(wanted), lengths, crossing
        )
        _write(values, "scaling", *found)
    if "decoding" in values.parts:
        settings = ("stream", "piece", "calls", "length", "rounds")
        records = _records(values, "decoding", settings, [])
        models = build(wanted, window=values.length)
        found = timed_parts.decoding(values, records, models)
        _write(values, "decoding", *found)


def _records(values, part, flags_used, more):
    """Returns finished runs of these sizes; for throughput each is a round."""
    settings = flags.pick(values, (*_SIZES, *flags_used))
    path = f"{values.out}/benchmark_models"
    return Records(path, settings | {"part": part, "more": more})


def _write(values, part, lines, record, drawn):
    """Writes the files of a part; ``drawn`` is numbers or curves by model."""
    if part == "scaling":
        panel = plot.Panel(
            drawn,
            "tokens",
            "microseconds per token",
            scales=("log", "log"),
            style="o-",
        )
        figure = plot.curves(panel, size=(8, 7))
    elif part == "throughput":
        figure = plot.bars(drawn, "tokens per second")
    else:
        figure = plot.bars(drawn, "milliseconds per decoded token")
    settings = flags.pick(values, (*_SIZES, "batch", "rounds"))
    record = {"settings": settings, "found": record}
    write(values.out, part, lines, record, figure)
