"""Kernels compile for TPUs without one, and cost no more than they did.

The figures are static: nothing here says how fast a kernel is. After a change
that is meant to cost more, ``python -m tests.kernels.tpu_compile --record``.
"""

import importlib.util
import json

import pytest

from tests.kernels.tpu_compile import CASES, COSTS, in_process

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
