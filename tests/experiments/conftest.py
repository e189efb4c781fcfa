"""Scripts run in this process: starting JAX again costs seconds."""

import logging
import random

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


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A trained model; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_lm"])
        cli.run(train_lm, [*SMALL, f"--workdir={path}"])
    return path
