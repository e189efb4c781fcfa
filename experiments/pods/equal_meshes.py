"""Trains every model on meshes of 8 CPU devices, and compares with one device.

Shardings must not change what is computed. For each model this trains a tiny
one on one device and on every mesh of three axes with 8, and prints the largest
relative difference of the losses, of all steps::

    python -m experiments.equal_meshes --out=runs/equal_meshes

The last column is one device again, whose parameters differ by one rounding in
the beginning. Expected: below 1e-4. A mesh takes 5 to 15 s of one core. Losses
are kept in ``--out``: the same command goes on where it was interrupted.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.shared import flags
from experiments.shared.table import markdown
from nl_jax import training
from nl_jax.data import Batch
from nl_jax.models import LanguageModel, configure, names
from nl_jax.optimizers import NAMED
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.step import draw_state, jit_train_step, plan_state

_DEVICES = 8
_LEVELS = {"objective": "next_token", "token_periods": (16, 32)}
_IN_CONTEXT = "hope-next_token"
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in names()
} | {
    "titans-mac": (
        "titans-mac",
        {"titans_attention": {"memory": {"chunk_size": 16}}},
    ),
    _IN_CONTEXT: ("hope", {"cms": _LEVELS}),
}
MESHES = {
    "x".join(map(str, shape)): shape
    for shape in itertools.product((1, 2, 4, 8), repeat=3)
    if np.prod(shape) == _DEVICES
} | {"4x1x1x2": (4, 1, 1, 2), "1x2x2x2": (1, 2, 2, 2)}
ONE, ROUNDED = "1x1x1", "rounded"
FLAGS = {
    "models": flags.words(list(_CASES), "Which to train.", _CASES),
    "meshes": flags.words(
        list(MESHES), "Devices along data, fsdp, tensor and sequence.", MESHES
    ),
    "steps": flags.integer(20, "Steps of each run."),
    "rate": flags.number(1e-3, "Rate of learning.", 0.0),
    "optimizer": flags.choice("adamw", NAMED, "Optimizer."),
    "out": flags.folder("runs/equal_meshes", "Folder for the losses."),
}


def main(values: flags.FlagValues) -> None:
    """Trains what is missing, and prints a table."""
    # Nothing of JAX has run before in this process.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES)
    # Half the time of compilation.
    jax.config.update("jax_disable_most_optimizations", True)
    meshes = [*values.meshes, ROUNDED]
    rows = []
    for name in values.models:
        alone = _kept(name, ONE, values)
        rows.append([name])
        for mesh in meshes:
            if name == _IN_CONTEXT and mesh.count("x") == 3:
                rows[-1].append("")  # Such levels do not cut sequences.
                continue
            found = difference(_kept(name, mesh, values), alone)
            rows[-1].append(f"{found:.1e}")
        print("  ".join(rows[-1]), flush=True)
        jax.clear_caches()
    print("\n".join(markdown(["model", *meshes], rows)))


def difference(found: list[float], expected: list[float]) -> float:
    """Returns the largest relative difference of two runs' losses.

    Example:
        >>> difference([2.0, 1.0], [2.0, 1.25])
        0.2
    """
    a, b = np.array(found), np.array(expected)
    return float((np.abs(a - b) / np.abs(b)).max())


def _kept(name, mesh, values) -> list[float]:
    """Returns the losses of a run, which are computed once."""
    folder = pathlib.Path(values.out)
    given = (name, mesh, values.steps, values.rate, values.optimizer)
    file = folder / f"{','.join(map(str, given))}.json"
    if not file.exists():
        found = losses(*given)
        folder.mkdir(parents=True, exist_ok=True)
        training.write_json(file, found)
    return json.loads(file.read_text())


def _next_numbers(tree):
    """Returns the floats next to those of a tree, above or below."""
    rng = np.random.default_rng(0)

    def move(leaf):
        to = rng.choice([-np.inf, np.inf], leaf.shape).astype(leaf.dtype)
        return np.nextafter(leaf, to)

    return jax.tree.map(move, tree)


@functools.lru_cache(maxsize=1)
def _drawn(config):
    """Returns the first state of a run, which is that of every mesh."""
    model = LanguageModel(config.model)
    devices = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(devices):
        return jax.device_get(
            draw_state(config, model, *plan_state(config, model, devices))
        )


def losses(
    name: str, mesh: str, steps: int, rate: float, optimizer: str = "adamw"
) -> list[float]:
    """Returns the losses of a run on this process's devices.

    Args:
        name: model, by its label.
        mesh: devices along each axis, such as ``"2x2x2"``, or ``ROUNDED``.
        steps: number of steps.
        rate: constant rate of learning.
        optimizer: its name.
    """
    base, overrides = _CASES[name]
    shape = ONE if mesh == ROUNDED else mesh
    sizes = [int(size) for size in shape.split("x")]
    config = training.TrainConfig(
        model=configure(
            base, d_model=64, n_heads=8, n_layers=2, vocab_size=64, **overrides
        ),
        optimizer=training.OptimizerConfig(
            rate, 1, schedule="constant", name=optimizer
        ),
        mesh=training.MeshConfig(*sizes),
        steps=steps,
        batch_size=8,
        seq_len=32,
    )
    model = LanguageModel(config.model)
    devices = mesh_lib.make_mesh(config.mesh, jax.devices()[: math.prod(sizes)])
    tokens = np.random.default_rng(0).integers(0, 64, (steps, 8, 33))
    tokens[..., 1::2] = tokens[..., :-1:2]  # Something to learn.
    found = []
    with jax.set_mesh(devices), mesh_lib.computing(config.mesh):
        tx, shapes = plan_state(config, model, devices)
        alone = dataclasses.replace(config, mesh=training.MeshConfig())
        first = _drawn(alone)
        if mesh == ROUNDED:
            first = first._replace(variables=_next_numbers(first.variables))
        state = jax.tree.map(
            lambda a, where: jax.device_put(a, where.sharding), first, shapes
        )
        step = jit_train_step(config, model, tx, shapes, np.ones(64, int))
        for rows in tokens:
            batch = mesh_lib.global_batch(devices, Batch(rows.astype("int32")))
            state, metrics = step(state, batch)
            sums = jax.device_get(metrics["sums"])
            found.append(float(sums.nats) / rows[:, 1:].size)
    return found
