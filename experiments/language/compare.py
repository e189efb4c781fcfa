"""Curves of several training runs in one figure.

``python -m experiments.compare runs/default runs/m3`` prints a table of the
runs and draws bits per byte by step, tokens and seconds: lines for training
batches, circles for held-out text. ``--metric`` chooses another column of
``metrics.jsonl``, ``--smooth`` averages over its lines, and ``--out=a.html``
writes figure and table as one page that needs no other file.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.shared import flags, page, plot, table
from nl_jax.errors import InputError
from nl_jax.training.metric_writers import read_json_lines
from nl_jax.training.reporting import settled_limits
from nl_jax.training.run_folder import is_remote, open_folder
from nl_jax.training.same_config import differences

_AXES = ("step", "tokens", "seconds")
POSITIONAL = "runs"
FLAGS = {
    "runs": flags.words([], "Folders of training runs."),
    "metric": flags.string("bits_per_byte", "Column of metrics.jsonl."),
    "by": flags.words(_AXES, "A panel each.", known=_AXES),
    "smooth": flags.integer(1, "Lines of which each point is the mean."),
    "out": flags.string("runs/compare.png", "File, .png or .html."),
}
_MOST = 6  # Fields of a configuration in the table.


class Curve(NamedTuple):
    """Values of a metric, and where in the run each belongs, ``[n]``."""

    x: Mapping[str, np.ndarray]
    y: np.ndarray


class Run(NamedTuple):
    """What a run has recorded."""

    ends: Mapping[str, float]
    """Last step, tokens and seconds."""

    training: Curve
    held_out: Curve
    """Empty if the metric is of training only."""
    config: Mapping[str, Any]


def main(values: flags.FlagValues) -> None:
    """Reads the runs, prints a table and writes the figure."""
    out = pathlib.Path(values.out)
    if out.suffix not in (".png", ".html"):
        raise InputError(f"--out={out} must end in .png or .html")
    if not values.runs:
        raise InputError("no runs are given; name the folders of one or more")
    runs = {
        name: _read(folder, values.metric, values.by, values.smooth)
        for name, folder in _named(values.runs).items()
    }
    head = ["run", *values.by, values.metric, "held out", "configuration"]
    rows = [
        [name, *_ends(run, values.by), words]
        for (name, run), words in zip(
            runs.items(), _differing(runs), strict=True
        )
    ]
    print("\n".join(table.markdown(head, rows)))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = _figure(runs, values.metric, values.by)
    if out.suffix == ".png":
        figure.savefig(out, dpi=120)
    else:
        drawing = page.svg(figure, f"{values.metric} of {len(runs)} runs")
        body = [f'<figure class="wide">{drawing}</figure>']
        body.append(page.table(head, rows))
        title = "Training runs"
        out.write_text(page.page(title, body), encoding="utf-8")
    print(f"the curves are in {out}")


def _named(folders):
    """Returns the folders by the ends of their paths that differ."""
    paths = [open_folder(folder, "RUN") for folder in dict.fromkeys(folders)]
    parts = [
        path.parts if is_remote(path) else path.resolve().parts
        for path in paths
    ]
    count = 1
    while len({part[-count:] for part in parts}) < len({*parts}):
        count += 1
    return {
        "/".join(part[-count:]): path
        for part, path in zip(parts, paths, strict=True)
    }


def _read(folder, metric, by, smooth) -> Run:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise InputError(f"{folder} is no training run: it has no {path.name}")
    lines = read_json_lines(path)

    def column(name):
        found = [line for line in lines if _is_number(line.get(name))]
        return [line["step"] for line in found], [line[name] for line in found]

    def curve(name, smooth=1):
        steps, y = column(name)
        x = {axis: np.interp(steps, *clocks[axis]) for axis in by}
        return Curve({a: _mean(x[a], smooth) for a in by}, _mean(y, smooth))

    clocks = {axis: column(axis) for axis in by}
    for name in (*by, metric):
        if not column(name)[0]:
            known = sorted({name for line in lines for name in line})
            raise InputError(
                f"{path} has no numbers of {name!r}; it has "
                f"{', '.join(known) or 'no lines'}"
            )
    return Run(
        {axis: values[-1] for axis, (_, values) in clocks.items()},
        curve(metric, smooth),
        curve(f"held_out_{metric}"),
        _config(folder / "config.json"),
    )


def _config(path):
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error})") from error


def _is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values, count):
    """Returns the means of ``count`` values in a row, or of all there are."""
    count = min(count, len(values))
    if count < 2:
        return np.asarray(values, float)
    return np.convolve(values, np.full(count, 1 / count), "valid")


def _ends(run, by):
    """Returns the last point of a run for the table."""
    held = run.held_out.y
    return [
        *(f"{run.ends[axis]:,.0f}" for axis in by),
        f"{run.training.y[-1]:.4g}",
        f"{held[-1]:.4g}" if held.size else "",
    ]


def _differing(runs):
    """Returns the fields in which the configurations of runs differ."""
    known = {name: run.config for name, run in runs.items() if run.config}
    first = next(iter(known.values()), {})
    fields = {
        field
        for config in known.values()
        for field, _, _ in differences(first, config, {})
    }
    # The model's name says more than a field of one of its layers.
    order = sorted(fields, key=lambda field: (field.count("."), field))
    words = dict.fromkeys(runs, "")
    for name, config in known.items():
        own = {field: new for field, _, new in differences({}, config, {})}
        found = [f"{field}={own.get(field)}" for field in order]
        more = ["…"] if len(found) > _MOST else []
        words[name] = ", ".join(found[:_MOST] + more)
    return words.values()


def _figure(runs, metric, by):
    size = (4.5 * len(by) + 0.5, 4.2)
    figure, panels = plot.axes(size, len(by), sharey=True)
    figure.set_layout_engine("constrained")
    for axis, own in zip(by, panels, strict=True):
        for number, (name, run) in enumerate(runs.items()):
            style = {
                "color": f"C{number % 10}",
                "linestyle": ("-", "--", ":", "-.")[number // 10 % 4],
            }
            training, held = run.training, run.held_out
            own.plot(training.x[axis], training.y, lw=1, alpha=0.6, **style)
            own.plot(
                *(held.x[axis], held.y),
                label=name,
                marker="o",
                markeredgecolor="white",
                **style,
            )
        own.set_xlabel(axis)
        own.grid(alpha=0.3)
    panels[0].set_ylabel(metric.replace("_", " "))
    panels[0].set_ylim(
        settled_limits([curve.y for run in runs.values() for curve in run[1:3]])
    )
    held = any(run.held_out.y.size for run in runs.values())
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper left",
        ncols=4,
        title="thin: training batches; circles: held-out text" if held else "",
    )
    return figure
