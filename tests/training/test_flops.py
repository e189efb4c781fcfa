"""Operations counted in programs and from equations."""

import jax
import jax.numpy as jnp
import pytest

from nl_jax.models import build
from nl_jax.training.flops import count_flops, model_flops

LENGTH = 512


def count(function, *shapes, platform="tpu"):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arrays), platform)


def test_scans_count_as_often_as_they_run():
    def steps(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0].sum()

    forward = 7 * 2 * 3 * 5 * 5
    assert count(steps, (3, 5), (7, 5, 5)) == forward
    # Backwards a product for each factor.
    gradient = jax.grad(steps, argnums=(0, 1))
    assert count(gradient, (3, 5), (7, 5, 5)) == 3 * forward


def test_recomputation_counts():
    def loss(w, x):
        return jnp.sin(jax.checkpoint(lambda w: jnp.sin(x @ w) @ w)(w)).sum()

    # Forwards 2 products; backwards the first again, and 3 gradients: not that
    # of x.
    assert count(jax.grad(loss), (4, 4), (2, 4)) == 6 * 2 * 2 * 4 * 4


def test_branches_of_another_platform_do_not_count():
    def either(x):
        return jax.lax.platform_dependent(
            x, tpu=lambda x: x @ x @ x, default=lambda x: x @ x
        )

    assert count(either, (4, 4)) == 2 * 128
    assert count(either, (4, 4), platform="cpu") == 128


def test_convolutions_and_batches_of_products():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID")

    # 8 outputs of 5 features, each of 3 taps of 2 channels.
    assert count(convolve, (1, 2, 10), (5, 2, 3)) == 2 * 8 * 5 * 3 * 2
    assert count(jnp.matmul, (6, 2, 3), (6, 3, 4)) == 6 * 2 * 2 * 3 * 4


def test_devices_count_together():
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "tensor"), auto)
    rows = jax.P("data")

    def multiply(x, w):
        run = jax.shard_map(
            jnp.matmul, in_specs=(rows, jax.P()), out_specs=rows, mesh=mesh
        )
        return run(x, w)

    # Both devices along ``tensor`` compute the same.
    assert count(multiply, (8, 3), (3, 5)) == 2 * (2 * 8 * 3 * 5)


BESIDES = """comba dla gla hope-attention linear-attention longhorn lstm mamba
miras-yaad oja retnet rwkv7 titans-mag titans-mal ttt-linear ttt-mlp"""


@pytest.mark.parametrize(
    "name",
    [
        *("transformer", "deltanet", "gated-deltanet", "titans", "hope"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in BESIDES.split()),
    ],
)
def test_equations_and_programs_agree_within_a_tenth(name):
    agrees(build(name, **SIZES))


@pytest.mark.parametrize("objective", ["next_token", "local"])
def test_levels_that_learn_in_context(objective):
    cms = {"objective": objective, "layers": 1}
    agrees(build("hope-attention", **SIZES, cms=cms))


SIZES = {"vocab_size": 1024, "d_model": 256, "n_heads": 2, "n_layers": 2}


def agrees(model):
    """Compares three times the forward pass, as programs without kernels."""
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda v, t: model.apply(v, t)[0])(
        model.parameter_shapes(), tokens
    )
    walked = 3 * count_flops(jaxpr, "cpu") / LENGTH
    assert model_flops(model, LENGTH) == pytest.approx(walked, rel=0.1)


def gradient_flops(name, remat):
    model = build(name, **SIZES, remat=remat)
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    gradient = jax.grad(lambda v, t: model.apply(v, t)[0].sum())
    variables = model.parameter_shapes()
    return count_flops(jax.make_jaxpr(gradient)(variables, tokens))


def test_policies_recompute_what_their_names_say():
    none, dots, blocks = (
        gradient_flops("transformer", remat)
        for remat in ("none", "dots", "blocks")
    )
    layers, width, hidden = 2, 256, 4 * 256
    # Attention multiplies by keys and by values.
    assert dots - none == layers * 2 * (2 * LENGTH**2 * width)
    # Nothing needs the outputs of the last matrix, ``down``.
    matrices = 4 * width**2 + 2 * width * hidden
    assert blocks - dots == layers * 2 * LENGTH * matrices


def test_kernels_run_once_forwards_where_their_results_are_kept():
    none, kernels, dots = (
        gradient_flops("gated-deltanet", remat)
        for remat in ("none", "kernels", "dots")
    )
    assert none == kernels < dots


def test_reads_of_kept_memories_count():
    sizes = {"d_model": 128, "n_heads": 4, "n_layers": 2}
    plain, cached = (
        model_flops(build("deltanet", cache={"segment": size}, **sizes), 256)
        for size in (0, 64)
    )
    # In four segments 0 to 3 memories are kept: 4 matrices of 32 x 32 each,
    # and a mean of 128 inputs for the gate, besides its projection.
    reads = 1.5 * (4 * 32 * 32 + 128)
    assert cached - plain == 3 * 2 * 2 * (reads + 128 * 128)
