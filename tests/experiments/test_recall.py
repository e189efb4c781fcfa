"""Associative recall: what the generator draws and what the scripts write."""

import json

import numpy as np
import pytest

from experiments import gradient_growth, mqar
from nl_jax.training import InputError

SHAPE = {"length": 64, "pairs": 8, "vocab": 512, "batch": 32}


def test_every_key_is_asked_once_and_answered_by_its_value():
    tokens, targets = mqar.make_batch(np.random.default_rng(0), **SHAPE)
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
    _, targets = mqar.make_batch(rng, **SHAPE | {"batch": 2000, "pairs": 1})
    gaps = (np.nonzero(targets >= 0)[1] - 2) / 2
    slots = np.arange(1, 32) ** -0.99
    expected = slots / slots.sum()
    for gap in (0, 1, 30):
        share = (gaps == gap).mean()
        assert abs(share - expected[gap]) < 4 * (expected[gap] / 2000) ** 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [({"pairs": 17}, "at most 16"), ({"vocab": 16}, "need a vocab above 18")],
)
def test_pairs_must_fit(change, words):
    with pytest.raises(InputError, match=words):
        mqar.make_batch(np.random.default_rng(0), **SHAPE | change)


def test_a_finished_run_is_not_repeated(script, tmp_path, monkeypatch):
    flags = (
        "--runs=deltanet",
        "--steps=25",
        "--batch=2",
        "--length=16",
        "--pairs=2",
        f"--out={tmp_path}",
    )
    status, out, errors = script(mqar, *flags)
    assert status == 0, errors
    assert "deltanet seed 0 step 25" in out
    status, out, _ = script(mqar, *flags)
    assert status == 0 and "step 25" not in out
    (line,) = map(json.loads, (tmp_path / "mqar.jsonl").open())
    row = line["row"]
    assert row["steps_to_target"] is None and len(row["curve"]) == 1
    assert "| deltanet | 0 |" in (tmp_path / "mqar.md").read_text()
    assert (tmp_path / "mqar.png").exists()
    # A result of other settings is no result of these.
    again = []
    monkeypatch.setattr(mqar, "train", lambda *a: again.append(a) or row)
    for changed in ("--learning_rate=0.01", "--steps=26"):
        assert script(mqar, *flags, changed)[0] == 0
    assert len(again) == 2
    assert script(mqar, *flags)[0] == 0 and len(again) == 2


@pytest.mark.parametrize("module", [mqar, gradient_growth])
def test_wrong_flags(script, tmp_path, module):
    status, _, errors = script(module, "--runs=hopeless", f"--out={tmp_path}")
    assert status == 2 and "allowed are comba, " in errors


def test_gradient_norms_are_written(script, tmp_path):
    status, _, errors = script(
        gradient_growth,
        "--runs=deltanet",
        "--lengths=8,16",
        f"--out={tmp_path}",
    )
    assert status == 0, errors
    written = json.loads((tmp_path / "gradient_growth.json").read_text())
    assert len(written["norms"]["deltanet"]) == 2
    assert (tmp_path / "gradient_growth.png").exists()
