"""Rows that outlive their process, and no others."""

import json

import pytest

from experiments.shared.records import Records, read_cells
from nl_jax.errors import InputError

SETTINGS = {"steps": 5, "shape": (2, 3)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "loss"


def test_rows_are_found_again(path):
    first = Records(path, SETTINGS)
    assert first.rows == [] and first.find(seed=0) is None
    first.add({"loss": 2.0}, {"seed": 0, "rate": 0.1})
    first.add({"loss": 3.0}, {"seed": 1, "rate": 0.1}, seconds=4.0)
    again = Records(path, SETTINGS)
    assert again.rows == first.rows
    for records in (first, again):
        found = records.find(seed=1, rate=0.1)
        assert found == {"seed": 1, "rate": 0.1, "seconds": 4.0, "loss": 3.0}
        assert records.find(rate=0.1)["seed"] == 0
        assert records.find(seed=1, rate=0.2) is None
        assert records.find(colour=None) is None


def test_tuples_are_found_as_lists(path):
    Records(path, SETTINGS).add({}, {"shape": (1, 2)})
    assert Records(path, SETTINGS).find(shape=(1, 2)) == {"shape": [1, 2]}


@pytest.mark.parametrize(
    "other", [{"steps": 6}, {"steps": 5}, SETTINGS | {"new": 1}, {}]
)
def test_rows_of_other_settings_stay_and_do_not_count(path, other):
    Records(path, SETTINGS).add({}, {"seed": 0})
    records = Records(path, other)
    assert records.rows == [] and records.find(seed=0) is None
    records.add({}, {"seed": 0})
    records.add({}, {"seed": 7})
    assert Records(path, SETTINGS).rows == [{"seed": 0}]
    assert Records(path, other).rows == [{"seed": 0}, {"seed": 7}]


def test_cells_that_read_alike_have_files_of_their_own(path):
    cells = [{"x": "a/b"}, {"x": "a-b"}, {"x": "é" * 300}, {"y": "a-b"}]
    for number, cell in enumerate(cells):
        Records(path, {}).add({"found": number}, cell)
    assert len(list(path.iterdir())) == 4
    found = [row["found"] for row in Records(path, {}).rows]
    assert found == [0, 1, 2, 3]


def test_a_file_that_was_cut_off_is_done_again(path):
    Records(path, SETTINGS).add({}, {"seed": 0})
    Records(path, SETTINGS).add({}, {"seed": 1})
    (last,) = path.glob("1-*.json")
    last.write_text(last.read_text()[:-20])
    records = Records(path, SETTINGS)
    assert records.rows == [{"seed": 0}]
    records.add({}, {"seed": 1})
    assert [row["seed"] for row in Records(path, SETTINGS).rows] == [0, 1]


def test_files_of_other_programs_do_not_count(path):
    path.mkdir(parents=True)
    for number, value in enumerate([3, {"settings": SETTINGS, "seed": 0}]):
        (path / f"{number}.json").write_text(json.dumps(value))
    (path / "notes.txt").write_text("a")
    Records(path, SETTINGS).add({}, {"seed": 0})
    (own,) = path.glob("0-*.json")
    whole = json.loads(own.read_text())
    for damaged in ({"result": 3}, {"finished": None}, {"seconds": "x"}):
        own.write_text(json.dumps(whole | damaged))
        assert Records(path, SETTINGS).rows == []


def test_a_failure_is_a_file_but_no_row_until_the_cell_succeeds(path):
    records = Records(path, SETTINGS)
    records.add_failure("it broke", {"seed": 0}, seconds=1.0, traceback="at x")
    (stored,) = read_cells(path.parent)
    assert stored["error"] == "it broke" and stored["traceback"] == "at x"
    assert records.rows == Records(path, SETTINGS).rows == []
    records.add({"loss": 1.0}, {"seed": 0})
    (stored,) = read_cells(path.parent)
    assert stored["error"] is None and stored["result"] == {"loss": 1.0}


def test_each_file_says_where_it_comes_from(path):
    Records(path, SETTINGS).add({"loss": 1.0}, {"seed": 3}, seconds=2.0)
    (file,) = path.iterdir()
    found = json.loads(file.read_text())
    assert found["experiment"] == "loss" and found["cell"] == {"seed": 3}
    assert found["settings"] == {"steps": 5, "shape": [2, 3]}
    assert found["seconds"] == 2.0 and "jax" in found["versions"]
    assert {"processor_seconds", "git_revision", "finished"} <= found.keys()


def test_a_file_in_the_place_of_the_folder(path):
    path.parent.mkdir()
    path.write_text("")
    with pytest.raises(InputError, match="is a file"):
        Records(path, SETTINGS)
