"""Flags and sweeps: what is parsed, refused, run once and found again."""

import os
import pickle
import signal
import sys
import time
import types
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import ClassVar

import jax
import numpy as np
import pytest

from experiments.classes import class_incremental, levels_effect
from experiments.continuum import levels
from experiments.optimizers import digits
from experiments.shared import flags, workers
from experiments.shared.progress import SweepProgress
from experiments.shared.records import Records, read_cells
from experiments.shared.sweep import collect_failures, grid, grouped, sweep
from experiments.shared.workers import StoppedError
from nl_jax.errors import InputError
from tests.experiments.conftest import word_table

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
    first, second, progress, third = capsys.readouterr().out.splitlines()
    assert (first, second, third) == ("run a 0", "loss 0.0", "run a 1")
    assert progress == "1 of 3 cells are done after 0:00, about 0:00 left"
    rows = sweep(Records(tmp_path / "r", {}), cells, run, **words)
    assert "2 of 3 cells are done after" in capsys.readouterr().out
    assert calls == [("a", 0), ("a", 1), ("a", 1), ("a", 2)]
    assert [row["loss"] for row in rows] == [0, 10, 20]
    assert all(row["seconds"] >= 0 for row in rows)
    assert all(row["processor_seconds"] >= 0 for row in rows)
    assert sweep(Records(tmp_path / "r", {}), cells, run) == rows
    assert len(calls) == 4
    twice = grid(run=["b"], seed=[5, 5])
    assert len(sweep(Records(tmp_path / "r", {}), twice, run)) == 1
    assert len(calls) == 5
    assert list(grouped(rows, "run", "seed")) == [("a", 0), ("a", 1), ("a", 2)]


def test_processor_time_is_not_that_of_the_clock(tmp_path):
    records = Records(tmp_path / "r", {})
    (row,) = sweep(records, grid(s=[0.2]), lambda s: {"slept": time.sleep(s)})
    assert row["seconds"] >= 0.2 and row["processor_seconds"] < 0.15


def test_the_time_left_counts_work_and_later_cells(capsys):
    clock = iter([100.0, 160.0]).__next__
    cells = [{"n": 1}, {"n": 2}, {"n": 5}, {"n": 4}]
    progress = SweepProgress(cells, lambda cell: cell["n"], 3, clock)
    progress.add({"n": 1}, None)  # Of a run whose time is not known.
    progress.add({"n": 2}, 4000.0)
    # 9 of 12 are left, at 2,000 seconds each, in three processes.
    words = "2 of 4 cells are done after 1:00, about 1:40:00 left"
    assert str(progress) == words


class Failing:
    """A script one or all of whose cells fail while ``broken``."""

    FLAGS: ClassVar = {"out": flags.string("", "Folder.")}
    broken: tuple = ()
    made: list

    def main(self, values):
        self.made = []
        records = Records(f"{values.out}/r", {})
        rows = sweep(records, grid(x=[1, 2, 3]), self.run)
        sys.stdout.write(f"the sum is {sum(row['y'] for row in rows)}")

    def run(self, x):
        self.made.append(x)
        if x in self.broken:
            raise self.broken[x](f"{x} is\nunlucky")
        return {"y": 2 * x}


def test_a_failed_cell_is_named_and_tried_again(script, tmp_path):
    module, out = Failing(), f"--out={tmp_path}"
    module.broken = {2: ZeroDivisionError}
    status, printed, errors = script(module, out)
    assert (
        status == "error: failed cells: 1; the same command tries these again"
    )
    assert "the sum is 8" in printed and module.made == [1, 2, 3]
    line = "x=2: ZeroDivisionError: 2 is unlucky"
    assert f"FAILED {line}" in printed and errors == f"error: failed: {line}\n"
    (failed,) = [c for c in read_cells(tmp_path) if c["error"]]
    assert failed["cell"] == {"x": 2} and "in run" in failed["traceback"]
    assert failed["seconds"] >= 0
    module.broken = {}
    status, printed, _ = script(module, out)
    assert status == 0 and "the sum is 12" in printed and module.made == [2]


def test_nothing_but_failures_is_no_table(script, tmp_path):
    module = Failing()
    module.broken = dict.fromkeys([1, 2, 3], MemoryError)
    status, printed, errors = script(module, f"--out={tmp_path}")
    assert status == "error: no cell of the sweep has a result"
    assert "the sum" not in printed and errors.count("MemoryError") == 3


