"""Kernels compile for TPUs without one, and cost no more than they did.

The figures are static: nothing here says how fast a kernel is. After a change
that is meant to cost more, ``python -m tests.kernels.tpu_compile --record``.
"""

import importlib.util
import json

import pytest

from tests.kernels.tpu_compile import (
    CASES,
    COSTS,
    ENVIRONMENT,
    in_process,
    run_module,
)

pytestmark = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="needs the TPU compiler: pip install 'jax[tpu]'",
    ),
]
GROWTH = 1.05


@pytest.mark.parametrize("case", CASES)
def test_compiles_within_the_recorded_costs(case):
    """Too much vector memory is an error of the compiler's."""
    recorded = json.loads(COSTS.read_text())[case]
    costs = in_process(case, timeout=600)
    assert costs.keys() == recorded.keys()
    for program, figures in costs.items():
        # One kernel each way, and nothing fell back.
        assert figures["kernels"] == recorded[program]["kernels"] > 0
        for name, value in figures.items():
            allowed = GROWTH * recorded[program][name]
            assert value <= allowed, (program, name, value, allowed)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gated-deltanet", "hope"])
def test_sharded_training_step_compiles_for_a_pod_slice(model):
    costs = in_process(f"train_step/{model}", timeout=1500)
    assert costs["kernels"] >= 2, "forward and backward"
    assert costs["temporaries"] < 16 * 2**30, "a v5e has 16 GiB"


def compile_pod(out, *flags):
    """Figures of a step of a small model on 4 chips, by the script."""
    run_module(
        "experiments.compile_pod",
        "--topology=v5e:2x2",
        f"--out={out}",
        "--config.model.name=gated-deltanet",
        "--config.model.d_model=256",
        "--config.model.n_layers=1",
        # Rows times heads of a device are not the rows of the batch.
        "--config.model.n_heads=2",
        "--config.batch_size=12",
        "--config.seq_len=192",
        *flags,
        timeout=600,
        env=ENVIRONMENT,
        json_line=False,
    )
    return json.loads(out.read_text())


def test_the_pod_script_measures_a_step(tmp_path):
    fsdp = ("--config.mesh.data=1", "--config.mesh.fsdp=4")
    cut = compile_pod(tmp_path / "fsdp.json", *fsdp)
    whole = compile_pod(tmp_path / "data.json", "--config.mesh.data=4")
    assert cut["fits"] and cut["whole_batch_arrays"] == 0
    # Large parameters are cut into 4; AdamW keeps two numbers for each.
    held, all_of_it = (found["bytes"]["parameters"] for found in (cut, whole))
    assert all_of_it / 4 <= held <= 1.1 * all_of_it / 4
    assert cut["bytes"]["optimizer"] == pytest.approx(2 * held, rel=0.01)
    # Every matrix is gathered in the pass forwards, at least; only sums of
    # gradients pass between devices that have all.
    assert cut["collectives"]["all-gather"]["bytes"] >= all_of_it / 2
    assert "all-gather" not in whole["collectives"]
    assert whole["collectives"]["all-reduce"]["bytes"] >= all_of_it / 2
    flops = cut["flops"]
    assert flops["forward_times_3"] == pytest.approx(
        flops["equations"], rel=0.1
    )
    assert 0 < cut["mfu"] < 1
