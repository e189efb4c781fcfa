"""The optimizer experiments at their smallest."""

import pytest

from experiments.optimizers import benchmark_optimizers, landscape


def test_delta_momentum_is_first_in_the_valley(finished):
    flags = ("--k=1,3", "--omega=1,2", "--rates=7", "--steps=400")
    out, record = finished(landscape, *flags)
    assert record["wins"] >= 3 and "first in" in out
    assert landscape.make_loss(3.0, 2.0, 1.0)((0.0, 0.0)) == 0


def test_optimizers_are_timed(finished):
    out, _ = finished(
        benchmark_optimizers,
        "--width=8",
        "--layers=1",
        "--rounds=1",
        "--calls=1",
        "--optimizers=m3,muon",
    )
    assert "| m3 |" in out and "optax / ours" in out


def test_only_layers_are_orthogonalised():
    params = benchmark_optimizers.make_params(4, 2, vocab=8)
    dims = benchmark_optimizers._dims(params)
    assert dims["embedding"] is None and None not in dims["layer_1"]
    assert sum(p.size for p in params["layer_0"]) == 12 * 4**2


@pytest.mark.parametrize(
    ("module", "flag", "words"),
    [
        (
            landscape,
            "--k=steep",
            "--k=steep: must be numbers; could not",
        ),
        (landscape, "--rates=0", "--rates=0"),
        (benchmark_optimizers, "--optimizers=lion", "allowed are muon, m3"),
    ],
)
def test_wrong_flags(refused, module, flag, words):
    refused(module, words, flag)
