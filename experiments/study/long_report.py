"""Tables and a figure of what is read by position in long documents."""

import itertools

import numpy as np

from experiments.shared import plot, table
from experiments.shared.records import write
from experiments.shared.sweep import grouped
from experiments.study.windows_alone import ALONE, edges_to


def summarize(rows, settings, out):
    """Writes losses and differences by position."""
    groups = {
        name: _over_seeds(own)
        for name, own in grouped(rows, "variant").items()
        if any(row["bits_per_byte"] is not None for row in own)
    }
    edges = edges_to(settings["length"], settings["positions"])
    heads = [f"{a:,} to {b:,}" for a, b in itertools.pairwise(edges)]
    sections = {
        "Bits per byte": {name: own[""] for name, own in groups.items()},
        "Less than in the first window": {
            name: own[""][:, :1] - own[""] for name, own in groups.items()
        },
        "What the context before the window is worth": {
            name: own[ALONE] for name, own in groups.items()
        },
        "More bits with one part that does not learn": {
            f"{name}, {part}": bits
            for name, own in groups.items()
            for part, bits in own.items()
            if part not in ("", ALONE)
        },
        "More bits than another variant": {
            f"{one} than {other}": groups[one][""] - groups[other][""]
            for one, other in itertools.permutations(groups, 2)
            if other.startswith("hope-") and one in ("hope", "transformer")
        },
    }
    lines = table.markdown(
        ["variant", "seeds", "parameters", "state, bytes", "in windows"],
        [_summary(name, own) for name, own in grouped(rows, "variant").items()],
    )
    for title, found in sections.items():
        cells = [
            [name, *(f"{m:.3f} ± {e:.3f}" for m, e in _mean(bits).T)]
            for name, bits in found.items()
        ]
        if cells:
            lines += ["", f"{title}:", ""]
            lines += table.markdown(["variant", *heads], cells)
    lines += ["", "Mean ± standard error over documents."]
    record = {
        "settings": settings,
        "edges": edges,
        **{
            title: {name: _mean(bits).tolist() for name, bits in found.items()}
            for title, found in sections.items()
        },
    }
    write(out, "long_context", lines, record, _draw(sections, edges))


def _over_seeds(rows):
    """Returns means over seeds, ``[N, positions]``.

    Under ``""`` there are bits per byte; else what is more if documents are
    read in another way.
    """
    found = {}
    for row in rows:
        for name, bits in (row.get("by_position") or {}).items():
            bits = np.asarray(bits)
            more = bits - row["by_position"][""] if name else bits
            found.setdefault(name, []).append(more)
    return {name: np.mean(bits, 0) for name, bits in found.items()}


def _mean(bits):
    """Returns mean and standard error over documents."""
    error = bits.std(0, ddof=1) / len(bits) ** 0.5
    return np.stack([bits.mean(0), error])


def _summary(name, rows):
    finite = [row for row in rows if row["bits_per_byte"] is not None]
    if not finite:
        return [name, 0, "", "", "diverged"]
    bits = [row["bits_per_byte"] for row in finite]
    row = finite[0]
    counts = f"{row['parameters']:,}", f"{row['state_bytes']:,}"
    return [name, len(finite), *counts, table.mean_error(bits)]


def _draw(sections, edges):
    titles = list(sections)
    middles = [
        (max(a, edges[1] / 2) * b) ** 0.5 for a, b in itertools.pairwise(edges)
    ]
    panels = [
        plot.Panel(
            {n: (middles, *_mean(bits)) for n, bits in sections[title].items()},
            "position, bytes",
            "bits per byte",
            title,
            ("log", "linear"),
            "o-",
        )
        for title in (titles[2], titles[3], titles[4])
    ]
    figure = plot.curves(*panels, size=(15, 4.5))
    for axes in figure.axes:
        if axes.lines:
            axes.legend(fontsize=6)
    return figure
