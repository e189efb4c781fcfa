"""Each device holds its share of parameters and optimizers' states."""

import functools
import math

import jax
import pytest

from nl_jax.models import build, names
from nl_jax.optimizers import NAMED
from nl_jax.training.mesh import parameter_shardings, state_shardings
from nl_jax.training.mesh_config import MeshConfig
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.train_config import OptimizerConfig

MESHES = {"fsdp 8": (1, 8, 1), "fsdp 4, tensor 2": (1, 4, 2)}
QUICK = {("transformer", "deep_momentum"), ("transformer", "adamw")}


@functools.cache
def _parameters(name):
    model = build(name, preset="1.3b")
    return model, model.logical_axes(), model.parameter_shapes()


def _bytes(shape, leaf):
    return math.prod(shape) * leaf.dtype.itemsize


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        pytest.param(
            name,
            optimizer,
            marks=[] if (name, optimizer) in QUICK else pytest.mark.slow,
        )
        for name in names()
        for optimizer in NAMED
    ],
)
def test_a_device_holds_its_share(name, optimizer):
    model, axes, shapes = _parameters(name)
    # SRWM's MLPs are wider than a memory of gradients may be by default.
    wide = {"max_width": 2**14} if optimizer == "deep_momentum" else {}
    config = OptimizerConfig(name=optimizer, options=wide)
    transform = make_optimizer(
        config, 10, axes, model.parameter_periods(shapes)
    )
    state = jax.eval_shape(transform.init, shapes)
    for shape in MESHES.values():
        mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "tensor"))
        where = parameter_shardings(
            mesh, axes, shapes, MeshConfig().parameter_axes
        )
        places = where, state_shardings(mesh, (shapes, where), state)
        arrays = jax.tree.leaves((shapes, state))
        held = [
            _bytes(place.shard_shape(leaf.shape), leaf)
            for leaf, place in zip(arrays, jax.tree.leaves(places), strict=True)
        ]
        total = sum(_bytes(leaf.shape, leaf) for leaf in arrays)
        assert sum(held) <= 1.1 * total / 8
