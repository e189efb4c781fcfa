r"""Tokens per second of one MLP-memory layer, against ``titans-pytorch``.

The layer is a Titans long-term memory. q, k, v and per-token gates are
projections of the input. The memory is a two-layer residual MLP of width 128
without expansion, with L2 objective, gradient descent with momentum and decay,
and chunks of 64 tokens. The benchmark runs forward and backward of a mean
square with batch 2, 512 tokens and one head.

Command (a minute; the peer needs its own environment)::

    python3 -m venv .venv-peer
    .venv-peer/bin/pip install torch==2.13.0 titans-pytorch==0.5.5
    python -m experiments.benchmark_layer --peer=.venv-peer/bin/python

Both run in alternating rounds, and the median of the ratios within rounds is
printed. The peer uses both cores of a machine through threads; nl_jax uses them
as two devices that divide the batch (``--devices``). Measured on two cores,
nl_jax processes 3.9 times as many tokens per second, and 2.7 to 2.9 times as
many with ``--devices=1``, where XLA uses one core. Without ``--peer`` only
nl_jax is timed.
"""

import json
import os
import pathlib
import statistics
import subprocess

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.shared import flags
from experiments.shared.timing import in_turn, ratio
from nl_jax.errors import InputError
from nl_jax.layers import l2_normalize
from nl_jax.memory import Gates, associative_memory
from nl_jax.training import versions, write_json

_SETTINGS = {
    "width": flags.integer(128, "Width of the layer and its memory."),
    "chunk": flags.integer(64, "Tokens per chunk."),
    "batch": flags.integer(2, "Rows."),
    "length": flags.integer(512, "Tokens per row."),
    "devices": flags.integer(
        2, "CPU devices that share the rows; 1 for accelerators."
    ),
}
FLAGS = {
    "peer": flags.string(None, "Python of an environment with the peer."),
    "rounds": flags.integer(7, "Rounds of each."),
    "calls": flags.integer(5, "Calls per round."),
    **_SETTINGS,
    "out": flags.folder("runs/benchmark_layer", "Folder of the result."),
}


def make_layer(width, chunk):
    """Returns ``(params, loss)`` of the layer."""
    memory = associative_memory(
        "mlp", "l2", "gd", momentum=True, chunk_size=chunk, read="after"
    )
    keys = jax.random.split(jax.random.key(0), 6)
    dense = [
        jax.random.normal(k, (width, width)) * width**-0.5 for k in keys[:3]
    ]
    gates = jax.random.normal(keys[3], (width, 3)) * width**-0.5
    shape = (width, width)
    weights = tuple(jax.random.normal(k, shape) * width**-0.5 for k in keys[4:])
    params = {"qkv": dense, "gates": gates, "memory": weights}

    def row(params, x):
        q, k, v = (jax.nn.silu(x @ w) for w in params["qkv"])
        q, k = l2_normalize(q), l2_normalize(k)
        eta, alpha, mu = jnp.moveaxis(x @ params["gates"], -1, 0)
        gates = Gates(
            jax.nn.sigmoid(eta),
            jax.nn.log_sigmoid(alpha + 4),
            jax.nn.log_sigmoid(mu),
        )
        state = memory.init(params["memory"])
        o, _ = memory.scan(state, k, v, q, gates, aligned=True)
        return o

    def loss(params, x):
        o = jax.vmap(row, in_axes=(None, 0))(params, x)
        return jnp.square(o).mean()

    return params, loss


def main(values: flags.FlagValues) -> None:
    """Times both and writes the result."""
    if values.batch % values.devices:
        raise InputError(
            f"--devices={values.devices} must divide --batch={values.batch}"
        )
    if values.devices > 1:
        jax.config.update("jax_num_cpu_devices", values.devices)
    settings = flags.pick(values, _SETTINGS) | {"threads": os.cpu_count()}
    params, loss = make_layer(values.width, values.chunk)
    shape = (values.batch, values.length, values.width)
    x = jax.random.normal(jax.random.key(1), shape)
    mesh = jax.make_mesh(
        (values.devices,), ("data",), axis_types=(AxisType.Auto,)
    )
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    step = jax.jit(jax.grad(loss))
    jax.block_until_ready(step(params, x))
    peer = start_peer(values.peer, settings) if values.peer else None
    times = {"ours": [], "titans-pytorch": []}
    for _ in range(values.rounds):
        ours = in_turn({"ours": lambda: step(params, x)}, 1, values.calls)
        times["ours"] += ours["ours"]
        if peer:
            peer.stdin.write(f"{values.calls}\n")
            peer.stdin.flush()
            times["titans-pytorch"].append(float(peer.stdout.readline()))
    tokens = values.batch * values.length
    result = {"settings": settings, "versions": versions()}
    for name, seconds in times.items():
        if seconds:
            found = {
                "tokens_per_second": tokens / statistics.median(seconds),
                "slowest": tokens / max(seconds),
                "fastest": tokens / min(seconds),
            }
            result[name] = found
            print(
                f"{name}: {found['tokens_per_second']:,.0f} tokens/s (median "
                f"of {len(seconds)}; {found['slowest']:,.0f} to "
                f"{found['fastest']:,.0f})"
            )
    if peer:
        peer.stdin.close()
        peer.wait()
        result["ratio"] = ratio(times["titans-pytorch"], times["ours"])
        print(f"ours / titans-pytorch: {result['ratio']:.2f}")
    out = pathlib.Path(values.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "result.json", result)


def start_peer(python, settings):
    """Starts the peer's process and waits until it has warmed up."""
    script = (
        pathlib.Path(__file__).parents[1] / "peers" / "time_titans_pytorch.py"
    )
    peer = subprocess.Popen(
        [python, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    peer.stdin.write(json.dumps(settings) + "\n")
    peer.stdin.flush()
    if peer.stdout.readline().strip() != "ready":
        raise InputError(
            f"--peer={python} did not start; does it have "
            "titans-pytorch==0.5.5?"
        )
    return peer
