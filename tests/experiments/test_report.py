"""The page of all results: its numbers, its structure, and in a browser."""

import itertools
import re
import shutil
from html.parser import HTMLParser

import pytest

from experiments.reporting import report, sections
from experiments.shared import page
from experiments.shared.records import Records, read_cells
from experiments.shared.report_form import Column, Paper, Report

SETTINGS = {"steps": 300, "width": 128}


@pytest.fixture
def folder(tmp_path):
    """Cells of an experiment with rates, of one without a form, a failure."""
    study = Records(tmp_path / "a" / "hope_study", SETTINGS)
    bits = {("hope", 0.1): 2.5, ("hope", 0.2): 2.0, ("mamba", 0.1): 2.25}
    bits |= {("mamba", 0.2): None}
    for (name, rate), value in bits.items():
        result = {"bits_per_byte": value, "parameters": 5000, "change": "<b>|"}
        result["curve"] = [8.0, 4.0, value or 9.0]
        cell = {"variant": name, "rate": rate, "seed": 0}
        study.add(result, cell, seconds=1.0, processor_seconds=2.0)
    result = {"bits_per_byte": 2.2, "parameters": 5000, "change": "<b>|"}
    cell = {"variant": "hope", "rate": 0.2, "seed": 1}
    study.add({**result, "curve": [8.0, 6.0, 2.2]}, cell)
    study.add_failure("no memory <b>", {"variant": "l2", "rate": 0.1})
    for steps in (5, 6):
        other = Records(tmp_path / "b" / "squares", {"steps": steps})
        other.add({"y": 9.0, "words": "no number"}, {"x": 3, "seed": 0})
    (tmp_path / "a" / "notes.json").write_text("[1]")
    return tmp_path


@pytest.fixture
def made(folder, script, tmp_path):
    out = tmp_path / "out"
    status, printed, errors = script(report, str(folder), f"--out={out}")
    assert status == 0, errors
    assert "8 cells of 4 sections" in printed
    return out


def test_means_errors_and_best_rates(folder):
    study = sections.make_sections(read_cells(folder))[0]
    head, lines = sections.table_of(study)
    assert head[:5] == ["variant", "change", "rate", "tried", "runs"]
    rows = {line[0]: line[2:6] for line in lines}
    # Of 2.0 and 2.2 the standard error is half their distance.
    assert rows["hope"] == ["0.2*", "2", "2", "2.1000 ± 0.1000"]
    assert rows["mamba"] == ["0.1*", "2", "1", "2.2500"]
    assert [line[6] for line in lines] == ["5,000", "5,000"]


def test_equal_results_have_an_error_and_equal_counts_have_none(tmp_path):
    records = Records(tmp_path / "x", {})
    for seed in (0, 1):
        cell = {"run": "a", "seed": seed}
        records.add({"right": 1.0, "parameters": 7, "none": None}, cell)
    columns = {name: Column(name, ".1f") for name in ("right", "none")}
    columns["parameters"] = Column("parameters", ",.0f")
    (section,) = sections.make_sections(read_cells(tmp_path))
    form = Report("t", ("run",), columns)
    head, lines = sections.table_of(section._replace(form=form))
    assert head == ["run", "runs", "right", "parameters"]
    assert lines == [["a", "2", "1.0 ± 0.0", "7"]]


def test_curves_are_means_with_errors(folder):
    study = sections.make_sections(read_cells(folder))[0]
    points = sections.points_of(study, study.form.plots[1])
    assert points["hope"] == [
        (0, 8.0, 0.0),
        (1, 5.0, 1.0),
        (2, pytest.approx(2.1), pytest.approx(0.1)),
    ]
    assert points["mamba"] == [(0, 8.0, 0.0), (1, 4.0, 0.0), (2, 2.25, 0.0)]


def test_the_difference_is_that_of_seeds_that_both_have(tmp_path):
    records = Records(tmp_path / "x", {})
    values = {("a", 0): 1.0, ("a", 1): 2.0, ("a", 2): 9.0, ("b", 0): 1.5}
    for (name, seed), y in {**values, ("b", 1): 2.1}.items():
        records.add({"y": y}, {"name": name, "seed": seed})
    form = Report("t", ("name",), {"y": Column("y", ".1f")}, base=lambda r: "a")
    (section,) = sections.make_sections(read_cells(tmp_path))
    _, lines = sections.table_of(section._replace(form=form))
    # 0.5 and 0.1: 0.3, and half their distance.
    assert lines[1][-1] == "a: +0.3 ± 0.2"


