"""One command for all tables: their flags, failures, and times."""

import importlib

import pytest

from experiments.recall import mqar, remapping
from experiments.reporting import report, sections, small_sweep
from experiments.shared import flags
from nl_jax.errors import InputError


@pytest.fixture
def values(tmp_path):
    found = flags.FlagValues()
    flags.define(small_sweep.FLAGS, found)
    found(["", "--seeds=3,5", "--jobs=2", "--paths=a,b", f"--out={tmp_path}"])
    return found


@pytest.mark.parametrize("name", small_sweep.TABLES)
def test_experiments_get_their_flags_and_the_common_ones(values, name):
    known = importlib.import_module(sections.scripts()[name]).FLAGS
    assert known.keys() >= small_sweep.TABLES[name].keys()
    own = small_sweep.flags_of(name, known, values)
    own.validate_all_flags()
    assert own.seeds == [3, 5] and own.jobs == 2 and own.out == values.out
    assert "paths" not in known or own.paths == ["a", "b"]


def test_failures_are_named_and_the_others_run(script, tmp_path, monkeypatch):
    def fail(**cell):
        raise ValueError("wrong")

    row = {"bits": 1.0, "by_part": {"": {"bits": [1.0] * 6, "right": [1] * 6}}}
    monkeypatch.setattr(mqar, "train", fail)
    monkeypatch.setattr(remapping, "run_one", lambda *_, **__: row)
    common = ("--tables=mqar,remapping", f"--out={tmp_path}")
    status, out, errors = script(small_sweep, *common, "--seeds=4")
    assert "failed cells: 2;" in str(status)
    assert errors.count("run=hope: ValueError: wrong") == 1
    # Four tasks of two models; the longest took no time.
    assert "| remapping | 8 | 0.00 | 0.0 |" in out
    assert "| all | 10 | 0.00 | 0.0 |" in out
    assert script(report, f"--out={tmp_path / 'page'}", str(tmp_path))[0] == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "Time" in page and "longest cell, processor minutes" in page


def test_a_table_that_refuses_its_input_leaves_the_others(
    script, tmp_path, monkeypatch
):
    def refuse(values):
        raise InputError("--documents=7: the text is short")

    monkeypatch.setattr(remapping, "main", refuse)
    ran = []
    monkeypatch.setattr(mqar, "main", ran.append)
    flags = ("--tables=remapping,mqar", f"--out={tmp_path}")
    status, _, errors = script(small_sweep, *flags)
    assert "failed" in str(status) and len(ran) == 1
    assert "remapping: --documents=7: the text is short" in errors


def test_wrong_flags_are_one_line(refused):
    refused(small_sweep, "allowed are language_modeling, ", "--tables=best")
    tables = "--tables=remapping,long_context"
    for words, flag in (("missing", "--jobs=1"), ("not exist", "--paths=no")):
        assert refused(small_sweep, words, tables, flag) == ""
