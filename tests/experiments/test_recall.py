"""Associative recall: what the generator draws and what the scripts write."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language import train_lm
from experiments.recall import gradient_growth, mqar, task
from experiments.shared.records import read_cells
from nl_jax.errors import InputError
from nl_jax.nested.level_table import count_parameters
from tests.experiments.conftest import SMALL

SHAPE = {"length": 64, "pairs": 8, "vocab": 512, "batch": 32}


def test_every_key_is_asked_once_and_answered_by_its_value():
    tokens, targets = task.make_batch(np.random.default_rng(0), **SHAPE)
    assert tokens.shape == targets.shape == (32, 64)
    for row, wanted in zip(tokens, targets, strict=True):
        keys, values = row[:16:2], row[1:16:2]
        assert len({*keys}) == len({*values}) == 8
        assert keys.min() > 0 and keys.max() < 256 <= values.min()
        asked = np.flatnonzero(wanted >= 0)
        assert asked.min() >= 16 and sorted(row[asked]) == sorted(keys)
        told = dict(zip(keys, values, strict=True))
        assert [told[row[at]] for at in asked] == [*wanted[asked]]


def test_short_gaps_are_common_and_long_ones_exist():
    rng = np.random.default_rng(1)
    _, targets = task.make_batch(rng, **SHAPE | {"batch": 2000, "pairs": 1})
    gaps = (np.nonzero(targets >= 0)[1] - 2) / 2
    slots = np.arange(1, 32) ** -0.99
    expected = slots / slots.sum()
    for gap in (0, 1, 30):
        share = (gaps == gap).mean()
        assert abs(share - expected[gap]) < 4 * (expected[gap] / 2000) ** 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pairs": 17}, "at most 16"),
        ({"vocab": 16}, "need a vocab of at least 18"),
    ],
)
def test_pairs_must_fit(change, words):
    with pytest.raises(InputError, match=words):
        task.make_batch(np.random.default_rng(0), **SHAPE | change)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "must be LENGTH:PAIRS"),
        ("64", "must be LENGTH:PAIRS"),
        ("64:4:2", "must be LENGTH:PAIRS"),
        ("64:0", "must be LENGTH:PAIRS"),
        ("64:4,x:8", "must be LENGTH:PAIRS"),
        ("64:4,64:4", "each slice once"),
        ("64:4,64:17", "at most 16"),
        ("64:4,512:8", "tokens=256 hold no sequence of 512"),
        ("256:64", "need a vocab of at least 130"),
    ],
)
def test_wrong_slices(refused, monkeypatch, words, message):
    monkeypatch.setattr(mqar, "train", None)
    flags = (f"--slices={words}", "--tokens=256", "--vocab=128")
    assert not refused(mqar, message, *flags)


def test_models_of_the_size_of_hope():
    sizes = [
        count_parameters(task.make_model(run, 64).parameter_shapes())
        for run in ("hope", "oja-sized", "oja")
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=2e-3) and sizes[2] < sizes[0]


class LookUp:
    """Answers with what followed a token's first place.

    Sequences above a length give it what is no number.
    """

    def __init__(self, longest):
        self.longest = longest

    def init(self, key, tokens):
        return {"params": {"bias": jnp.zeros(64)}}

    def apply(self, variables, tokens):
        first = (tokens[:, :, None] == tokens[:, None]).argmax(-1)
        answers = jnp.take_along_axis(jnp.roll(tokens, -1, 1), first, 1)
        logits = jax.nn.one_hot(answers, 64) + variables["params"]["bias"]
        return logits * (1 if tokens.shape[1] <= self.longest else jnp.nan), {}


@pytest.fixture
def look_up(monkeypatch):
    """Trains a model that needs no training; returns record and batches."""
    drawn = []

    def make_batch(rng, **shape):
        batch = task.make_batch(rng, **shape)
        drawn.append((shape["length"], shape["batch"], int(batch[0].sum())))
        return batch

    def run(*, seed=0, longest=32):
        model = LookUp(longest)
        monkeypatch.setattr(mqar, "make_batch", make_batch)
        monkeypatch.setattr(mqar, "make_model", lambda *a: model)
        drawn.clear()
        settings = types.SimpleNamespace(
            steps=100,
            vocab=64,
            tokens=64,
            tests=6,
            learning_rate=1e-9,
            target=0.9,
        )
        slices = task.parse_slices(["16:2", "32:4"], vocab=64, tokens=64)
        return mqar.train("look-up", seed, slices, settings), [*drawn]

    return run


def test_slices_take_turns_until_all_are_learned(look_up):
    row, drawn = look_up()
    assert row["accuracy"] == [1, 1] and row["curve"] == [[1, 1]]
    assert row["steps"] == row["steps_to_target"] == row["every"] == 50
    assert row["skipped"] == 0
    assert [each[:2] for each in drawn[:50]] == [(16, 4), (32, 2)] * 25


def test_one_slice_that_fails_neither_ends_a_run_nor_ruins_others(look_up):
    row, _ = look_up(longest=16)
    assert row["accuracy"] == [1, 0] and row["curve"] == [[1, 0]] * 2
    assert row["steps"] == 100 and row["steps_to_target"] is None
    assert row["skipped"] == 50


def test_all_runs_are_tested_on_equal_sequences_of_their_own(look_up):
    (_, first), (_, second) = look_up(), look_up(seed=1)
    assert [each[:2] for each in first[50:]] == 2 * [(16, 4)] + 3 * [(32, 2)]
    assert first[50:] == second[50:]
    assert first[:50] != second[:50]
    assert not {*first[50:]} & {*first[:50], *second[:50]}


def test_a_finished_run_is_not_repeated(finished, tmp_path, monkeypatch):
    flags = (
        "--runs=transformer",
        "--steps=25",
        "--slices=16:2",
        "--tokens=32",
        "--tests=2",
    )
    out, _ = finished(mqar, *flags)
    assert "transformer seed 0 step 25" in out
    assert "step 25" not in finished(mqar, *flags)[0]
    (cell,) = read_cells(tmp_path / "mqar")
    row = cell["result"]
    assert row["steps_to_target"] is None and len(row["curve"]) == 1
    table = (tmp_path / "mqar.md").read_text()
    assert "| 16:2 % |" in table and "| transformer | 0 |" in table
    # A result of other settings is no result of these.
    again = []
    monkeypatch.setattr(mqar, "train", lambda **a: again.append(a) or row)
    for changed in ("--learning_rate=0.01", "--steps=26", "--slices=32:2"):
        finished(mqar, *flags, changed)
    assert len(again) == 3
    finished(mqar, *flags)
    assert len(again) == 3


@pytest.mark.parametrize("module", [mqar, gradient_growth])
def test_wrong_flags(refused, module):
    refused(module, f"allowed are {', '.join(task.RUNS)}", "--runs=hopeless")


def test_gradient_norms_are_written(finished):
    flags = ("--runs=transformer", "--lengths=8,16")
    _, record = finished(gradient_growth, *flags)
    assert len(record["norms"]["transformer"]) == 2


def test_gradients_of_a_trained_run_under_changes(
    finished, refused, script, tmp_path
):
    run = f"--workdir={tmp_path / 'run'}"
    status, _, errors = script(train_lm, *SMALL, run, "--config.steps=1")
    assert status == 0, errors
    flags = (run, "--lengths=4,8", "--batch=2")
    change = "attention.window=4"
    _, record = finished(gradient_growth, *flags, f"--changes={change}")
    before, after = record["norms"]["as trained"], record["norms"][change]
    # A window of four tokens makes no difference to the first four.
    assert after[0] == pytest.approx(before[0], rel=1e-5)
    assert after[1] != pytest.approx(before[1], rel=1e-5)
    for words, *wrong in (
        ("--changes goes with --workdir", "--changes=cms.hidden=2"),
        ("parameters of other shapes", run, "--changes=cms.hidden=2"),
        ("must be FIELD=VALUE", run, "--changes=cms.hidden"),
        (
            "unknown field attention.windows",
            run,
            "--changes=attention.windows=4",
        ),
        ("are more than the", run, "--lengths=1000000"),
    ):
        refused(gradient_growth, words, *wrong)
