"""Several runs in one figure: what is read, drawn and refused."""

import json

import numpy as np
import pytest

from experiments.language import compare
from experiments.shared import plot

# Evaluated between two lines, stopped in the middle of the last.
LINES = [
    {"step": 2, "bits_per_byte": 8.0, "tokens": 20, "seconds": 2.0},
    {"step": 4, "bits_per_byte": 4.0, "tokens": 40, "seconds": 3.0},
    {"step": 5, "held_out_bits_per_byte": 3.5},
    {"step": 6, "bits_per_byte": 3.0, "tokens": 60, "seconds": 4.0},
]


def write(folder, lines=LINES, end="", **config):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + end)
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def pair(tmp_path):
    return (
        write(tmp_path / "a" / "run", seed=0, optimizer={"name": "m3"}),
        write(
            tmp_path / "b" / "run",
            end='{"step": 7, "lo',
            seed=0,
            optimizer={"name": "adamw"},
        ),
    )


def test_the_table_tells_runs_apart(script, pair, tmp_path):
    out = tmp_path / "new" / "both.png"
    status, printed, errors = script(compare, *pair, f"--out={out}")
    assert status == 0, errors
    last = "| 6 | 60 | 4 | 3 | 3.5 |"
    assert f"| a/run {last} optimizer.name=m3 |" in printed
    assert f"| b/run {last} optimizer.name=adamw |" in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_curves_go_through_the_points(script, pair, tmp_path, monkeypatch):
    figures, axes = [], plot.axes

    def spy(*arguments, **options):
        figures.append(axes(*arguments, **options))
        return figures[-1]

    monkeypatch.setattr(plot, "axes", spy)
    script(compare, pair[0], "--smooth=2", f"--out={tmp_path / 'a.png'}")
    ((_, panels),) = figures
    expected = {
        "step": ([3, 5], [5]),
        "tokens": ([30, 50], [50]),
        "seconds": ([2.5, 3.5], [3.5]),
    }
    for panel, (axis, (training, held)) in zip(
        panels, expected.items(), strict=True
    ):
        assert panel.get_xlabel() == axis
        batches, circles = panel.get_lines()
        np.testing.assert_allclose(batches.get_xydata().T, [training, [6, 3.5]])
        np.testing.assert_allclose(circles.get_xydata().T, [held, [3.5]])


def test_a_page_holds_all_that_it_shows(script, pair, tmp_path):
    out = tmp_path / "both.html"
    strange = write(tmp_path / "<b>", LINES[:2])
    script(compare, *pair, strange, "--by=seconds", f"--out={out}")
    page = out.read_text()
    assert page.count("<svg") == 1 and "prefers-color-scheme: dark" in page
    assert (
        "/&lt;b&gt;</td>" in page
        and "<td class=word>optimizer.name=m3</td>" in page
    )
    for outside in ("<script", "<link", "src=", "url(http", "@import"):
        assert outside not in page


def test_a_trained_run(script, workdir, tmp_path):
    out = f"--out={tmp_path / 'run.png'}"
    for metric in ("loss", "grad_norm", "bits_per_byte"):
        status, printed, _ = script(
            compare, str(workdir), f"--metric={metric}", out
        )
        assert status == 0 and f"| {metric} |" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no runs are given"),
        (["nowhere"], "nowhere is no training run"),
        (["{0}", "--metric=los"], "no numbers of 'los'; it has bits_per_byte,"),
        (["{0}", "--out=a.pdf"], "--out=a.pdf must end in .png or .html"),
        (["{0}", "--by=hours"], "allowed are step, tokens, seconds"),
        (["{0}", "--smooth=0"], "--smooth=0"),
        (["{1}"], "no numbers of 'tokens'; it has bits_per_byte, step"),
        (["{2}"], "no numbers of 'step'; it has no lines"),
        (["{3}"], "config.json is damaged"),
        (["{4}"], "lists/metrics.jsonl is no record of a run: line 2"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(script, tmp_path, flags, words):
    made = (
        write(tmp_path / "good"),
        write(tmp_path / "foreign", [{"step": 1, "bits_per_byte": 2.0}]),
        write(tmp_path / "empty", [], '{"st'),
        write(tmp_path / "damaged", seed=0),
        write(tmp_path / "lists", [LINES[0], [1]]),
    )
    (tmp_path / "damaged" / "config.json").write_text("{")
    out = tmp_path / "out.png"
    given = [flag.format(*made) for flag in flags]
    status, _, errors = script(compare, f"--out={out}", *given)
    assert status == 2 and errors.count("\n") == 1 and words in errors
    assert not out.exists()
