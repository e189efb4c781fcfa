"""A sequence over several devices: everything equals that of one device."""

import re

import pytest

from nl_jax.data import DataConfig
from nl_jax.errors import InputError
from nl_jax.models import configure
from nl_jax.models.sequence_axis import bubble
from nl_jax.training import MeshConfig, TrainConfig
from tests.devices import run_on_devices

PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from nl_jax.models import build
from nl_jax.training import MeshConfig, make_mesh
from nl_jax.training.mesh import computing

options = {"titans": {"chunk_size": 8, "memory_chunk_size": 8}}
model = build(sys.argv[1], d_model=16, n_heads=2, n_layers=3, **options)
tokens = jax.random.randint(jax.random.key(1), (2, 64), 0, 256)
variables = jax.jit(model.init)(jax.random.key(0), tokens)
config = MeshConfig(data=2, sequence=4)
weights = jax.random.normal(jax.random.key(2), (2, 64, 256))

def answer(variables):
    def loss(variables):
        logits, state = model.apply(variables, tokens)
        return (logits * weights).sum(), (logits, state)
    return jax.grad(loss, has_aux=True)(variables)

alone = jax.jit(answer)(variables)
with jax.set_mesh(make_mesh(config)), computing(config):
    program = jax.jit(lambda v: answer(v))
    found = program(variables)
    print(jax.make_jaxpr(answer)(variables))

def same(path, a, b):
    scale = np.abs(b).max() + 1e-6
    np.testing.assert_allclose(a / scale, b / scale, atol=1e-4, err_msg=path)

flat = jax.tree_util.tree_leaves_with_path(alone)
for (path, b), a in zip(flat, jax.tree.leaves(found), strict=True):
    same(str(path), a, b)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated-deltanet", "hope", "transformer"])
def test_logits_states_and_gradients_are_those_of_one_device(name):
    printed = run_on_devices(PROGRAM, name)
    # Three blocks and four devices: six turns, in both directions.
    assert "ppermute" in printed
    assert len(re.findall(r"\blength=6\b", printed)) >= 2


def test_devices_wait_only_in_the_beginning_and_the_end():
    assert bubble(5, 1) == 0
    assert bubble(6, 3) == 2 / 8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"data": DataConfig(reading="packed")},
            "mesh.sequence=2 must be 1 with data.reading='packed'; it goes "
            "with 'windows'",
        ),
        (
            {
                "model": configure(
                    "transformer",
                    cms={"objective": "next_token", "token_periods": (16,)},
                )
            },
            "mesh.sequence=2 must be 1 with model.cms.objective='next_token', "
            "whose levels learn in context",
        ),
        (
            {"seq_len": 33, "model": configure("transformer")},
            "seq_len=33 must be a multiple of mesh.sequence * 1 tokens = 2",
        ),
    ],
)
def test_what_cannot_be_cut_is_refused(changes, words):
    with pytest.raises(InputError, match=re.escape(words)):
        TrainConfig(mesh=MeshConfig(sequence=2), **changes)
