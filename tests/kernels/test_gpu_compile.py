"""Kernels compile for an H200 without one, spill nothing and stay as small.

The figures are static: nothing here says how fast a kernel is. After a change
that is meant to cost more, ``python -m tests.kernels.gpu_compile --record``.
"""

import importlib.util
import json

import pytest

from tests.kernels.gpu_compile import CASES, COSTS, in_process
from tests.kernels.test_tpu_compile import GROWTH

pytestmark = [
    pytest.mark.gpu_compile,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_cuda13_plugin") is None,
        reason="needs compilers for GPUs: pip install -e '.[gpu-compile]'",
    ),
]


@pytest.mark.parametrize("case", CASES)
def test_compiles_within_the_recorded_costs(case):
    """Spills and too much shared memory are errors of the compiler's."""
    recorded = json.loads(COSTS.read_text())[case]
    costs, spilled = in_process(case, timeout=600)
    assert spilled == 0
    assert costs.keys() == recorded.keys()
    for program, figures in costs.items():
        # As many kernels as there were: nothing fell back.
        assert figures["kernels"] == recorded[program]["kernels"] > 0
        for name, value in figures.items():
            allowed = GROWTH * recorded[program][name]
            assert value <= allowed, (program, name, value, allowed)
