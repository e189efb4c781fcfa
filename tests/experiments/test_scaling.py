"""Ladders of sizes and comparisons of all models: what is run and reported."""

import pathlib
import types

import jax.numpy as jnp
import pytest

from experiments.reporting import report, sections
from experiments.shared.records import read_cells
from experiments.study import language_modeling, scaling
from experiments.study.variants import count_of
from nl_jax import training
from nl_jax.models import names

TEXT = ("--held_out=64", "--batch=2", "--length=64")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "texts"
    path.mkdir()
    for n in range(4):
        line = f"document {n} has words of its own, {n * 1234567}, and an end."
        (path / f"{n}.txt").write_text(line * 9)
    return path


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training: bits per byte are 3 · parameters^(-1/8)."""
    given = []

    def train(config, workdir):
        given.append((config, workdir))
        size = count_of(config.model)
        bits = 3 * size**-0.125
        if config.optimizer.learning_rate != 0.01:
            bits += 0.5
        line = {"loss": 1.0, "tokens_per_second": 100.0 + len(given)}
        return types.SimpleNamespace(
            step=config.steps,
            held_out_bits_per_byte=bits,
            records=[line],
            variables=jnp.zeros(size),
            train_seconds=1.0,
        )

    monkeypatch.setattr(training, "train", train)
    return given


def test_a_ladder_finds_the_exponent_it_is_given(
    script, trained, folder, tmp_path
):
    flags = ["--models=hope,transformer", "--rates=0.001,0.01,0.1"]
    flags += [f"--paths={folder}", *TEXT, f"--out={tmp_path / 'out'}"]
    flags += ["--tokens_per_parameter=0.064", "--heads=2", "--seeds=0,1"]
    status, out, errors = script(scaling, *flags, "--sizes=0.02")
    assert status == 0, errors
    assert len(trained) == 2 * (3 + 1)
    # 0.064 · 20,000 tokens are ten steps of 2 · 64.
    assert {config.steps for config, _ in trained} == {10}
    status, out, errors = script(scaling, *flags, "--sizes=0.02,0.04")
    assert status == 0 and len(trained) == 2 * 2 * (3 + 1)
    assert "16 of 16 cells are done" in out
    for config, _ in trained:
        wanted = 20_000 if config.steps == 10 else 40_000
        assert abs(count_of(config.model) / wanted - 1) < 0.01
    # A run that is stopped goes on in its own folder.
    assert len({workdir for _, workdir in trained}) == 16
    (section,) = sections.make_sections(read_cells(tmp_path / "out"))
    assert len(section.rows) == 8 and not section.edges
    head, lines = scaling.exponents(section.rows)
    assert head[-1] == "exponent b"
    for name, line in zip(("hope", "transformer"), lines, strict=True):
        assert line[:3] == [name, 2, 4]
        exponent, _, error = line[3].partition(" ± ")
        # Losses are rounded to four digits.
        assert float(exponent) == pytest.approx(0.125, abs=2e-3)
        assert float(error) < 1e-3
    page = f"--out={tmp_path / 'page'}"
    assert script(report, str(tmp_path / "out"), page)[0] == 0
    text = pathlib.Path(tmp_path, "page", "report.html").read_text()
    assert text.count("<svg") == 1 and "exponent b" in text


def test_all_models_have_one_size_and_are_measured(
    script, trained, folder, tmp_path
):
    flags = ["--models=lstm,transformer", "--rates=0.01", "--seeds=0"]
    flags += [f"--paths={folder}", *TEXT, "--width=16", "--heads=2"]
    flags += ["--steps=3", f"--out={tmp_path / 'out'}"]
    status, _, errors = script(language_modeling, *flags)
    assert status == 0, errors
    cells = read_cells(tmp_path / "out")
    found = {cell["cell"]["model"]: cell["result"] for cell in cells}
    sizes = [result["parameters"] for result in found.values()]
    assert max(sizes) / min(sizes) < 1.01
    assert {result["tokens"] for result in found.values()} == {3 * 2 * 64}
    # Keys and values of a window of 512 tokens in two blocks, 16 wide.
    attention = found["transformer"]["state_bytes"]
    assert attention >= 2 * 2 * 512 * 16 * 4
    assert attention > found["lstm"]["state_bytes"] > 0
    assert all(result["step_bytes"] > 1000 for result in found.values())
    (section,) = sections.make_sections(cells)
    (caution,) = sections.cautions(section)
    assert "tokens 384, the paper 30,000,000,000" in caution


def test_by_default_all_models_are_compared():
    flags = language_modeling.FLAGS
    assert "models" in flags and len(names()) > 20


@pytest.mark.parametrize("module", [scaling, language_modeling])
def test_wrong_flags_are_one_line(refused, folder, module):
    paths = f"--paths={folder}"
    refused(module, "allowed are atlas, ", paths, "--models=gpt")
    refused(module, "must be positive numbers", paths, "--rates=0")
    refused(module, "--paths is missing")
    for flag in ("--models=", "--rates=", "--seeds="):
        refused(module, f"{flag}[]: must not be empty", paths, flag)
    if module is scaling:
        refused(module, "must be numbers from 0.005", paths, "--sizes=0.001")