def test_the_papers_number_needs_the_papers_setting(tmp_path):
    records = Records(tmp_path / "x", {"width": 128})
    records.add({"accuracy": 0.5}, {"run": "hope", "length": 64})
    records.add({"accuracy": 0.9}, {"run": "hope", "length": 128})
    (section,) = sections.make_sections(read_cells(tmp_path))
    column = {"accuracy, %": Column("accuracy", ".1f", 100)}
    figures = {("hope", length): {"accuracy, %": 99.7} for length in (64, 128)}
    paper = Paper("Table 4", {"width": 128, "length": 128}, figures)
    form = Report("t", ("run", "length"), column, paper=paper)
    section = section._replace(form=form)
    _, lines = sections.table_of(section)
    shown = [line[-1] for line in lines]
    assert shown == ["50.0", "90.0 (paper 99.7)"]
    assert sections.cautions(section) == [
        "Not the setting of Table 4: length 64, the paper 128."
    ]


def test_copies_and_folders_within_folders_count_once(script, tmp_path):
    study = Records(tmp_path / "all" / "long_context", SETTINGS)
    for seed, bits in enumerate((2.0, 3.0, None)):
        study.add({"bits_per_byte": bits}, {"variant": "hope", "seed": seed})
    shutil.copytree(study.folder, tmp_path / "copy" / "long_context")
    folders = [str(tmp_path / name) for name in ("all", "copy")]
    flags = [*folders, str(study.folder), f"--out={tmp_path}"]
    status, out, errors = script(report, *flags)
    assert status == 0 and out.startswith("3 cells of 1 sections"), errors
    page = (tmp_path / "report.md").read_text()
    assert "| hope | 3 | 2.5000 ± 0.5000 (1 without)" in page
    assert "Diverged: variant=hope seed=2." in page


def test_what_diverged_at_all_rates_is_named(script, tmp_path):
    study = Records(tmp_path / "hope_study", SETTINGS)
    for variant, bits in (("hope", 2.0), ("l2", None)):
        more = {"curve": [8.0, bits], "change": "", "parameters": 9}
        cell = {"variant": variant, "rate": 0.1, "seed": 0}
        study.add({"bits_per_byte": bits} | (more if bits else {}), cell)
    status, _, errors = script(report, str(tmp_path), f"--out={tmp_path}")
    assert status == 0, errors
    page = (tmp_path / "report.md").read_text()
    assert "Diverged: variant=l2 rate=0.1 seed=0." in page


class _Tags(HTMLParser):
    """Counts tags, and sees that each is closed."""

    VOID = ("meta", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[k] for k in ("href", "xlink:href") if k in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(made):
    text = (made / "report.html").read_text()
    tags = _Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.seen.count("svg") == 3 and tags.seen.count("script") == 0
    assert len(tags.ids) == len(set(tags.ids))
    inner = [link[1:] for link in tags.links if link.startswith("#")]
    assert {*inner} <= {*tags.ids} and len(inner) == len(tags.links)
    for outside in ("src=", "@import", "url(http", "<b>", "notes"):
        assert outside not in text
    names = {*re.findall(r"var\((--\w+)\)", text)}
    assert names and all(text.count(f"{name}:") == 2 for name in names)
    assert "Failed: variant=l2 rate=0.1: no memory &lt;b&gt;" in text
    assert "squares (squares: steps=5)" in text
    assert "300" in text and "git revision" in text and "jax=" in text


def test_markdown_has_the_same_table_and_its_plots(made):
    text = (made / "report.md").read_text()
    assert "| hope | \\<b>\\| | 0.2\\* | 2 | 2 | 2.1000 ± 0.1000 |" in text
    for name in re.findall(r"\]\((.*\.svg)\)", text):
        drawing = (made / name).read_text()
        assert drawing.startswith("<svg") and "prefers-color-scheme" in drawing
    assert text.count(".svg)") == 3


def test_colours_can_be_told_from_both_backgrounds():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted([luminance(one), luminance(other)])
        return (high + 0.05) / (low + 0.05)

    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for colours, ink, paper in zip(
        (page.LIGHT, page.DARK), page.INK, page.PAPER, strict=True
    ):
        assert contrast(ink, paper) >= 7
        # Lines need 3, text 4.5, by the guidelines for accessible pages.
        assert all(contrast(colour, paper) >= 4.5 for colour in colours)
        assert len({*colours}) == 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["{0}", "--experiments=mad"], "there are results of hope_study, sq"),
        (["{0}/b/squares/empty"], "no results in "),
    ],
)
def test_wrong_folders_are_one_line(folder, refused, flags, words):
    (folder / "b" / "squares" / "empty").mkdir()
    refused(report, words, *(flag.format(folder) for flag in flags))


