"""Optimizers on the language model: the search, runs, what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.optimizers import lm_training, optimizer_lm
from experiments.optimizers.search import search
from experiments.reporting import sections
from experiments.shared.records import Records, read_cells
from nl_jax import training

SMALL = (
    "--steps=4",
    "--batch=2",
    "--length=64",
    "--layers=1",
    "--width=16",
    "--heads=2",
    "--held_out=128",
    "--every=2",
    "--seeds=0",
    "--model=lstm",
)
SETTINGS = {
    "model": "lstm",
    "width": 8,
    "layers": 1,
    "heads": 2,
    "steps": 3,
    "schedule": "constant",
}


@pytest.fixture
def texts(tmp_path):
    """Returns two folders, of texts of letters and of texts of digits."""
    for name, symbols in (("letters", "abcdefgh"), ("digits", "01234567")):
        (tmp_path / name).mkdir()
        for n in range(4):
            order = np.random.default_rng(n).choice(list(symbols), 400)
            (tmp_path / name / f"{n}.txt").write_text("".join(order))
    return tmp_path / "letters", tmp_path / "digits"


def found_by(tmp_path, run, names, **options):
    records = Records(tmp_path / "optimizer_lm", {})
    search(records, dict.fromkeys(names, (0.01, 0.9)), run, **options)
    return records.rows


def test_a_search_finds_the_best_setting_and_runs_it_with_all_seeds(tmp_path):
    def run(optimizer, rate, beta, seed):
        rates = abs(math.log10(rate / 0.00178))
        horizons = abs(math.log2((1 - beta) / 0.05))
        return {"score": rates + horizons + 0.1 * seed}

    options = {"tries": 13, "seeds": [0, 1, 2]}
    rows = found_by(tmp_path, run, ["a", "b"], **options)
    for name in ("a", "b"):
        own = [row for row in rows if row["optimizer"] == name]
        tried = {(row["rate"], row["beta"]) for row in own}
        assert len(tried) == 13 and len(own) == 13 + 2
        best = [r for r in own if (r["rate"], r["beta"]) == (0.00178, 0.95)]
        assert sorted(row["seed"] for row in best) == [0, 1, 2]
    assert found_by(tmp_path, lambda **_: 1 / 0, ["a", "b"], **options) == rows
    cells = read_cells(tmp_path)
    (section,) = sections.make_sections(cells)
    assert not section.edges and len(section.rows) == 2 * 3
    # Without the settings at a lower rate, the best one is at an edge.
    left = [c for c in cells if c["cell"]["rate"] >= 0.00178]
    (section,) = sections.make_sections(left)
    assert section.edges == {("a",): ["rate"], ("b",): ["rate"]}
    head, (line, _) = sections.table_of(section)
    assert head[:5] == ["optimizer", "rate", "beta", "tried", "runs"]
    assert line[:5] == ["a", "0.00178*", "0.95", line[3], "3"]
    assert int(line[3]) == len({str(c["cell"]) for c in left}) / 2 - 2


def test_what_diverges_or_fails_does_not_stop_the_others(tmp_path):
    def run(optimizer, rate, beta, seed):
        if optimizer == "fails":
            raise RuntimeError("no")
        return {"score": None if rate >= 0.01 else rate}

    names = ["fails", "falls"]
    rows = found_by(tmp_path, run, names, tries=4, seeds=[0])
    rates = [row["rate"] for row in rows]
    # Up and down from the middle, on from what did not diverge, and two more
    # because the best rate is at the edge of the four.
    assert rates == [0.01, 0.0316, 0.00316, 0.001, 0.000316, 0.0001]


def test_updates_are_those_of_the_rate():
    subject = optimizer_lm.OPTIMIZERS["m3"]
    compiled = lm_training.compiled(subject, 0.95, SETTINGS)
    variables = compiled.init(jax.random.key(0))
    rows = np.arange(2 * 9, dtype=np.uint8).reshape(2, 9)
    model, _ = lm_training.make_model_and_optimizer(subject, 0.95, SETTINGS)
    config = training.OptimizerConfig(
        name="m3",
        learning_rate=0.03,
        schedule="constant",
        warmup_steps=1,
        weight_decay=0.0,
        options={"b1": 0.95},
    )
    shapes = model.parameter_shapes()
    names = model.logical_axes(), model.parameter_periods(shapes)
    tx = training.make_optimizer(config, 3, *names)

    @jax.jit
    def update(variables):
        def loss(variables):
            ids = rows.astype(jnp.int32)
            logits, _ = model.apply(variables, ids[:, :-1])
            return training.token_losses(logits, ids[:, 1:]).mean()

        grads = jax.grad(loss)(variables)
        updates, _ = tx.update(grads, tx.init(variables), variables)
        return optax.apply_updates(variables, updates)

    found, _ = compiled.step(variables, compiled.start(variables), rows, 0.03)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        update(variables),
    )


def test_the_script_stores_curves_of_both_texts(script, texts, tmp_path):
    letters, digits = texts
    flags = [*SMALL, f"--paths={letters}", f"--out={tmp_path / 'out'}"]
    flags += ["--optimizers=adamw", "--tries=1", "--target=7.9"]
    status, out, errors = script(optimizer_lm, *flags)
    assert status == 0, errors
    assert "adamw, rate 0.006, beta 0.9, seed 0" in out
    (cell,) = read_cells(tmp_path / "out")
    result = cell["result"]
    assert result["at"] == [2, 4] and len(result["curve"]) == 2
    assert result["ends"] == [result["curve"][-1]]
    assert 2 <= result["steps_to_target"] <= 4
    assert result["score"] == result["steps_to_target"]
    assert script(optimizer_lm, *flags, f"--then={digits}")[0] == 0
    alone, both = read_cells(tmp_path / "out")
    assert len(both["settings"]["text_sha256"]) == 2
    # The texts change after the second of four steps.
    found = both["result"]
    assert found["curve"][0] == alone["result"]["curve"][0]
    assert found["curve"][1] != alone["result"]["curve"][1]
    assert found["ends"] == [found["curve"][1], found["curve_then"][1]]
    mean = sum(found["ends"]) / 2
    assert found["score"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--optimizers=lion", "allowed are adamw, "),
        ("--seeds=a", "must be integers"),
        ("--model=gpt9", "--model=gpt9"),
        ("--tries=0", "--tries=0"),
        ("--width=18", "--width=18: must be a multiple of --heads=4"),
        ("--then=/nowhere", "--then: '/nowhere' does not exist"),
    ],
)
def test_wrong_flags_are_one_line(refused, texts, flag, words):
    refused(optimizer_lm, words, f"--paths={texts[0]}", "--heads=4", flag)
