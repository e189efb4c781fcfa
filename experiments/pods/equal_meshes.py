"""Trains every model on meshes of 8 CPU devices, and compares with one device.

Shardings must not change what is computed. For each model this trains a tiny
one on one device and on every mesh of three axes with 8, and prints the largest
relative difference of the losses, of all steps::

    python -m experiments.equal_meshes --out=runs/equal_meshes

Expected: below 1e-4 everywhere, for 20 steps at rate 1e-3. A mesh takes about
5 s of one core for a Transformer and 40 for Hope whose levels learn in context.
Losses are kept in ``--out``: the same command goes on where it was interrupted.
"""

import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments.shared import flags
from experiments.shared.table import markdown
from nl_jax import training
from nl_jax.data import Batch
from nl_jax.models import LanguageModel, configure, names
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.step import draw_state, jit_train_step, plan_state

_DEVICES = 8
_LEVELS = {"objective": "next_token", "token_periods": (4, 8)}
_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in names()
} | {
    "hope-next_token": ("hope", {"cms": _LEVELS}),
    "transformer-m3": ("transformer", {}),
    "transformer-muon": ("transformer", {}),
}
MESHES = {
    "x".join(map(str, shape)): shape
    for shape in itertools.product((1, 2, 4, 8), repeat=3)
    if np.prod(shape) == _DEVICES
}
ONE = "1x1x1"
FLAGS = {
    "models": flags.words(list(_CASES), "Which to train.", _CASES),
    "meshes": flags.words(
        list(MESHES), "Devices along data, fsdp and tensor.", MESHES
    ),
    "steps": flags.integer(20, "Steps of each run."),
    "rate": flags.number(1e-3, "Rate of learning.", 0.0),
    "out": flags.folder("runs/equal_meshes", "Folder for the losses."),
}


def main(values: flags.FlagValues) -> None:
    """Trains what is missing, and prints a table."""
    # Nothing of JAX has run before in this process.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", _DEVICES)
    meshes = list(values.meshes)
    rows = []
    for name in values.models:
        alone, *others = (_kept(name, mesh, values) for mesh in [ONE, *meshes])
        found = [difference(other, alone) for other in others]
        rows.append([name, *(f"{value:.1e}" for value in found)])
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
    file = folder / f"{name},{mesh},{values.steps},{values.rate}.json"
    if not file.exists():
        found = losses(name, mesh, values.steps, values.rate)
        folder.mkdir(parents=True, exist_ok=True)
        training.write_json(file, found)
    return json.loads(file.read_text())


def losses(name: str, mesh: str, steps: int, rate: float) -> list[float]:
    """Returns the losses of a run on this process's devices.

    Args:
        name: model, by its label.
        mesh: devices along each axis, such as ``"2x2x2"``.
        steps: number of steps.
        rate: constant rate of learning.
    """
    base, overrides = _CASES[name]
    optimizer = name.removeprefix("transformer-")
    data, fsdp, tensor = map(int, mesh.split("x"))
    config = training.TrainConfig(
        model=configure(
            base, d_model=64, n_heads=8, n_layers=2, vocab_size=64, **overrides
        ),
        optimizer=training.OptimizerConfig(
            rate,
            1,
            schedule="constant",
            name=optimizer if optimizer in ("m3", "muon") else "adamw",
        ),
        mesh=training.MeshConfig(data, fsdp, tensor),
        steps=steps,
        batch_size=8,
        seq_len=32,
    )
    model = LanguageModel(config.model)
    devices = mesh_lib.make_mesh(
        config.mesh, jax.devices()[: data * fsdp * tensor]
    )
    tokens = np.random.default_rng(0).integers(0, 64, (steps, 8, 33))
    tokens[..., 1::2] = tokens[..., :-1:2]  # Something to learn.
    found = []
    with jax.set_mesh(devices), mesh_lib.computing(config.mesh):
        tx, shapes = plan_state(config, model, devices)
        state = draw_state(config, model, tx, shapes)
        step = jit_train_step(config, model, tx, shapes, np.ones(64, int))
        for rows in tokens:
            batch = mesh_lib.global_batch(devices, Batch(rows.astype("int32")))
            state, metrics = step(state, batch)
            sums = jax.device_get(metrics["sums"])
            found.append(float(sums.nats) / rows[:, 1:].size)
    return found
