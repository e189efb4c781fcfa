"""Where things lie, and that it does not change what is computed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nl_jax.errors import InputError
from nl_jax.models import to_json
from nl_jax.training import MeshConfig, OptimizerConfig, list_steps, train
from nl_jax.training.mesh import (
    check_batch,
    make_mesh,
    parameter_shardings,
    process_rows,
)
from tests.devices import run_on_devices

RUN = """
import json, pathlib, sys
import jax
from nl_jax.models import ModelConfig, configure
from nl_jax.data import DataConfig
from nl_jax.training import *
fields = json.loads(pathlib.Path(sys.argv[1], "config.json").read_text())
kinds = {"data": DataConfig, "optimizer": OptimizerConfig, "mesh": MeshConfig,
         "sample": SampleConfig}
model = configure(ModelConfig(), **fields.pop("model"))
nested = {name: kind(**fields.pop(name)) for name, kind in kinds.items()}
result = train(TrainConfig(model=model, **nested, **fields), sys.argv[1])
leaves = jax.tree.leaves(result.variables)
print(json.dumps([max(len(leaf.sharding.device_set) for leaf in leaves),
                  all(leaf.sharding.is_fully_replicated for leaf in leaves)]))
"""


def run_on_one(config, workdir):
    leaves = jax.tree.leaves(train(config, workdir).variables)
    return [
        max(len(leaf.sharding.device_set) for leaf in leaves),
        all(leaf.sharding.is_fully_replicated for leaf in leaves),
    ]


def run_on_eight(config, workdir):
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(to_json(config)))
    out = run_on_devices(RUN, workdir, devices=8)
    return json.loads(out.splitlines()[-1])


def losses(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return [r["loss"] for r in records if "loss" in r]


# M3's slow momentum moves at step 8.
@pytest.mark.parametrize(
    ("model", "name", "steps", "moved_at", "reading"),
    [
        ("transformer", "adamw", 6, 4, "windows"),
        pytest.param("hope", "adamw", 6, 4, "windows", marks=pytest.mark.slow),
        pytest.param("hope", "m3", 12, 10, "windows", marks=pytest.mark.slow),
        pytest.param(
            "mamba", "adamw", 6, 4, "contiguous", marks=pytest.mark.slow
        ),
    ],
)
def test_eight_devices_compute_what_one_does(
    tiny, documents, tmp_path, model, name, steps, moved_at, reading
):
    """Batch over 2, parameters over 2 x 2; then the run goes on on one, with
    the memory of its rows."""
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    # A rate that does not fall: the run that stops early is not a shorter one.
    optimizer = OptimizerConfig(1e-2, 2, final_rate=1.0, name=name)
    config = tiny(
        model,
        data=documents(reading),
        optimizer=optimizer,
        steps=steps,
        batch_size=8,
        checkpoint_every=steps,
        accept_new_config=True,
    )
    sharded = dataclasses.replace(config, mesh=mesh, steps=moved_at)
    alone = run_on_one(config, tmp_path / "one")
    assert run_on_eight(sharded, tmp_path / "eight") == [8, False]
    # One device finds the checksums that eight have added up.
    assert {s.step: s.problem for s in list_steps(tmp_path / "eight")} == {
        moved_at: ""
    }
    moved = run_on_one(config, tmp_path / "eight")
    assert alone == moved == [1, True]
    np.testing.assert_allclose(
        losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-4
    )
    assert len(losses(tmp_path / "eight")) == steps


def test_one_device_takes_any_rule():
    mesh = make_mesh(MeshConfig())
    axes = {"w": ("layers", "embed", "mlp"), "b": (None,)}
    shapes = {
        "w": jax.ShapeDtypeStruct((2, 3, 5), np.float32),
        "b": jax.ShapeDtypeStruct((7,), np.float32),
    }
    found = parameter_shardings(mesh, axes, shapes, MeshConfig().parameter_axes)
    assert found["w"].spec == PartitionSpec(None, "fsdp", "tensor")
    check_batch(mesh, 5)
    with pytest.raises(
        InputError, match=r"multiple of accumulate=2 \* mesh.da"
    ):
        check_batch(mesh, 5, accumulate=2)
    assert process_rows(mesh, 5) == [0, 1, 2, 3, 4]


def test_dimensions_that_do_not_divide_stay_whole():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}
    found = parameter_shardings(
        mesh, {"w": ("embed", "mlp")}, shapes, MeshConfig().parameter_axes
    )
    assert found["w"].spec == PartitionSpec(None, "tensor")
    for check in (check_batch, process_rows):
        with pytest.raises(InputError, match="batch_size=5 must be a multiple"):
            check(mesh, 5)


COMPILE = """
import re, sys
import jax, numpy as np
from nl_jax.data import Batch
from nl_jax.models import LanguageModel, configure
from nl_jax.training import MeshConfig, TrainConfig, make_mesh
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.step import make_train_step, plan_state
model = configure(sys.argv[1], d_model=32, n_heads=2, vocab_size=64)
config = TrainConfig(
    model=model, batch_size=24, seq_len=48, mesh=MeshConfig(fsdp=8)
)
mesh = make_mesh(config.mesh)
network = LanguageModel(model)
optimizer, shapes = plan_state(config, network, mesh)
tokens = jax.ShapeDtypeStruct(
    (24, 49), np.int32, sharding=mesh_lib.batch_sharding(mesh)
)
step = make_train_step(network, optimizer, np.ones(64, np.int32))
places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
with jax.set_mesh(mesh), mesh_lib.computing(config.mesh):
    step = jax.jit(step, out_shardings=(places, None))
    program = step.lower(shapes, Batch(tokens)).compile().as_text()
print(len(re.findall(r"\\[24,4[89],", program)), "all-gather" in program)
"""


@pytest.mark.parametrize(
    "name", ["transformer", pytest.param("hope", marks=pytest.mark.slow)]
)
def test_no_device_holds_the_activations_of_the_whole_batch(name):
    out = run_on_devices(COMPILE, name)
    assert out.split() == ["0", "True"]
