"""Stored cells, by experiment and settings, as tables, curves and notes."""

import collections
import importlib
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.shared import table
from experiments.shared.records import row_of
from experiments.shared.report_form import (
    Column,
    Paper,
    Plot,
    Report,
    Row,
    is_number,
    numbers_of,
    value_of,
)

_FOLDER = pathlib.Path(__file__).parents[1]
_TIMES = ("seconds", "processor_seconds")
Points = dict[str, list[tuple[Any, float, float]]]
"""By curve: x, mean of y, and its standard error."""


class Section(NamedTuple):
    """All cells of an experiment that have the same settings."""

    name: str
    """Of the experiment."""
    form: Report
    settings: Mapping[str, Any]
    cells: Sequence[Mapping[str, Any]]
    """As they are stored, with failures."""
    differs: str
    """Settings that other sections of the experiment do not share."""
    rows: Sequence[Row]
    """Of those that are shown: settings, cell and result in one."""
    edges: Mapping[tuple, Sequence[str]]
    """By values of ``by``: fields whose best value is at the edge of those
    tried."""
    tries: Mapping[tuple, int]
    """By values of ``by``: settings tried."""

    @property
    def failures(self) -> list[str]:
        """What failed, and why."""
        return [
            f"{words(cell['cell'])}: {cell['error']}"
            for cell in self.cells
            if cell["error"]
        ]


