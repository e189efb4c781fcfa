"""Optimizers on the language model: runs, what is reported, what is refused."""

import types

import jax.numpy as jnp
import pytest

from experiments.optimizers import optimizer_lm
from experiments.shared.records import read_cells
from nl_jax.errors import DivergedError
from nl_jax.models import LanguageModel

SMALL = (
    "--steps=3",
    "--batch=8",
    "--length=64",
    "--layers=1",
    "--width=16",
)


def lines(folder):
    return read_cells(folder / "optimizer_lm")


def test_a_repeated_command_repeats_nothing(finished, tmp_path):
    flags = (*SMALL, "--rates=1")
    out, _ = finished(optimizer_lm, *flags, "--optimizers=m3")
    assert "m3, rate 0.01, seed 0" in out and "step 3/3" in out
    (line,) = lines(tmp_path)
    assert line["settings"]["steps"] == 3 and line["git_revision"]
    assert len(line["result"]["curve"]) == 3
    assert 0 < line["result"]["bits_per_byte"] < 12
    both = "--optimizers=m3,momentum"
    out, _ = finished(optimizer_lm, *flags, both)
    assert "m3, rate" not in out and "momentum, rate" in out
    before = lines(tmp_path)
    assert [cell["cell"]["optimizer"] for cell in before] == ["m3", "momentum"]
    out, record = finished(optimizer_lm, *flags, both)
    assert ", rate" not in out and "| m3 | 0.01 |" in out
    assert lines(tmp_path) == before
    assert set(record["curves"]) == {"m3", "momentum"} and record["versions"]


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training; returns the configurations that it was given."""
    given = []

    def train(config):
        given.append(config)
        optimizer = config.optimizer
        if optimizer.learning_rate > 1:
            raise DivergedError("stopped at step 2: loss nan")
        best = {"adamw": 0.01, "momentum": 1.0}[optimizer.name]
        bits = 2 + abs(optimizer.learning_rate / best - 1) + 0.1 * config.seed
        tokens = config.batch_size * config.seq_len
        return types.SimpleNamespace(
            step=config.steps,
            held_out_bits_per_byte=bits,
            gzip_bits_per_byte=2.5,
            records=[
                {"step": s, "loss": 1.0, "bits_per_byte": bits + 1 / s}
                | {"tokens_per_second": float(tokens)}
                for s in range(1, config.steps + 1)
            ],
            compile_seconds={"train_step": 1.0},
            variables=jnp.zeros(7),
            text_sha256="0",
        )

    monkeypatch.setattr(optimizer_lm.training, "train", train)
    middles = {"adamw": 0.01, "momentum": 0.3}
    monkeypatch.setattr(optimizer_lm, "OPTIMIZERS", middles)
    return given


def test_each_optimizer_is_shown_at_its_best_rate(finished, trained):
    out, _ = finished(
        optimizer_lm,
        *SMALL,
        "--optimizers=momentum,adamw",
        "--rates=5",
        "--seeds=0,1",
    )
    assert len(trained) == 20
    assert {c.optimizer.weight_decay for c in trained} == {0.0}
    table = [line for line in out.splitlines() if line.startswith("|")][2:]
    # The mean over seeds; the last tenth is the last step, a third above.
    assert table == [
        "| adamw | 0.01 | 2.050 | 2.383 | 512 |",
        "| momentum | 0.949 | 2.101 | 2.434 | 512 |",
    ]
    assert "3: diverged" in out and "Parameters: 7." in out
    (note,) = [s for s in out.splitlines() if s.startswith("- momentum, ")]
    assert "0.949: 2.101" in note


def test_a_stopped_run_is_no_result(script, tmp_path, trained, monkeypatch):
    whole = optimizer_lm.training.train

    def stopped(config):
        result = whole(config)
        result.step = config.steps - (config.optimizer.name == "momentum")
        return result

    monkeypatch.setattr(optimizer_lm.training, "train", stopped)
    status, out, _ = script(
        optimizer_lm,
        *SMALL,
        "--optimizers=adamw,momentum",
        "--rates=1",
        f"--out={tmp_path}",
    )
    assert status == 0 and "the same command goes on" in out
    assert [cell["cell"]["optimizer"] for cell in lines(tmp_path)] == ["adamw"]


def test_nothing_but_divergence_is_reported_too(finished, trained, monkeypatch):
    monkeypatch.setitem(optimizer_lm.OPTIMIZERS, "adamw", 9.0)
    flags = ("--optimizers=adamw", "--rates=1")
    out, _ = finished(optimizer_lm, *SMALL, *flags)
    assert "adamw, held out by rate: 9: diverged" in out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizers=lion", "allowed are adamw, "),
        ("--seeds=a", "must be integers"),
        ("--model=gpt9", "--model=gpt9"),
        ("--rates=0", "--rates=0"),
        ("--width=18", "n_heads=4 must divide d_model=18"),
    ],
)
def test_wrong_flags_are_one_line(refused, flag, words):
    refused(optimizer_lm, words, *SMALL, flag)


@pytest.mark.parametrize("model", optimizer_lm.MODELS)
def test_models_are_of_one_size(model):
    settings = {
        "model": model,
        "width": 128,
        "layers": 2,
        "steps": 200,
        "batch": 8,
        "length": 256,
    }
    config = optimizer_lm.make_config("m3", 0.01, 0, settings)
    levels = LanguageModel(config.model).levels()
    total = sum(row.parameters for row in levels)
    assert abs(total / 462_464 - 1) < 0.01
