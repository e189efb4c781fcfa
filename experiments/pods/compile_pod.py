"""Compiles the training step of a run for TPUs that are not there.

It takes the same ``--config`` as ``train_lm``, and a topology of v5e, v5p or
v6e chips. It needs the compiler of ``pip install 'nl-jax[tpu]'``, but no TPU::

    python -m experiments.compile_pod --topology=v5e:4x4 \
        --config.model.name=transformer --config.model.preset=125m \
        --config.model.vocab_size=32000 --config.mesh.data=1 \
        --config.mesh.fsdp=16 --config.batch_size=64 --config.seq_len=1024

It prints what one device holds and sends, how long a step takes at least, and
what to change if it does not fit. Large models take minutes to compile.
``--out`` also writes the figures as JSON.

FLOPs are those of matrix products: by the model's equations; in a walk of the
forward pass without kernels, times three, which checks them; and in a walk of
the whole step, with what kernels add and what is computed again. A step takes
at least as long as its products at the chip's peak, its traffic with the memory
and its collectives, each alone; the longest is the expected time, and the
expected MFU that of the equations in it.
"""

import importlib.util
import math
import os
import pathlib
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from experiments.language.config_flag import config_file
from experiments.pods import compiled_program
from experiments.pods.chips import CHIPS, FLAT
from experiments.shared import flags
from nl_jax import training
from nl_jax.data import Batch
from nl_jax.errors import InputError
from nl_jax.models import build
from nl_jax.models.sequence_axis import AXIS, bubble
from nl_jax.nested.level_table import count_bytes
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.device_peaks import peak_flops
from nl_jax.training.flops import count_flops, model_flops
from nl_jax.training.step import jit_train_step, plan_state

