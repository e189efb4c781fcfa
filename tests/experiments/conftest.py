"""Scripts run in this process: starting JAX again costs seconds."""

import json
import logging
import random

import jax
import pytest

from experiments.language import train_lm
from experiments.shared import cli

SMALL = (
    "--config=experiments/configs/smoke.py",
    "--config.model.d_model=16",
    "--config.model.name=transformer",
    "--config.seq_len=16",
)


def word_table(folder, count):
    """Writes ``count`` texts for each of six classes, which have own words."""
    rng = random.Random(0)
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot"]
    lines = [
        f"{rng.choice('xyz')} {word} {rng.randrange(9)},{word[0]}"
        for word in words
        for _ in range(count)
    ]
    path = folder / "words.csv"
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def script(capsys, monkeypatch):
    """Runs a script; returns its exit status, output and error output."""
    monkeypatch.setattr("sys.argv", ["script"])
    log = logging.getLogger("nl_jax")

    def run(module, *arguments):
        status = 0
        try:
            cli.run(module, arguments)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    yield run
    log.handlers = []


@pytest.fixture
def finished(script, tmp_path):
    """Runs a script to its end; returns what it printed and its record.

    Its results, a plot among them, lie in ``tmp_path``.
    """

    def run(module, *flags):
        status, out, errors = script(module, *flags, f"--out={tmp_path}")
        assert status == 0, errors
        name = module.__name__.rpartition(".")[2]
        assert (tmp_path / f"{name}.png").stat().st_size
        return out, json.loads((tmp_path / f"{name}.json").read_text())

    return run


@pytest.fixture
def refused(script, tmp_path):
    """Checks that a script says on one line what is wrong, and writes nothing.

    Called with a script, words of the error, and flags; returns what else the
    script printed.
    """

    def check(module, words, *flags):
        out = tmp_path / "refused"
        status, printed, errors = script(module, f"--out={out}", *flags)
        assert status == 2 and errors.count("\n") == 1
        assert errors.startswith("error: ") and words in errors
        assert not out.exists()
        return printed

    return check


@pytest.fixture(scope="package", autouse=True)
def _compile_quickly():
    """Halves the time of compilation: nothing here needs fast programs."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="package")
def workdir(tmp_path_factory):
    """A trained model; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_lm"])
        cli.run(train_lm, [*SMALL, f"--workdir={path}"])
    return path


@pytest.fixture
def text(tmp_path):
    """A folder of 20 documents."""
    path = tmp_path / "text"
    path.mkdir()
    for number in range(20):
        line = f"Document {number} has its own line of 50 characters.\n"
        (path / f"{number}.txt").write_text(line * 40)
    return path
