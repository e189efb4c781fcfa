"""Tokens whose meaning changes: what is asked, and what is reported."""

import itertools

import numpy as np
import pytest

from experiments.recall import remapping
from experiments.recall.changing_meaning import PHASE, TASKS
from nl_jax.nested.level_table import count_parameters


def draw(task, phases=3):
    return TASKS[task](np.random.default_rng(1), 4, phases)


def pairs(document, part):
    """Returns the pairs of one of a phase's three parts."""
    return document[16 * part : 16 * (part + 1)].reshape(8, 2).tolist()


@pytest.mark.parametrize("task", TASKS)
def test_shapes_and_what_is_asked(task):
    tokens, targets = draw(task)
    assert tokens.shape == targets.shape == (4, 3 * PHASE)
    assert tokens.min() >= 0 and tokens.max() < 32 and targets.max() < 32
    asked = {"cipher": 142, "keys": 24, "aliases": 24, "products": 144}[task]
    assert ((targets >= 0).sum(1) == asked).all()


@pytest.mark.parametrize("task", ["keys", "aliases"])
def test_answers_are_in_their_own_phase(task):
    tokens, targets = draw(task)
    for document, goals in zip(tokens, targets, strict=True):
        values = []
        for start in range(0, 3 * PHASE, PHASE):
            phase = document[start : start + PHASE]
            known = dict(pairs(phase, 0))
            if task == "aliases":
                value = dict(pairs(phase, 1))
                known = {other: value[own] for own, other in known.items()}
            places = range(start + 32, start + PHASE, 2)
            found = {document[p]: goals[p] for p in places}
            assert found == known
            values.append(found)
        assert values[0] != values[1]
        if task == "keys":
            assert values[0].keys() == values[1].keys()


def test_a_cipher_is_of_one_source():
    tokens, targets = draw("cipher")
    shown = targets >= 0
    np.testing.assert_array_equal(
        targets[:, :-1][shown[:, :-1]], tokens[:, 1:][shown[:, :-1]]
    )
    phases = tokens.reshape(4 * 3, PHASE)
    followers = [
        len({b for a, b in itertools.pairwise(phase) if a == letter})
        for phase in phases
        for letter in range(16)
    ]
    assert max(followers) == 3
    # The most frequent successor has another name in another phase.
    assert len({tuple(np.bincount(p, minlength=16)) for p in phases}) == 12


def test_products_are_those_of_matrices():
    tokens, targets = draw("products", 1)
    orders = list(itertools.permutations(range(3)))
    matrices = np.array([np.eye(3)[list(order)] for order in orders])
    for document, goals in zip(tokens, targets, strict=True):
        state = np.eye(3)
        for token, goal in zip(document, goals, strict=True):
            state = matrices[token] @ state
            np.testing.assert_array_equal(matrices[goal], state)


def test_means_by_part_of_a_phase():
    targets = np.full((1, 3 * PHASE), -1)
    bits = np.zeros((1, 3 * PHASE))
    for place, loss in [(5, 1.0), (7, 3.0), (PHASE + 40, 2.0), (140, 6.0)]:
        targets[0, place], bits[0, place] = 1, loss
    found = remapping.by_part(bits, bits > 2, targets)
    nothing = [None] * 4
    assert found["bits"] == [2.0, *nothing, 4.0]
    assert found["right"] == [0.5, *nothing, 0.5]


def row(model, seed, bits, frozen):
    parts = {"": bits, "generators": bits + frozen}
    return {
        "bits": bits,
        "by_part": {
            name: {"bits": [b] * 6, "right": [0.5] * 6}
            for name, b in parts.items()
        },
    }


def test_models_have_equal_sizes_and_each_an_mlp():
    models = [remapping.make_model(n, 64, 1, 2, 2.0) for n in remapping.MODELS]
    sizes = [count_parameters(m.parameter_shapes()) for m in models]
    assert max(sizes) / min(sizes) < 1.005
    assert all(64 * model.config.cms.hidden > 20 for model in models)


def test_costs_are_means_over_seeds(finished, monkeypatch):
    ran = []

    def run(task, model, seed, settings):
        ran.append((task, model, seed))
        return row(model, seed, 2.0 + seed, 1.0 if seed else 2.0)

    monkeypatch.setattr(remapping, "run_one", run)
    flags = ("--tasks=keys", "--models=hope", "--seeds=0,1")
    out, _ = finished(remapping, *flags)
    assert ran == [("keys", "hope", 0), ("keys", "hope", 1)]
    # 2 and 3, and 2 and 1: half their distance is the standard error of two.
    assert "| keys | hope | none | 2.50 ± 0.50 |" in out
    assert "| keys | hope | generators | +1.50 ± 0.50 |" in out
    finished(remapping, *flags)
    assert len(ran) == 2


@pytest.mark.slow
def test_a_small_run(finished):
    small = ("--steps=2", "--batch=2", "--width=16", "--tests=2", "--seeds=0")
    _, record = finished(remapping, *small, "--tasks=keys", "--models=hope")
    (found,) = record["rows"]
    assert set(found["by_part"]) == {"", "memory", "generators"}
    assert abs(found["bits"] - 5) < 2  # Of 32 tokens.


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--tasks=best", "allowed are cipher, "),
        ("--models=best", "allowed are hope, "),
        ("--phases=1", "phases"),
        ("--width=65", "must be a multiple of --heads=2"),
    ],
)
def test_wrong_flags_are_one_line(refused, flag, words):
    refused(remapping, words, flag)