def test_input_that_the_first_cell_refuses_ends_the_command(script, tmp_path):
    module = Failing()
    module.broken = {1: InputError, 3: InputError}
    status, _, errors = script(module, f"--out={tmp_path / 'new'}")
    assert status == 2 and errors == "error: 1 is unlucky\n"
    assert not (tmp_path / "new").exists() and module.made == [1]
    module.broken = {3: InputError}
    status, printed, _ = script(module, f"--out={tmp_path / 'new'}")
    assert status != 0 and "FAILED x=3: 3 is unlucky" in printed


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (class_incremental, ["--data={}", "--tasks=2"]),
        (levels_effect, ["--data={}", "--tasks=2"]),
        (digits, []),
        (levels, []),
    ],
)
def test_other_processes_are_given_what_runs_a_cell(
    script, tmp_path, monkeypatch, module, arguments
):
    given = []

    def stop(records, cells, run, *, jobs, **options):
        pickle.loads(pickle.dumps((run, cells[0])))
        given.append(jobs)
        raise StoppedError

    monkeypatch.setattr(module, "sweep", stop)
    table = word_table(tmp_path, 2)
    flags = [flag.format(table) for flag in arguments]
    out = script(module, *flags, "--jobs=3", f"--out={tmp_path / 'out'}")
    assert given == [3] and "stopped" in out[1]


def test_what_cells_share_is_prepared_once_and_only_if_any_is_left(tmp_path):
    records, made = Records(tmp_path / "r", {}), []
    for cells in (grid(x=[1, 3]), grid(x=[1, 3]), grid(x=[3, 5])):
        sweep(records, cells, _doubled, prepare=lambda: made.append(len(made)))
    assert made == [0, 1]


def test_cells_share_the_programs_that_are_kept(cache_hits, tmp_path):
    for x in (1, 2):
        jax.clear_caches()
        sweep(Records(tmp_path / "r", {}), grid(x=[x]), _compiled)
        kept = len(os.listdir(tmp_path / "compilation_cache"))
        assert kept and len(cache_hits) == (x - 1) * kept


def test_a_process_that_dies_between_two_cells_is_replaced(monkeypatch):
    class Pool:
        broken: ClassVar = [True, False]  # Of all of them, in turn.

        def submit(self, function, *arguments):
            if Pool.broken and Pool.broken.pop(0):
                raise BrokenProcessPool
            future = Future()
            future.set_result(function(*arguments))
            return future

        def shutdown(self, **options):
            pass

    monkeypatch.setattr(workers, "_pool", lambda programs: Pool())
    cells, run = grid(x=[1, 2]), lambda x: {"y": x}
    found = workers.side_by_side(run, cells, lambda cell: None, 1, None)
    assert [(c["x"], o.result["y"]) for c, o in found] == [(1, 1), (2, 2)]


@pytest.mark.slow
def test_processes_keep_their_programs(cache_hits, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    sweep(Records(tmp_path / "r", {}), grid(x=[1, 2]), _compiled, jobs=2)
    assert os.listdir(tmp_path / "compilation_cache") and not cache_hits


@pytest.mark.slow
def test_processes_run_the_missing_cells(tmp_path, capsys):
    records = Records(tmp_path / "r", {})
    records.add({"y": 0}, {"x": 2})
    with collect_failures() as failed:
        rows = sweep(
            records, grid(x=[1, 2, 3, 4, 5]), _doubled, jobs=2, after="{x}: {y}"
        )
    assert [(r["x"], r["y"]) for r in rows] == [(1, 2), (2, 0), (3, 6), (5, 10)]
    lines = capsys.readouterr().out.splitlines()
    assert {"1: 2", "3: 6", "5: 10", "5 of 5 cells are done"} <= {*lines}
    assert Records(tmp_path / "r", {}).find(x=3)["y"] == 6
    assert failed and failed[0].startswith("x=4: the process that ran it died")


@pytest.mark.slow
def test_a_run_that_was_stopped_in_a_process_stops_the_sweep(tmp_path):
    with pytest.raises(StoppedError):
        sweep(Records(tmp_path / "r", {}), grid(x=[1, 2]), _stopped, jobs=2)
    assert not Records(tmp_path / "r", {}).rows


def _doubled(x):
    if x == 4:
        os.kill(os.getpid(), signal.SIGKILL)  # As for lack of memory.
    return {"y": 2 * x}


def _compiled(x):
    return {"y": int(jax.jit(lambda a: a * 7 - 2)(np.arange(5))[1])}


def _stopped(x):
    raise StoppedError