def test_every_declared_report_can_be_read():
    for script in sections.scripts():
        for form in sections.forms_of(script, []):
            assert (form.title and form.columns) or form.title == script
            heads = [*form.paper.figures.values()] if form.paper else []
            assert {*itertools.chain(*heads)} <= {*form.columns}


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_all_of_it(made, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    browser = next(
        filter(None, map(shutil.which, ("chromium", "google-chrome"))), None
    )
    if browser is None:
        pytest.skip("there is no browser on this machine")
    said, asked = [], []
    path = made / "report.html"
    with playwright.sync_playwright() as run:
        chromium = run.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        shown = chromium.new_page(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(f"file://{path}")
        # Nothing is wider than the screen; tables scroll within themselves.
        wide = "document.documentElement.scrollWidth"
        assert shown.evaluate(wide) <= width
        boxes = [svg.bounding_box() for svg in shown.locator("svg").all()]
        assert len(boxes) == 3
        for box in boxes:
            assert box["width"] >= 0.8 * min(width, 640) - 32
            assert box["height"] >= 40 and box["x"] + box["width"] <= width
        sizes = shown.evaluate(
            "[...document.querySelectorAll('svg text')].map("
            "e => e.getBoundingClientRect().height)"
        )
        assert len(sizes) > 20 and min(sizes) >= 9  # Pixels.
        lines = shown.evaluate(
            "[...document.querySelectorAll('svg path')].map("
            "e => getComputedStyle(e).stroke)"
        )
        colours = page.DARK if scheme == "dark" else page.LIGHT
        first = [int(colours[0][i : i + 2], 16) for i in (1, 3, 5)]
        assert "rgb({}, {}, {})".format(*first) in lines
        chromium.close()
    assert not said and asked == [f"file://{path}"]


def _cell(**row):
    return {**row, "error": None, "seconds": 1.0, "processor_seconds": 1.0}


def test_figures_of_the_papers_tables_are_found_by_their_columns():
    cells = [
        _cell(
            experiment="mad",
            settings={"width": 128, "batch": 128, "tests": 1280}
            | {"examples": 12_800},
            cell={"task": "selective-copying", "run": run, "seed": 0},
            result={"macro": 99.0, "length": length, "steps": 20_000},
        )
        for run, length in (("hope", 256), ("titans", 64))
    ]
    (section,) = sections.make_sections(cells)
    _, lines = sections.table_of(section)
    # A length of 256 is the paper's for this task, 64 is not.
    assert [line[3] for line in lines] == ["99.0 (paper 99.7)", "99.0"]
    assert "length 64, the paper 256" in sections.cautions(section)[0]


def test_the_best_rate_is_that_of_seeds_that_ran_at_all_rates(tmp_path):
    records = Records(tmp_path / "language_modeling", {})
    for rate, seed, bits in (
        (1, 0, 2.0),
        (2, 0, 2.5),
        (2, 1, 1.0),
        (1, 1, 9.0),
    ):
        cell = {"model": "hope", "rate": rate, "seed": seed}
        records.add({"bits_per_byte": bits}, cell)
    (section,) = sections.make_sections(read_cells(tmp_path))
    assert {row["rate"] for row in section.rows} == {2}  # 1.75 against 5.5.
