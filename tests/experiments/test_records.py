"""Rows that outlive their process, and no others."""

import json

import pytest

from experiments.shared.records import Records

SETTINGS = {"steps": 5, "shape": (2, 3)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "runs.jsonl"


def test_rows_are_found_again(path):
    first = Records(path, SETTINGS)
    assert first.rows == [] and first.find(seed=0) is None
    first.add({"seed": 0, "rate": 0.1, "loss": 2.0})
    first.add({"seed": 1, "rate": 0.1, "loss": 3.0})
    again = Records(path, SETTINGS)
    assert again.rows == first.rows
    for records in (first, again):
        assert records.find(seed=1, rate=0.1)["loss"] == 3.0
        assert records.find(rate=0.1)["seed"] == 0
        assert records.find(seed=1, rate=0.2) is None
        assert records.find(colour=None) is None


def test_tuples_are_found_as_lists(path):
    Records(path, SETTINGS).add({"shape": (1, 2)})
    assert Records(path, SETTINGS).find(shape=(1, 2)) == {"shape": [1, 2]}


@pytest.mark.parametrize(
    "other", [{"steps": 6}, {"steps": 5}, SETTINGS | {"new": 1}, {}]
)
def test_rows_of_other_settings_stay_and_do_not_count(path, other):
    Records(path, SETTINGS).add({"seed": 0})
    records = Records(path, other)
    assert records.rows == [] and records.find(seed=0) is None
    records.add({"seed": 7})
    assert Records(path, SETTINGS).rows == [{"seed": 0}]
    assert Records(path, other).rows == [{"seed": 7}]


def test_a_line_that_was_cut_off_is_done_again(path):
    Records(path, SETTINGS).add({"seed": 0})
    Records(path, SETTINGS).add({"seed": 1})
    path.write_text(path.read_text()[:-20])
    records = Records(path, SETTINGS)
    assert records.rows == [{"seed": 0}]
    records.add({"seed": 1})
    records.add({"seed": 2})
    found = Records(path, SETTINGS).rows
    assert [row["seed"] for row in found] == [0, 1, 2]


def test_lines_of_other_programs_do_not_count(path):
    path.parent.mkdir()
    lines = [3, {"settings": {"steps": 5, "shape": [2, 3]}, "seed": 0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert Records(path, SETTINGS).rows == []


def test_each_line_says_where_it_comes_from(path):
    Records(path, SETTINGS).add({"seed": 0})
    (line,) = map(json.loads, path.read_text().splitlines())
    assert {"versions", "git_revision"} <= line.keys()
