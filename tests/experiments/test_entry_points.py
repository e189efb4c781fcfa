"""Every experiment starts as ``python -m experiments.NAME``."""

import importlib
import pathlib
import runpy
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NAMES = sorted(p.stem for p in FOLDER.glob("[a-z]*.py"))


def test_every_script_has_an_entry_point():
    scripts = [
        path.stem
        for path in FOLDER.glob("*/*.py")
        if "\nFLAGS = " in path.read_text()
    ]
    assert sorted(scripts) == NAMES and len(NAMES) == 46


@pytest.mark.parametrize("name", NAMES)
def test_help_has_the_docstring_and_every_flag(monkeypatch, capsys, name):
    (path,) = FOLDER.glob(f"*/{name}.py")
    script = importlib.import_module(f"experiments.{path.parent.name}.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)
    runpy.run_module(f"experiments.{name}", run_name="__main__")
    out = capsys.readouterr().out
    assert script.__doc__ in out
    for flag in script.FLAGS:
        assert f"--{flag}:" in out or f"--[no]{flag}:" in out, flag
