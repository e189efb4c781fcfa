"""The benchmark of models: each part in seconds, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.shared.records import read_cells
from experiments.speed import benchmark_models
from experiments.speed import timed_models as timed
from nl_jax.nested.level_table import count_bytes

SMALL = (
    "--width=16",
    "--heads=2",
    "--layers=1",
    "--length=16",
    "--models=lstm",
    "--chunks=8",
    "--lengths=8,16",
    "--crossing_lengths=16",
    "--overtaker=lstm",
    "--stream=32",
    "--piece=16",
    "--calls=2",
    "--rounds=2",
)


def test_every_part_writes_its_files_and_goes_on(script, tmp_path):
    out = f"--out={tmp_path}"
    status, first, _ = script(benchmark_models, *SMALL, out)
    assert status == 0
    assert "compiling lstm" in first
    assert "lstm overtakes transformer at" in first
    found = {}
    for part in benchmark_models.PARTS:
        assert (tmp_path / f"{part}.md").stat().st_size
        assert (tmp_path / f"{part}.png").stat().st_size
        found[part] = json.loads((tmp_path / f"{part}.json").read_text())
        assert {"settings", "versions", "git_revision"} <= found[part].keys()
    assert found["throughput"]["found"]["ratios"]["transformer"] == 1
    growth = found["scaling"]["found"]["growth"]
    assert growth.keys() == {"lstm"}
    for row in found["decoding"]["found"].values():
        assert row["bytes"]["1"] == row["bytes"]["32"] > 0
    before = read_cells(tmp_path / "benchmark_models")
    _, again, _ = script(benchmark_models, *SMALL, out)
    assert "compiling" not in again and "streaming" not in again
    assert read_cells(tmp_path / "benchmark_models") == before


def test_models_have_equal_parameters():
    sizes = timed.ModelSizes(width=64, layers=2, heads=4, vocab=32)
    known = timed.variants((16,))
    chosen = ("transformer", "titans", "lstm", "hope-mlp/16", "hope-shared/16")
    models = timed.equal_models({n: known[n] for n in chosen}, sizes, 32)
    counts = {name: timed.parameters(each) for name, each in models.items()}
    target = counts["transformer"]
    for name, count in counts.items():
        assert abs(count / target - 1) < 0.01, name
    assert models["transformer"].config.attention.window == 32
    assert models["hope-shared/16"].config.titans.shares_recurrence


def test_states_are_those_of_a_stream():
    sizes = timed.ModelSizes(width=16, layers=1, heads=2, vocab=32)
    wanted = {"deltanet": ("deltanet", {})}
    model = timed.equal_models(wanted, sizes, 32)["deltanet"]
    decoder = timed.Decoder(model, 4)
    states = decoder.states([1, 8])
    variables, tokens = timed.start(model, (1, 4))
    for position, read in ((1, tokens[:, :1]), (8, jnp.tile(tokens, 2))):
        _, expected = jax.jit(model.apply)(variables, read)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            states[position],
            expected,
        )
    assert count_bytes(states[1]) == count_bytes(states[8])


@pytest.mark.parametrize(
    ("ratios", "length"),
    [
        ({8: 2.0, 16: 3.0}, 8),
        ({8: 0.5, 16: 1.0}, 16),
        ({16: 2.0, 8: 0.5}, 8 * 2**0.5),
        ({8: 0.5, 16: 0.9}, None),
    ],
)
def test_crossing(ratios, length):
    found = timed.crossing(ratios)
    if length is None:
        assert found is None
    else:
        assert found == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--parts=speed", "--parts=speed: allowed are throughput"),
        ("--models=gpt9", "--models=gpt9: allowed are"),
        ("--overtaker=gpt9", "--overtaker=gpt9: allowed are"),
        ("--chunks=0", "--chunks=0: must be integers >= 1"),
        ("--lengths=many", "--lengths=many: must be integers >= 1"),
        ("--piece=7", "--piece=7 must divide --stream=32"),
        ("--rounds=0", "rounds"),
    ],
)
def test_wrong_flags_are_one_line(refused, flag, words):
    refused(benchmark_models, words, *SMALL, flag)


def test_a_width_too_small_for_equal_parameters_is_named(refused):
    words = "hope-mlp/8 has more parameters"
    flags = ("--models=hope-mlp/8", "--width=64", "--heads=1")
    refused(benchmark_models, words, *SMALL, *flags)
