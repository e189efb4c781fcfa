"""Digits: the data, one run of each kind, and what is kept."""

import json

import numpy as np

from experiments.optimizers import digits
from experiments.optimizers.vision import load

SMALL = (
    "--optimizers=m3,adamw",
    "--seeds=0",
    "--rates=1",
    "--steps=3",
    "--batch=4",
    "--layers=1",
    "--width=8",
)


def test_splits_are_disjoint_and_whole():
    data = load()
    sizes = {name: len(labels) for name, (_, labels) in data.items()}
    assert sizes == {"train": 1197, "validation": 240, "test": 360}
    rows = np.concatenate(
        [np.asarray(images).reshape(-1, 64) for images, _ in data.values()]
    )
    from sklearn.datasets import load_digits

    whole = load_digits().images.reshape(-1, 64) / 16
    assert sorted(map(tuple, rows)) == sorted(
        map(tuple, whole.astype(np.float32))
    )


def test_runs_are_kept_and_reported(finished):
    out, _ = finished(digits, *SMALL)
    assert "adamw, rate 0.003, seed 0" in out
    assert "M3's mean test loss: " in out and "of adamw's" in out
    out, record = finished(digits, *SMALL)
    assert "seed 0:" not in out
    assert record["best"] == {"m3": 0.01, "adamw": 0.003}
    found = record["means"]["m3"]["0.01"]
    ratio = found["test_loss"] / record["means"]["adamw"]["0.003"]["test_loss"]
    assert f"{ratio:.2f} of adamw's" in out


def test_wrong_flags(refused):
    for flag, words in (
        ("--optimizers=lion", "allowed are adamw, muon, m3"),
        ("--width=6", "--width=6: must be a multiple of 4"),
        ("--seeds=one", "--seeds=one: must be integers"),
    ):
        refused(digits, words, flag)


def test_a_diverged_rate_is_never_the_best(capsys, tmp_path):
    row = dict.fromkeys(digits._METRICS, 1.0)
    rows = [
        {
            "optimizer": "m3",
            "rate": rate,
            "seed": 0,
            **row | {"test_loss": loss},
        }
        for rate, loss in ((0.1, 2.0), (1.0, None), (2.0, float("nan")))
    ]
    digits.summarize({}, rows, tmp_path)
    out = capsys.readouterr().out
    assert "| m3 | 0.1 | 2.0000 |" in out and "1: diverged, 2: diverged" in out
    json.loads((tmp_path / "digits.json").read_text(), parse_constant=int)
