"""Where things lie, and that it does not change what is computed."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nl_jax.errors import InputError
from nl_jax.training import MeshConfig, OptimizerConfig, to_json
from nl_jax.training.mesh import check_batch, make_mesh, parameter_shardings
from tests.devices import run_on_devices

RUN = """
import json, pathlib, sys
import jax
from nl_jax.models import configure
from nl_jax.data import DataConfig
from nl_jax.training import *
here = pathlib.Path(sys.argv[1])
fields = json.loads((here / "config.json").read_text())
config = TrainConfig(
    model=configure("hope", **fields["model"]),
    data=DataConfig(**fields["data"]),
    optimizer=OptimizerConfig(**fields["optimizer"]),
    mesh=MeshConfig(**json.loads(sys.argv[3])),
    steps=int(sys.argv[2]), batch_size=8, seq_len=16, eval_every=0,
    checkpoint_every=2, accept_new_config=True,
)
result = train(config, here)
spread = {
    len(leaf.sharding.device_set) for leaf in jax.tree.leaves(result.variables)
}
whole = all(
    leaf.sharding.is_fully_replicated
    for leaf in jax.tree.leaves(result.variables)
)
print(json.dumps([max(spread), whole, result.held_out_bits_per_byte]))
"""


def run(workdir, devices, steps, mesh):
    out = run_on_devices(RUN, workdir, steps, json.dumps(mesh), devices=devices)
    return json.loads(out.splitlines()[-1])


def losses(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return [r["loss"] for r in records if "loss" in r]


# M3's slow momentum moves at step 8.
@pytest.mark.parametrize(
    ("name", "steps", "moved_at"),
    [("adamw", 6, 4), pytest.param("m3", 12, 10, marks=pytest.mark.slow)],
)
def test_eight_devices_compute_what_one_does(
    tiny, tmp_path, name, steps, moved_at
):
    """Batch over 2, parameters over 2 x 2; then the run goes on on one."""
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    # A rate that does not fall: the run that stops early is not a shorter one.
    optimizer = OptimizerConfig(1e-2, 2, final_rate=1.0, name=name)
    config = to_json(tiny("transformer", optimizer=optimizer))
    for folder in ("one", "eight"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    alone = run(tmp_path / "one", 1, steps, {})
    first = run(tmp_path / "eight", 8, moved_at, mesh)
    assert first[:2] == [8, False]
    moved = run(tmp_path / "eight", 1, steps, {})
    assert alone[:2] == moved[:2] == [1, True]
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
    found = parameter_shardings(mesh, axes, shapes)
    assert found["w"].spec == PartitionSpec(None, "fsdp", "tensor")
    check_batch(mesh, 5)


def test_dimensions_that_do_not_divide_stay_whole():
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    shapes = {"w": jax.ShapeDtypeStruct((3, 4), np.float32)}
    found = parameter_shardings(mesh, {"w": ("embed", "mlp")}, shapes)
    assert found["w"].spec == PartitionSpec(None, "tensor")
    with pytest.raises(InputError, match="batch_size=5 must be a multiple"):
        check_batch(mesh, 5)
