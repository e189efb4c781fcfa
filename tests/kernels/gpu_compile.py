"""Compiles a kernel for an H200 that is not there, in a process of its own.

``python -m tests.kernels.gpu_compile CASE`` prints static figures as JSON;
``--record`` compiles all cases and writes ``gpu_costs.json``. It needs JAX's
CUDA plugins and NVIDIA's compiler, no GPU: ``h200_target.txtpb`` says what the
device is like.
"""

import json
import pathlib
import re
import sys
import tempfile

from tests.kernels.tpu_compile import functions, run_module

HERE = pathlib.Path(__file__).parent
COSTS = HERE / "gpu_costs.json"
TARGET = HERE / "h200_target.txtpb"
CASES = [
    f"{op}/{shape}/{implementation}"
    for op, shapes, implementations in (
        (
            "delta_memory",
            ("gated_deltanet_1b3", "titans_760m", "titans_760m_packed"),
            ("pallas_triton", "pallas_mosaic_gpu"),
        ),
        ("mlp_memory", ("hope_1b3", "hope_760m"), ("pallas_triton",)),
        (
            "newton_schulz",
            ("memories_128x512", "layers_2048x2048"),
            ("pallas_triton",),
        ),
    )
    for shape in shapes
    for implementation in implementations
]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
}
KERNELS = ("__gpu$xla.gpu.triton", "mosaic_gpu")
"""Targets of custom calls that are our kernels."""


def in_process(case, timeout):
    """Figures of one case, and how many bytes of registers were spilled."""
    figures, log = run_module(
        "tests.kernels.gpu_compile", case, timeout=timeout, env=ENVIRONMENT
    )
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    return figures, sum(map(int, spilled))


def compile_case(case):
    """What the compiler says of a case's programs; bytes, numbers."""
    import jax
    from jax.experimental import topologies

    op, shape, implementation = case.split("/")
    device = topologies.get_topology_desc(
        platform="cuda",
        topology_name="h200",
        topology="1x1x1",
        target_config=TARGET.read_text(),
    ).devices[0]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.Mesh([device], ("data",), axis_types=auto)
    whole = jax.NamedSharding(mesh, jax.P())
    programs, arguments = functions(op, shape, implementation)
    figures = {}
    for name, function in programs.items():
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            traced = jax.jit(
                function, in_shardings=whole, out_shardings=whole
            ).trace(arguments)
        lowered = traced.lower(lowering_platforms=("cuda",))
        with tempfile.TemporaryDirectory() as folder:
            compiled = lowered.compile(
                compiler_options={
                    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
                    "xla_dump_to": folder,
                }
            )
            figures[name] = measure(compiled, pathlib.Path(folder))
    return figures


def measure(compiled, dump):
    """Kernels, temporaries and shared memory of a program."""
    text = compiled.as_text()
    targets = re.findall(r'custom_call_target="([^"]+)"', text)
    (thunks,) = dump.glob("*thunk_sequence.txt")
    shared = re.findall(r"shared_memory: (\d+) bytes", thunks.read_text())
    return {
        "kernels": sum(t.startswith(KERNELS) for t in targets),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "shared": max(map(int, shared), default=0),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--record":
        table = {case: in_process(case, timeout=900)[0] for case in CASES}
        COSTS.write_text(json.dumps(table, indent=1) + "\n")
    else:
        sys.stdout.write(json.dumps(compile_case(sys.argv[1])) + "\n")
