"""Flags and sweeps: what is parsed, refused, run once and found again."""

import types

import pytest

from experiments.shared import flags
from experiments.shared.records import Records
from experiments.shared.sweep import StoppedError, grid, grouped, sweep

FLAGS = {
    "width": flags.integer(8, "Of all.", multiple_of=4),
    "tokens": flags.integer(2, "Even.", multiple_of=2),
    "rate": flags.number(0.5, "Real.", 0.0, 1.0),
    "runs": flags.words(["a"], known=["a", "b"]),
    "free": flags.words(["x"]),
    "seeds": flags.seeds([0, 1]),
    "shares": flags.numbers(
        [0.5], "Up to 1.", lambda x: x <= 1, "must be <= 1"
    ),
    "loud": flags.switch("Or not."),
    "kind": flags.choice("one", ["one", "two"], "Of them."),
    "out": flags.string(None, "Folder."),
}


@pytest.fixture
def parse(script):
    """Returns the values that a script is given, or its error."""

    def run(*arguments):
        found = {}
        module = types.SimpleNamespace(
            FLAGS=FLAGS,
            main=lambda values: found.update(flags.pick(values, FLAGS)),
        )
        status, _, errors = script(module, *arguments)
        return found if status == 0 else errors

    return run


def test_defaults_and_values_have_the_types_of_their_flags(parse):
    assert parse() == {
        "width": 8,
        "tokens": 2,
        "rate": 0.5,
        "runs": ["a"],
        "free": ["x"],
        "seeds": [0, 1],
        "shares": [0.5],
        "loud": False,
        "kind": "one",
        "out": None,
    }
    found = parse("--seeds=3,4", "--shares=1,0.25", "--runs=b,a", "--free=")
    assert found["seeds"] == [3, 4] and found["shares"] == [1.0, 0.25]
    assert found["runs"] == ["b", "a"] and found["free"] == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--width=6", "--width=6: must be a multiple of 4"),
        ("--width=0", "--width=0"),
        ("--tokens=3", "--tokens=3: must be even"),
        ("--rate=2", "--rate=2"),
        ("--runs=a,c", "--runs=a,c: allowed are a, b"),
        ("--seeds=-1", "--seeds=-1: must be integers >= 0"),
        ("--seeds=4294967296", "--seeds=4294967296: must be integers >= 0"),
        ("--width=2147483648", "--width=2147483648: 2147483648 is not an int"),
        ("--shares=2", "--shares=2: must be <= 1"),
        ("--shares=x", "--shares=x: must be <= 1; could not convert"),
        ("--kind=three", "--kind=three"),
    ],
)
def test_wrong_values_are_one_line_that_begins_with_the_flag(
    parse, flag, words
):
    errors = parse(flag)
    assert errors.startswith(f"error: {words}") and errors.count("\n") == 1


def test_a_sweep_runs_each_cell_once(tmp_path, capsys):
    calls = []

    def run(run, seed):
        calls.append((run, seed))
        if seed == 1 and len(calls) == 2:
            raise StoppedError
        return {"loss": 10 * seed}

    cells = grid(run=["a"], seed=[0, 1, 2])
    words = {"before": "run {run} {seed}", "after": "loss {loss:.1f}"}
    with pytest.raises(StoppedError):
        sweep(Records(tmp_path / "r", {}), cells, run, **words)
    assert capsys.readouterr().out == "run a 0\nloss 0.0\nrun a 1\n"
    rows = sweep(Records(tmp_path / "r", {}), cells, run, **words)
    assert calls == [("a", 0), ("a", 1), ("a", 1), ("a", 2)]
    assert [row["loss"] for row in rows] == [0, 10, 20]
    assert all(row["seconds"] >= 0 for row in rows)
    assert sweep(Records(tmp_path / "r", {}), cells, run) == rows
    assert len(calls) == 4
    assert list(grouped(rows, "run", "seed")) == [("a", 0), ("a", 1), ("a", 2)]


@pytest.mark.slow
def test_processes_run_the_missing_cells(tmp_path, capsys):
    records = Records(tmp_path / "r", {})
    records.add({"x": 2, "y": 0})
    rows = sweep(records, grid(x=[1, 2, 3]), _doubled, jobs=2, after="{x}: {y}")
    assert [(row["x"], row["y"]) for row in rows] == [(1, 2), (2, 0), (3, 6)]
    assert sorted(capsys.readouterr().out.split("\n")) == ["", "1: 2", "3: 6"]
    assert Records(tmp_path / "r", {}).find(x=3)["y"] == 6


@pytest.mark.slow
def test_a_run_that_was_stopped_in_a_process_stops_the_sweep(tmp_path):
    with pytest.raises(StoppedError):
        sweep(Records(tmp_path / "r", {}), grid(x=[1, 2]), _stopped, jobs=2)
    assert not Records(tmp_path / "r", {}).rows


def _doubled(x):
    return {"y": 2 * x}


def _stopped(x):
    raise StoppedError