_DEFAULT = pathlib.Path(__file__).parents[1] / "configs" / "default.py"
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Settings with which the compiler looks for no TPU."""
FLAGS = {
    "config": config_file(str(_DEFAULT)),
    "topology": flags.string(
        "v5e:2x4", "Chips and their arrangement, such as v5p:4x4x8."
    ),
    "out": flags.string(None, "File for the figures, as JSON."),
}


def main(values: flags.FlagValues) -> None:
    """Compiles, and prints the figures."""
    config = training.freeze(values.config)
    if config.init_from:
        raise InputError(
            f"config.init_from={config.init_from!r} must be empty: the sizes "
            "of what is compiled are those of config.model"
        )
    if values.out:  # Before minutes of compiling.
        out = training.open_folder(values.out, "--out")
        if out.is_dir():
            raise InputError(f"--out={values.out} is a folder; name a file")
        out.parent.mkdir(parents=True, exist_ok=True)
    found = measure(config, values.topology)
    print("\n".join(lines(found)))
    if values.out:
        training.write_json(out, found)


def measure(config: training.TrainConfig, topology: str) -> dict[str, Any]:
    """Compiles a run's training step; returns figures of one device.

    Raises:
        InputError: without a compiler, and for an unknown topology.
    """
    devices = _devices(topology)
    mesh = training.make_mesh(config.mesh, devices)
    model = build(config.model)
    optimizer, state = plan_state(config, model, mesh)
    rows = jax.ShapeDtypeStruct(
        (config.batch_size, config.seq_len + 1),
        jnp.int32,
        sharding=mesh_lib.batch_sharding(mesh),
    )
    windows = config.data.reading == "windows"
    batch = Batch(rows, None if windows else rows)
    step = jit_train_step(
        config, model, optimizer, state, np.ones(config.model.vocab_size)
    )
    began = time.monotonic()
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        mesh_lib.computing(config.mesh),
    ):
        traced = step.trace(state, batch)
    row = jax.ShapeDtypeStruct((1, config.seq_len), jnp.int32)
    forward = count_flops(
        jax.make_jaxpr(model.apply)(model.parameter_shapes(), row), "cpu"
    )
    tokens = config.batch_size * config.seq_len
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    fast = jax.eval_shape(
        lambda v: model.init_state(v, config.batch_size // parts),
        state.variables,
    )
    found = {
        "topology": topology,
        "chips": len(devices),
        "mesh": dict(mesh.shape),
        "model": config.model.name,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "remat": config.model.remat,
        "bubble": bubble(config.model.n_layers, mesh.shape[AXIS]),
        "bytes": {
            "parameters": _held(state.variables),
            "optimizer": _held(state.optimizer),
            "fast_state": count_bytes(fast),
        },
        "flops": {
            "equations": model_flops(model, config.seq_len) * tokens,
            "forward_times_3": 3 * config.batch_size * forward,
            "step": count_flops(traced.jaxpr),
        },
        "memory": _chip(topology).memory,
    }
    try:
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        found |= _too_large(error)
        found["advice"] = advice(config, mesh, found)
        return found
    found["compile_seconds"] = round(time.monotonic() - began, 1)
    analysis = compiled.memory_analysis()
    found["bytes"]["temporaries"] = analysis.temp_size_in_bytes
    found["needs"] = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )
    found["fits"] = found["needs"] <= found["memory"]
    text = compiled.as_text()
    of_batch = rf"\[{config.batch_size},{config.seq_len},\d"
    # A device's rows times its heads may be as many as the rows of the batch.
    found["whole_batch_arrays"] = len(re.findall(of_batch, text))
    found |= _speed(text, found, topology)
    found["advice"] = "" if found["fits"] else advice(config, mesh, found)
    return found


def _speed(text, found, topology) -> dict[str, Any]:
    """Returns the collectives, and the least time of a step."""
    program, entry = compiled_program.parse(text)
    times = compiled_program.runs(program, entry)
    sent = compiled_program.collectives(program, times)
    # A sum goes around twice: its parts, then the result.
    links = sum(
        size * (2 if kind == "all-reduce" else 1)
        for kind, (_, size) in sent.items()
    )
    chip, peak = _chip(topology), peak_flops(f"TPU {_version(topology)}")
    peak *= found["chips"]
    seconds = {
        "products": found["flops"]["step"] / peak,
        "memory": compiled_program.traffic(program, times) / chip.memory_speed,
        "collectives": links / chip.link_speed,
    }
    least = max(seconds.values())
    return {
        "collectives": {
            kind: {"times": count, "bytes": size}
            for kind, (count, size) in sent.items()
        },
        "seconds": seconds,
        "mfu": found["flops"]["equations"] / (peak * least),
    }


def advice(config, mesh, found) -> str:
    """Returns one change that makes a step smaller."""
    held = found["bytes"]["parameters"] + found["bytes"]["optimizer"]
    rows = config.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    cut = mesh.shape["fsdp"] * mesh.shape["tensor"]
    least = held * cut / math.prod(mesh.shape.values())
    if least > found["memory"]:
        return (
            "more chips or a smaller model: cut over all of these chips, "
            f"parameters and optimizer alone take {_gib(least)}"
        )
    if held > found["memory"] / 2 and mesh.shape["data"] > 1:
        return "more mesh.fsdp, fewer mesh.data: parameters are cut further"
    if config.model.remat != "blocks":
        return "config.model.remat=blocks keeps less for the backward pass"
    if rows > config.accumulate:
        return (
            f"config.accumulate={rows} or a smaller batch_size: a device "
            f"computes {rows // config.accumulate} rows at a time"
        )
    if config.model.cms.learns and found["bytes"]["fast_state"] > 2**28:
        return (
            "more mesh.tensor, which cuts each row's fast weights, or longer "
            "config.model.cms.token_periods, for fewer copies of them"
        )
    return "a shorter seq_len, a smaller model or more chips"


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the report."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    out = [
        f"{found['model']} on {found['topology']}: {found['chips']} chips, "
        f"{mesh}; batch {found['batch_size']} x {found['seq_len']:,} tokens; "
        f"remat {found['remat']}",
        "bytes per device",
    ]
    notes = {
        "fast_state": "of its rows, before mesh.tensor cuts it; part of the "
        "temporaries"
    }
    for name, size in found["bytes"].items():
        out.append(
            _row(name.replace("_", " "), _gib(size), notes.get(name, ""))
        )
    limit = _gib(found["memory"])
    fits = "fits" if found["fits"] else "does not fit"
    out.append(_row("in all", _gib(found["needs"]), f"of {limit}: {fits}"))
    flops = found["flops"]
    share = flops["forward_times_3"] / flops["equations"] - 1
    again = flops["step"] / flops["equations"] - 1
    out += [
        "FLOPs per step, all devices",
        _row("by equations", f"{flops['equations']:.3e}"),
        _row("3 x forward", f"{flops['forward_times_3']:.3e}", f"{share:+.1%}"),
        _row("whole step", f"{flops['step']:.3e}", f"{again:+.1%}"),
    ]
    if "seconds" in found:
        out.append("collectives per step and device")
        out += [
            _row(kind, _gib(row["bytes"]), f"{row['times']:,} times")
            for kind, row in found["collectives"].items()
        ]
        out.append("a step takes at least")
        out += [
            _row(name, f"{seconds:.4f} s")
            for name, seconds in found["seconds"].items()
        ]
        if found["bubble"]:
            share = f"{found['bubble']:.1%}"
            out.append(f"of the products a device's wait is {share}")
        out.append(f"expected MFU {found['mfu']:.1%}")
    if found["advice"]:
        out.append(f"to make it fit: {found['advice']}")
    return out


def _row(name, value, note="") -> str:
    return f"  {name:<20}{value:>12}  {note}".rstrip()


def _gib(size) -> str:
    return f"{size / 2**30:.3f} GiB"


def _held(tree) -> int:
    """Bytes of one device's parts of arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _too_large(error) -> dict[str, Any]:
    """Returns what the compiler said that a step needs."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    sizes = re.findall(r"([\d.]+)([KMGT])\b", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or len(sizes) < 2:
        raise error
    needs, memory = (float(n) * units[unit] for n, unit in sizes[:2])
    return {"needs": needs, "memory": memory, "fits": False}


def _version(topology):
    return topology.partition(":")[0]


def _chip(topology):
    return CHIPS[_version(topology)]


def _devices(topology: str) -> list[Any]:
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(
            f"--topology={topology} must be one of {', '.join(CHIPS)}, a colon "
            "and the chips along each axis, as in v5e:4x4 or v5p:4x4x8"
        )
    if name in FLAT and shape.count("x") != 1:
        raise InputError(
            f"--topology={topology}: chips of {name} form a plane, as in "
            f"{name}:4x4"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "compile_pod needs the TPU compiler: pip install 'nl-jax[tpu]'"
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # Nothing here runs, and a TPU of this machine may be in use.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology
        ).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--topology={topology}: {reason}") from error
