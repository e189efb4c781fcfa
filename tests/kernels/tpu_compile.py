"""Compiles a kernel for a TPU that is not there, in a process of its own.

``python -m tests.kernels.tpu_compile CASE`` prints the static costs as JSON;
``--record`` compiles all cases and writes ``tpu_costs.json``. It needs
``jax[tpu]``, whose compiler takes no part in ordinary runs.
"""

import json
import os
import pathlib
import subprocess
import sys

COSTS = pathlib.Path(__file__).with_name("tpu_costs.json")
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CASES = [
    f"{op}/{shape}/{chip}"
    for op, shape in (
        ("delta_memory", "gated_deltanet_1b3"),
        ("delta_memory", "titans_760m"),
        ("mlp_memory", "hope_1b3"),
        ("mlp_memory", "hope_760m"),
        ("newton_schulz", "memories_128x512"),
        ("newton_schulz", "layers_512x1536"),
    )
    for chip in TOPOLOGIES
] + ["delta_memory/titans_760m_packed/v5e", "operations/all/v5e"]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def in_process(*arguments, timeout):
    """Static costs from a process of their own."""
    module = "tests.kernels.tpu_compile"
    return run_module(module, *arguments, timeout=timeout, env=ENVIRONMENT)[0]


def run_module(module, *arguments, timeout, env, json_line=True):
    """Runs a compiler's file; an absurd kernel can hang or crash it.

    Returns:
        The JSON of its last line, if that is some, and all else that it
        printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        # What is recorded are the costs of optimised programs.
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"} | env,
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *log, last = done.stdout.splitlines()
    return json.loads(last) if json_line else None, "\n".join(log) + done.stderr


def functions(op, shape, implementation=None):
    """What is compiled of an op: name to function, and its arguments.

    Where no implementation is named, what the platform offers.
    """
    import functools

    import jax
    import jax.numpy as jnp

    if op == "newton_schulz":
        from pallas_kernels.newton_schulz import newton_schulz, shapes

        forward = functools.partial(
            newton_schulz, implementation=implementation
        )
        return {"forward": forward}, shapes.SHAPES[shape]
    if op == "operations":
        from pallas_kernels.mlp_memory import memory_scan
        from tests.kernels import operations

        arguments = operations.ARRAYS

        def forward(arrays):
            return memory_scan(
                operations.step, **arrays, chunk_size=operations.CHUNK
            )
    elif op == "mlp_memory":
        from pallas_kernels.mlp_memory import memory_scan, shapes
        from tests.kernels.test_mlp_memory import chunk_step

        case = shapes.SHAPES[shape]
        arguments = case.arguments()

        def forward(arrays):
            return memory_scan(
                chunk_step(momentum=case.momentum),
                *arrays,
                chunk_size=case.chunk_size,
                implementation=implementation,
            )
    else:
        from pallas_kernels.delta_memory import delta_scan, shapes

        alone = shape.removesuffix("_packed")
        case = shapes.SHAPES[alone]
        arguments = case.arrays()
        if shape != alone:
            # As numbers, which have gradients.
            arguments["resets"] = arguments["log_alpha"]

        def forward(arrays):
            return delta_scan(
                **arrays, read=case.read, implementation=implementation
            )

    def loss(arrays):
        out = jax.tree.leaves(forward(arrays))
        return sum(jnp.square(v.astype(jnp.float32)).sum() for v in out)

    return {"forward": forward, "gradient": jax.grad(loss)}, arguments


def compile_case(case):
    """Static costs of one case's programs, none of them a measured time."""
    import jax
    from jax.experimental import topologies

    op, shape, chip = case.split("/")
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[chip]
    ).devices[:1]
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.Mesh(devices, ("data",), axis_types=auto)
    whole = jax.NamedSharding(mesh, jax.P())
    programs, arguments = functions(op, shape)
    costs = {}
    for name, function in programs.items():
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            traced = jax.jit(
                function, in_shardings=whole, out_shardings=whole
            ).trace(arguments)
        lowered = traced.lower(lowering_platforms=("tpu",))
        costs[name] = measure(lowered.compile())
    return costs


def measure(compiled):
    """What the compiler says of a program; bytes, operations, kernels."""
    analysis = compiled.cost_analysis()
    memory = compiled.memory_analysis()
    return {
        "kernels": compiled.as_text().count('"tpu_custom_call"'),
        "flops": analysis["flops"],
        "bytes": analysis["bytes accessed"],
        "code": memory.generated_code_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def compile_train_step(model):
    """Costs of a step of a small model on 8 chips, sharded three ways."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from nl_jax.data import Batch
    from nl_jax.models import build, configure
    from nl_jax.training import mesh as mesh_lib
    from nl_jax.training.step import make_train_step, plan_state
    from nl_jax.training.train_config import TrainConfig

    settings = configure(
        model, vocab_size=512, d_model=256, n_heads=4, n_layers=2
    )
    config = TrainConfig(model=settings, batch_size=8, seq_len=512)
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x4"
    )
    mesh = jax.sharding.Mesh(
        np.reshape(topology.devices, (2, 2, 2)),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    network = build(settings)
    optimizer, shapes = plan_state(config, network, mesh)
    tokens = jax.ShapeDtypeStruct(
        (config.batch_size, config.seq_len + 1),
        jnp.int32,
        sharding=mesh_lib.batch_sharding(mesh),
    )
    step = make_train_step(network, optimizer, np.ones(512, np.int32))
    where = jax.tree.map(lambda s: s.sharding, shapes)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = jax.jit(
            step, donate_argnums=0, out_shardings=(where, None)
        ).trace(shapes, Batch(tokens))
    return measure(traced.lower(lowering_platforms=("tpu",)).compile())


if __name__ == "__main__":
    if sys.argv[1] == "--record":
        table = {case: in_process(case, timeout=900) for case in CASES}
        COSTS.write_text(json.dumps(table, indent=1) + "\n")
    else:
        op, _, name = sys.argv[1].partition("/")
        if op == "train_step":
            figures = compile_train_step(name)
        else:
            figures = compile_case(sys.argv[1])
        sys.stdout.write(json.dumps(figures) + "\n")
