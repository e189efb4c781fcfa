"""Tables of the benchmark of kernels, and the targets of its ratios.

A row is a dict with ``op``, ``shape``, ``program``, ``implementation`` and
``baseline``; with ``error`` if it ran; with ``seconds``, ``spread``, ``tflops``
and ``floor`` if it was timed, and otherwise with a ``reason``.
"""

import datetime
from typing import Any, NamedTuple

from experiments.kernels import peers
from experiments.kernels.case import BOTH
from experiments.shared import table
from nl_jax import training


class Target(NamedTuple):
    """Target of a ratio of times in one run, where the kernel runs."""

    op: str
    implementation: str
    programs: tuple[str, ...]
    against: str
    must: float
    aim: float


TARGETS = (
    Target("delta_memory", "chunked", BOTH, "fla", 0.15, 0.3),
    Target("delta_memory", "pallas_triton", BOTH[:1], "fla", 0.8, 1.2),
    Target("delta_memory", "pallas_triton", BOTH[1:], "fla", 0.7, 1.0),
    Target("delta_memory", "pallas_mosaic_gpu", BOTH[:1], "fla", 1.2, 2.0),
    Target("delta_memory", "pallas_mosaic_gpu", BOTH[1:], "fla", 1.0, 1.7),
    Target(
        "delta_memory",
        "pallas_mosaic_gpu",
        BOTH,
        "jax-linear-attention",
        0.6,
        0.9,
    ),
    Target("mlp_memory", "pallas_triton", BOTH, "chunked", 2.0, 4.0),
    Target("newton_schulz", "pallas_triton", BOTH[:1], "batched", 1.5, 3.0),
)


def lines(rows, limits, bare, values) -> list[str]:
    """Returns the Markdown: machine, all rows, targets, rows without a time.

    Args:
        rows: after :func:`compare`.
        limits: from ``timing.ceilings``, or ``None``.
        bare: whether there is no accelerator.
        values: the script's flags.
    """
    found = [*_head(limits, bare, values), "", *_table(rows), ""]
    return [*found, *targets(rows, values.ops), "", *_missing(rows)]


def compare(row, rows):
    """Adds the times of the others in this run, as ratios to this time."""
    row["ratios"] = {
        other["implementation"]: other["seconds"] / row["seconds"]
        for other in rows
        if "seconds" in row
        and "seconds" in other
        and all(row[k] == other[k] for k in ("op", "shape", "program"))
    }


def _head(limits, bare, values):
    """Returns versions, date, method and ceilings of the measurement."""
    found = training.versions() | peers.versions()
    lines = [
        ", ".join(f"{name} {version}" for name, version in found.items()),
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, medians of "
        f"{values.rounds} rounds of {values.calls} calls, the better of two",
    ]
    if bare:
        lines.append(
            "No GPU or TPU here: no kernel and no other library's was timed, "
            "nor anything at shapes of real models; kernels were checked in "
            "interpret mode at tiny shapes."
        )
    if limits:
        lines.append(
            f"ceilings: a copy {limits['bytes'] / 1e9:,.1f} GB/s, a bfloat16 "
            f"product {limits['flops'] / 1e12:,.3f} TFLOP/s"
        )
    return [line for text in lines for line in (text, "")][:-1]


def _table(rows):
    """Returns the table of all rows, with ``-`` for missing numbers."""
    head = ["what", "error", "ms", "spread", "TFLOP/s", "floor", "ratio"]
    formats = ("error", ".1e"), ("seconds", ",.3f"), ("spread", ".1%")
    formats += ("tflops", ",.2f"), ("floor", ".1%"), ("ratio", ".2f")
    body = []
    for row in rows:
        shown: dict[str, Any] = dict(row)
        if "seconds" in row:
            shown["seconds"] = 1e3 * row["seconds"]
        if row["baseline"] in row["ratios"]:
            shown["ratio"] = row["ratios"][row["baseline"]]
        cells = [
            format(shown[field], style) if field in shown else "-"
            for field, style in formats
        ]
        body.append([name(row), *cells])
    return table.markdown(head, body)


def targets(rows, ops) -> list[str]:
    """Returns the table of target ratios and measured ratios."""
    body = []
    for target in TARGETS:
        if target.op not in ops:
            continue
        for program in target.programs:
            what = f"{target.op} {target.implementation} {program}"
            found = [
                f"{row['ratios'][target.against]:.2f} ({row['shape']})"
                for row in rows
                if target.against in row["ratios"]
                and row["op"] == target.op
                and row["implementation"] == target.implementation
                and row["program"] == program
            ]
            measured = ", ".join(found) or "not measured"
            body.append(
                [what, target.against, measured, target.must, target.aim]
            )
    head = ["ratio of times", "against", "measured", "must", "aim"]
    return table.markdown(head, body)


def _missing(rows):
    """Returns the reasons of rows without a time."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "reason" in row:
            reasons.setdefault(row["reason"], []).append(name(row))
    return [
        f"- not timed, {reason}: {', '.join(names)}"
        for reason, names in reasons.items()
    ]


def name(row: dict[str, Any]) -> str:
    """Returns the name of a row."""
    words = ("op", "shape", "program", "implementation")
    return " ".join(row[word] for word in words)
