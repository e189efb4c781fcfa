"""Each device orthogonalises its share of the matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from nl_jax.errors import InputError
from nl_jax.optimizers import NAMED
from tests.devices import run_on_devices

STACK = MuonDimensionNumbers(1, 2)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
def test_muon_is_that_of_optax(nesterov, adaptive):
    options = {"nesterov": nesterov, "adaptive": adaptive, "beta": 0.9}
    tree = {"tall": draw(2, 8, 4), "wide": draw(3, 4, 8)}
    dims = dict.fromkeys(tree, STACK)
    ours = NAMED["muon"].build(dimension_numbers=dims, **options)
    optaxs = scale_by_muon(weight_dimension_numbers=dims, **options)
    states = [tx.init(tree) for tx in (ours, optaxs)]
    for step in range(3):
        grads = jax.tree.map(lambda a, s=step: jnp.roll(a, s), tree)
        (found, expected), states = zip(
            *(
                tx.update(grads, state)
                for tx, state in zip((ours, optaxs), states, strict=True)
            ),
            strict=True,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            (found, states[0]),
            (expected, states[1]),
        )


def test_normuon_divides_outputs_by_their_mean_squares_so_far():
    options = {"dimension_numbers": {"w": STACK}, "beta": 0.5}
    plain = NAMED["muon"].build(**options)
    ours = NAMED["muon"].build(**options, neuron_decay=0.75)
    w = {"w": draw(2, 8, 4)}
    states, squares = [tx.init(w) for tx in (plain, ours)], 0.0
    for _ in range(2):
        (muon, found), states = zip(
            plain.update(w, states[0]), ours.update(w, states[1]), strict=True
        )
        o = np.asarray(muon["w"])
        squares = 0.75 * squares + 0.25 * (o**2).mean(1, keepdims=True)
        expected = o / np.sqrt(squares)
        # As long as an orthogonal matrix of 8 x 4.
        norm = np.linalg.norm(expected, axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(
            found["w"], 2 * expected / norm, rtol=1e-4, atol=1e-6
        )
        w = {"w": w["w"][:, ::-1] + 1}
    with pytest.raises(InputError, match=r"neuron_decay=1 must be in \[0, 1\)"):
        NAMED["muon"].build(neuron_decay=1)


def test_muon_names_a_leaf_that_is_no_matrix():
    tx = NAMED["muon"].build()
    with pytest.raises(InputError, match=r"takes matrices; .* shape \(3,\)"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


RUN = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from experiments.pods import compiled_program
from nl_jax.optimizers import NAMED
from nl_jax.training.mesh import state_shardings
from tests.optimizers.test_by_share import STACK, draw
shapes_of = lambda tree: jax.eval_shape(lambda: tree)
names = "data", "fsdp", "tensor"
shape, kind = eval(sys.argv[1]), AxisType[sys.argv[2]]
mesh = jax.make_mesh(shape, names, axis_types=(kind,) * 3)
grads = {"up": draw(6, 64, 128), "down": draw(6, 128, 64), "b": draw(4, 2, 8)}
specs = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp"), P()
where = {n: NamedSharding(mesh, s) for n, s in zip(grads, specs)}
cut = jax.device_put(grads, where)
for name in ("muon", "m3", "nonlinear_output", "newton_schulz_memory"):
    tx = NAMED[name].build(dimension_numbers=dict.fromkeys(grads, STACK))
    expected, _ = jax.jit(tx.update)(grads, tx.init(grads))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(tx.init, cut)
        places = state_shardings(mesh, (shapes_of(cut), where), shapes)
        state = jax.device_put(tx.init(grads), places)
        update = jax.jit(tx.update, out_shardings=(where, places))
        program = update.lower(cut, state).compile()
        found, _ = program(cut, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-4), found, expected)
    program, entry = compiled_program.parse(program.as_text())
    times = compiled_program.runs(program, entry)
    print(name, compiled_program.collectives(program, times))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1, 8, 1), "Auto"), ((2, 2, 2), "Auto"), ((1, 8, 1), "Explicit")],
)
def test_matrices_are_handed_out_and_taken_back(shape, kind):
    """Twelve of 32 KiB, as 16 or twice 8: two go to each of eight devices."""
    out = run_on_devices(RUN, shape, kind)
    share = 2 * 4 * 64 * 128
    for line in out.splitlines():
        name, _, sent = line.partition(" ")
        sent = eval(sent)
        gathered = sent.pop("all-gather", (0, 0))[1]
        if shape == (1, 8, 1):
            assert gathered == 0
            there_and_back = {"m3": 4}.get(name, 2)
            assert sent.pop("all-to-all")[1] == there_and_back * share
            assert "collective-permute" not in sent
        else:  # One more axis to send along, and copies along data.
            assert 2 * share <= sent.pop("all-to-all")[1] <= 24 * share
            assert gathered <= 16 * share
        # Means over matrices, by which M3 divides.
        assert sent.pop("all-reduce", (0, 0))[1] <= 2**10