def make_sections(cells: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Returns a section for each experiment and settings, by name and time."""
    groups: dict[tuple, list] = collections.defaultdict(list)
    for cell in cells:
        settings = json.dumps(cell["settings"], sort_keys=True)
        groups[cell["experiment"], settings].append(cell)
    settings = collections.defaultdict(list)
    for (name, _), own in groups.items():
        settings[name].append(own[0]["settings"])
    made = [
        section
        for (name, _), own in groups.items()
        for section in _sections(name, own, settings[name])
    ]
    return sorted(made, key=lambda section: section.name)


def _sections(name, cells, others):
    settings = cells[0]["settings"]
    differs = {
        # Hashes and long lists are told by their beginnings.
        key: words(value)[:12]
        for key, value in settings.items()
        if any(other.get(key) != value for other in others)
    }
    for form in forms_of(name, cells):
        own = [c for c in cells if form.only({**settings, **c["cell"]})]
        rows = [{**settings, **row_of(c)} for c in own if not c["error"]]
        rows, edges, tries = _best(rows, form) if form.best else (rows, {}, {})
        if own:
            shown = words(differs)
            yield Section(name, form, settings, own, shown, rows, edges, tries)


def scripts() -> dict[str, str]:
    """Returns the modules of all experiments by name."""
    return {
        path.stem: f"experiments.{path.parent.name}.{path.stem}"
        for path in _FOLDER.glob("*/*.py")
        if "\nFLAGS = " in path.read_text()
    }


def forms_of(
    name: str, cells: Sequence[Mapping[str, Any]]
) -> tuple[Report, ...]:
    """Returns the ``REPORT`` of a script, or one that shows all numbers."""
    if name in scripts():
        found = getattr(importlib.import_module(scripts()[name]), "REPORT", ())
        if found:
            return (found,) if isinstance(found, Report) else found
    keys = dict.fromkeys(key for cell in cells for key in cell["cell"])
    columns: dict[str, Column] = {}
    for cell in cells:
        for head, value in cell["result"].items():
            if not is_number(value):
                continue
            if isinstance(value, int) and head not in columns:
                columns[head] = Column(head, ",.0f")
            elif isinstance(value, float):
                columns[head] = Column(head, ".4g")
    by = tuple(key for key in keys if key != "seed")
    return (Report(name, by, columns),)


def _key(row, fields):
    found = (value_of(row, field) for field in fields)
    return tuple(json.dumps(v) if isinstance(v, list) else v for v in found)


def _grouped(rows, fields) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(_key(row, fields), []).append(row)
    return groups


def _best(rows, form):
    """Returns the rows at the best values of the fields that were tuned."""
    *fields, number = form.best
    kept, edges, tries = [], {}, {}
    for key, group in _grouped(rows, form.by).items():
        tried: dict[tuple, dict] = {}
        for row in group:
            value = row[number] if is_number(row[number]) else float("inf")
            setting = tuple(row[field] for field in fields)
            tried.setdefault(setting, {})[row.get("seed")] = value
        # Seeds that ran at all values, so that luck is the same.
        both = set.intersection(*({*seeds} for seeds in tried.values()))
        means = {
            value: statistics.fmean(seeds[seed] for seed in both or seeds)
            for value, seeds in tried.items()
        }
        best = min(means, key=means.__getitem__)
        kept += [r for r in group if tuple(r[f] for f in fields) == best]
        each = zip(fields, best, zip(*tried, strict=True), strict=True)
        edge = [f for f, at, all_ in each if _at_edge(at, {*all_})]
        if edge:
            edges[key] = edge
        tries[key] = len(tried)
    return kept, edges, tries


def _at_edge(value, tried):
    return len(tried) > 1 and value in (min(tried), max(tried))


def table_of(section: Section) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the lines of the section's table."""
    form = section.form
    tuned = form.best[:-1] if form.best else ()
    head = [*form.by, *tuned]
    columns = {
        name: column
        for name, column in form.columns.items()
        if numbers_of(section.rows, column)
    }
    head += [*(["tried"] if tuned else []), "runs", *columns]
    groups = _grouped(section.rows, form.by)
    if form.base:
        head.append("against")
    lines = []
    for key, rows in groups.items():
        line = [*map(str, key)]
        for field in tuned:
            star = "*" if field in section.edges.get(key, ()) else ""
            line.append(f"{rows[0][field]:g}{star}")
        if tuned:
            line.append(str(section.tries[key]))
        line.append(str(len(rows)))
        for name, column in columns.items():
            line.append(_entry(rows, column, _paper(form, rows, key, name)))
        if form.base:
            line.append(_against(groups, rows, form))
        lines.append(line)
    return head, lines


def _entry(rows, column, paper):
    found = numbers_of(rows, column)
    # Counts such as parameters, which are the same in all runs, have no error.
    count = column.form.endswith(".0f") and len({*found}) == 1
    several = found[:1] if count else found
    shown = table.mean_error(several, column.form) if found else "-"
    if 0 < len(found) < len(rows):
        shown += f" ({len(rows) - len(found)} without)"
    return shown if paper is None else f"{shown} (paper {paper:g})"


def _paper(form, rows, key, name):
    """Returns the paper's number, if the setting is the same."""
    if form.paper is None or any(differences(row, form.paper) for row in rows):
        return None
    return form.paper.figures.get(key, {}).get(name)


def _against(groups, rows, form):
    """Returns the mean difference from another line over common seeds."""
    base = form.base(rows[0])
    named = next((own for key, own in groups.items() if key[0] == base), [])
    column = next(iter(form.columns.values()))
    mine, theirs = (
        {
            row.get("seed"): column.scale * value
            for row in each
            if is_number(value := value_of(row, column.field))
        }
        for each in (rows, named)
    )
    both = sorted(mine.keys() & theirs.keys(), key=str)
    if not both:
        return ""
    more = [mine[seed] - theirs[seed] for seed in both]
    return f"{base}: {table.mean_error(more, f'+{column.form}')}"


def differences(row: Row, paper: Paper) -> dict[str, tuple[Any, Any]]:
    """Returns by field our value and the paper's, where they differ.

    Example:
        >>> differences({"width": 64}, Paper("Table 4", {"width": 128}))
        {'width': (64, 128)}
    """
    found = {}
    for field, theirs in paper.setting.items():
        theirs = theirs(row) if callable(theirs) else theirs
        if value_of(row, field) != theirs:
            found[field] = value_of(row, field), theirs
    return found


def cautions(section: Section) -> list[str]:
    """Returns what limits the section's figures."""
    found = []
    for field in section.form.best[:-1] if section.form.best else ():
        if any(field in fields for fields in section.edges.values()):
            found.append(f"* The best {field} is at the edge of those tried.")
    number = section.form.best[-1] if section.form.best else "bits_per_byte"
    diverged = [
        words(cell["cell"])
        for cell in section.cells
        if not cell["error"] and cell["result"].get(number, 0) is None
    ]
    if diverged:
        found.append(f"Diverged: {'; '.join(diverged)}.")
    paper = section.form.paper
    if paper and section.rows:
        below: dict[str, list] = {}
        for row in section.rows:
            for field, pair in differences(row, paper).items():
                below.setdefault(field, []).append(pair)
        if below:
            each = "; ".join(
                f"{field} {_range(ours)}, the paper {_plain(theirs[0])}"
                for field, pairs in below.items()
                for ours, theirs in [zip(*pairs, strict=True)]
            )
            found.append(f"Not the setting of {paper.source}: {each}.")
    return found


def _range(values):
    numbers = sorted({v for v in values if is_number(v)})
    if len(numbers) < 2:
        return _plain(values[0])
    return f"{_plain(numbers[0])} to {_plain(numbers[-1])}"


def _plain(value):
    if value is None:
        return "not known"
    return f"{value:,}" if isinstance(value, int) else str(value)


def points_of(section: Section, plot: Plot) -> Points:
    """Returns the curves of a plot, means over rows with the same x."""
    fields = plot.series or section.form.by
    found: dict[str, dict[Any, list[float]]] = {}
    for row in section.rows:
        label = ", ".join(str(part) for part in _key(row, fields))
        y = value_of(row, plot.y)
        x = value_of(row, plot.x) if plot.x is not None else 0
        y = y if isinstance(y, (list, tuple)) else [y]
        x = x if isinstance(x, (list, tuple, range)) else [x] * len(y)
        for at, value in zip(x, y, strict=False):
            if is_number(value):
                own = found.setdefault(label, {}).setdefault(at, [])
                own.append(plot.scale * value)
    return {
        label: [
            (at, statistics.fmean(values), _error(values))
            for at, values in sorted(own.items())
        ]
        for label, own in found.items()
    }


def _error(values):
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / len(values) ** 0.5


def configuration(section: Section) -> list[tuple[str, str]]:
    """Returns names and values of the settings, versions and times."""
    cells = section.cells
    found = {k: words(v) for k, v in section.settings.items()}
    for key in ("git_revision", "versions"):
        each = dict.fromkeys(words(cell.get(key)) for cell in cells)
        found[key.replace("_", " ")] = "; ".join(each)
    for key in _TIMES:
        total = sum(cell[key] or 0 for cell in cells)
        found[f"{key.replace('_', ' ')} of all cells"] = f"{total:,.0f}"
    found["cells"] = f"{len(cells)}, of which failed {len(section.failures)}"
    return [*found.items()]


def words(value: Any) -> str:
    """Returns a value of JSON for people.

    Example:
        >>> words({"run": "hope", "seeds": [0, 1]})
        'run=hope seeds=0, 1'
    """
    if isinstance(value, Mapping):
        return " ".join(f"{k}={words(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(words(each) for each in value)
    return str(value)
