"""One page of all results: tables, plots, and the configuration behind each.

``python -m experiments.report runs`` reads the cells that experiments stored in
a folder and those in it, and writes into ``--out``:

- ``report.html``: tables of mean ± standard error over seeds, plots for light
  and dark screens, configurations, what failed, and in what a setting differs
  from the paper's; the paper's number stands beside ours only where the setting
  is the same. Last is the time that cells took. It needs no network and no
  other file.
- ``report.md`` and a ``.svg`` file for each plot: the same for documentation.

How the cells of an experiment become a table and plots is said in its script's
``REPORT``; see ``experiments/shared/report_form.py``.
"""

import html
import pathlib
import re

from experiments.reporting import sections, times
from experiments.reporting.sections import Section
from experiments.shared import flags, page, plot, table
from experiments.shared.records import distinct, read_cells
from experiments.shared.report_form import Plot
from nl_jax.errors import InputError

POSITIONAL = ("folders",)
FLAGS = {
    "folders": flags.words(["runs"], "Folders of stored cells."),
    "experiments": flags.words([], "Experiments to show; all by default."),
    "title": flags.string("Results", "Of the page."),
    "out": flags.folder("runs/report", "Folder of the pages."),
}


def main(values: flags.FlagValues) -> None:
    """Reads all cells and writes the pages."""
    cells = []
    for folder in values.folders:
        if not pathlib.Path(folder).is_dir():
            raise InputError(f"{folder} is no folder; name one with results")
        cells += read_cells(folder)
    cells = distinct(cells)
    known = sorted({cell["experiment"] for cell in cells})
    if not cells:
        raise InputError(
            f"no results in {', '.join(values.folders)}; an experiment stores "
            "each of its cells as a JSON file in its folder --out"
        )
    for name in values.experiments:
        if name not in known:
            raise InputError(
                f"--experiments={name}: there are results of {', '.join(known)}"
            )
    chosen = values.experiments or known
    cells = [cell for cell in cells if cell["experiment"] in chosen]
    made = sections.make_sections(cells)
    took = times.lines_of(cells)
    out = pathlib.Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.html"
    path.write_text(write_html(made, values.title, took), encoding="utf-8")
    lines = [f"# {values.title}"]
    for number, section in enumerate(made):
        lines += _markdown(section, _stem(section, number), out)
    if took:
        lines += ["", "## Time", "", *table.markdown(times.HEAD, took)]
    (out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(cells)} cells of {len(made)} sections are in {path}")


def write_html(made: list[Section], title: str, took: list[list[str]]) -> str:
    """Returns the page of some sections, and of the times that cells took."""
    links = "".join(
        f'<li><a href="#{_stem(section, n)}">{html.escape(_title(section))}'
        "</a></li>"
        for n, section in enumerate(made)
    )
    body = [f"<h1>{html.escape(title)}</h1>", f"<ul>{links}</ul>"]
    for number, section in enumerate(made):
        stem = _stem(section, number)
        body.append(f'<section id="{stem}">')
        body.append(f"<h2>{html.escape(_title(section))}</h2>")
        if section.rows:
            body.append(page.table(*sections.table_of(section)))
            for each in _extra(section):
                body += ["<br>", page.table(*each)]
        if section.form.note:
            body.append(f"<p>{html.escape(section.form.note)}</p>")
        body += [
            f'<p class="warn">{html.escape(note)}</p>'
            for note in sections.cautions(section)
        ]
        body += [
            f'<p class="fail">Failed: {html.escape(line)}</p>'
            for line in section.failures
        ]
        drawings = [
            f"<figure>{page.svg(figure, f'{stem} {plot.ylabel}')}</figure>"
            for plot, figure in _figures(section)
        ]
        body += ['<div class="plots">', *drawings, "</div>"]
        body += [
            "<details><summary>Configuration</summary>",
            page.table([], sections.configuration(section), "words"),
            "</details></section>",
        ]
    if took:
        body += ["<h2>Time</h2>", page.table(times.HEAD, took)]
    return page.page(title, body)


def _extra(section):
    """Yields head and lines of the section's other table, if it has lines."""
    found = section.form.extra and section.form.extra(section.rows)
    if found and found[1]:
        yield found


def _markdown(section, stem, out):
    lines = ["", f"## {_title(section)}", ""]
    if section.rows:
        head, rows = sections.table_of(section)
        rows = [[_plain(entry) for entry in row] for row in rows]
        lines += table.markdown(head, rows)
        for each in _extra(section):
            lines += ["", *table.markdown(*each)]
    notes = [section.form.note] if section.form.note else []
    notes += sections.cautions(section)
    notes += [f"Failed: {line}" for line in section.failures]
    for note in notes:
        lines += ["", _plain(note)]
    for number, (each, figure) in enumerate(_figures(section)):
        name = f"{stem}-{number}.svg"
        drawing = page.svg(figure, f"{stem} {each.ylabel}", alone=True)
        (out / name).write_text(drawing, encoding="utf-8")
        lines += ["", f"![{each.ylabel}]({name})"]
    config = ", ".join(f"{k} {v}" for k, v in sections.configuration(section))
    return [*lines, "", f"Configuration: {config}."]


def _plain(text):
    """Returns text without what Markdown takes for marks."""
    return re.sub(r"([|*`<])", r"\\\1", text)


def _figures(section):
    """Yields each plot that has points, and its figure."""
    for each in section.form.plots:
        points = sections.points_of(section, each)
        if points:
            yield each, _figure(each, points)


def _figure(each: Plot, points: sections.Points):
    if each.x is None:
        figure, (own,) = plot.axes((4.8, 1.0 + 0.24 * len(points)))
        # From the lowest to the highest, as matplotlib counts upwards.
        order = sorted(points, key=lambda label: -points[label][0][1])
        means = [points[label][0][1] for label in order]
        errors = [points[label][0][2] for label in order]
        own.errorbar(means, order, xerr=errors, fmt="o", capsize=2)
        own.margins(y=0.5 / len(order))
        own.set(xlabel=each.ylabel, xscale=each.scales[1])
    else:
        rows = -(-len(points) // 2)
        figure, (own,) = plot.axes((4.8, 3.0 + 0.25 * rows))
        for n, (label, found) in enumerate(points.items()):
            x, y, errors = zip(*found, strict=True)
            style = {
                "marker": "os^Dv"[n % 5],
                "linestyle": ("-", "--", ":", "-.")[n // 10 % 4],
            }
            error = errors if any(errors) else None
            own.errorbar(
                x, y, error, label=label, markersize=4, capsize=2, **style
            )
        own.set(xlabel=each.xlabel, ylabel=each.ylabel)
        own.set(xscale=each.scales[0], yscale=each.scales[1])
        figure.legend(
            loc="outside lower center", ncols=2, fontsize=9.5, frameon=False
        )
    for axis in (own.xaxis, own.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(_short)
            low, high = axis.get_view_interval()
            if high < 10 * low:
                axis.set_minor_formatter(_short)
    own.grid(alpha=0.5, linewidth=0.5)
    own.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    return figure


def _short(value, position=None):
    """Returns a number for an axis.

    Example:
        >>> _short(2.5), _short(3e5), _short(2e6)
        ('2.5', '300k', '2M')
    """
    for least, size, unit in (
        (1e9, 1e9, "G"),
        (1e6, 1e6, "M"),
        (1e4, 1e3, "k"),
    ):
        if value >= least:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _title(section):
    differs = f": {section.differs}" if section.differs else ""
    return f"{section.form.title} ({section.name}{differs})"


def _stem(section, number):
    return f"{section.name}-{number}"
