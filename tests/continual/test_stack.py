"""A pretrained transformer's MLPs as levels that learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax import continual
from nl_jax.models import build
from nl_jax.pretrained import Pretrained, load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.conftest import apply, assert_same
from tests.continual.pretrained_files import GPT2, LLAMA
from tests.training.conftest import draw

PERIODS = (4, 8)
IDS = np.random.default_rng(0).integers(0, 23, (2, 20))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pretrained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "m"
    if request.param == "llama":
        files.write(folder, LLAMA, files.llama_weights(LLAMA))
    else:
        files.write(folder, GPT2, files.gpt2_weights(GPT2))
    return load_pretrained(folder)


@pytest.fixture(scope="module")
def stacked(pretrained):
    return continual.stack_levels(pretrained, PERIODS, rate=1e-3, layers=2)


def read(pretrained, tokens, size=None):
    """Logits of pieces of some size (by default all), and the state."""
    model, variables = pretrained.model, pretrained.variables
    state, found = model.init_state(variables, len(tokens)), []
    size = size or tokens.shape[1]
    for at in range(0, tokens.shape[1], size):
        piece = jnp.asarray(tokens[:, at : at + size])
        logits, state = apply(model, variables, piece, state)
        found.append(logits)
    return jnp.concatenate(found, 1), state


def test_at_rate_0_it_is_the_transformer_bit_for_bit(pretrained):
    stacked = continual.stack_levels(pretrained, PERIODS, rate=0, layers=0)
    config = stacked.model.config
    assert (config.name, config.cms.placement) == ("hope-attention", "depth")
    for size in (5, 1):  # Many tokens at once, and the same one by one.
        expected, _ = read(pretrained, IDS, size)
        found, _ = read(stacked, IDS, size)
        np.testing.assert_array_equal(found, expected)


def test_each_level_starts_as_the_mlps_of_its_blocks_and_learns(
    pretrained, stacked
):
    start = stacked.model.init_state(stacked.variables, 2).cms.fast
    cms = pretrained.variables["params"]["blocks"]["cms"]
    for level, block in zip(start, (1, 2), strict=True):
        for name, weights in level.items():
            slow = cms[f"level_1_{name}"][block]
            assert slow.ndim == 2  # Biases stay slow.
            for row in weights:
                np.testing.assert_array_equal(row[0], slow)
    static, _ = read(pretrained, IDS, 5)
    learning, state = read(stacked, IDS, 5)
    # Nothing was learned before the first step, after 4 tokens.
    np.testing.assert_allclose(learning[:, :4], static[:, :4], atol=1e-5)
    assert abs(learning[:, 4:] - static[:, 4:]).max() > 1e-3
    # A row's first step is down its own loss.
    model, params = stacked.model, stacked.variables["params"]

    def loss(fast):
        logits, _ = model.forward(params, jnp.asarray(IDS[:, :4]), None, fast)
        losses = -jax.nn.log_softmax(logits[:, :-1])
        at = jnp.asarray(IDS[:, 1:4, None])
        return jnp.take_along_axis(losses, at, -1).sum()

    gradient = jax.jit(jax.grad(loss))(start)[0]
    _, after = read(stacked, IDS[:, :5])
    for name, weights in after.cms.fast[0].items():
        expected = start[0][name] - 1e-3 * gradient[name]
        np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert continual.inspect(model, stacked.variables, state).finite


@pytest.mark.parametrize(
    "pretrained",
    ["llama", pytest.param("gpt2", marks=pytest.mark.slow)],
    indirect=True,
)
def test_learning_streams_at_any_split(stacked):
    whole, expected = read(stacked, IDS)
    parts, state = read(stacked, IDS, 5)  # Cut inside a period.
    np.testing.assert_allclose(parts, whole, atol=2e-4)
    assert_same(state, expected, atol=2e-4)


def test_parameters_are_those_that_the_model_declares(pretrained, stacked):
    for found in (pretrained, stacked):
        declared = jax.eval_shape(
            found.model.init, jax.random.key(0), jnp.zeros((1, 1), int)
        )
        shapes = jax.tree.map(lambda a: (a.shape, a.dtype.name), declared)
        own = jax.tree.map(lambda a: (a.shape, a.dtype.name), found.variables)
        assert own == shapes
        axes = found.model.logical_axes()
        assert jax.tree.map(lambda a: a.ndim, found.variables) == jax.tree.map(
            len, axes, is_leaf=lambda leaf: isinstance(leaf, tuple)
        )


def test_more_tokens_than_positions_are_read():
    """Beyond the window, and the last learned position, streams go on."""
    model = build(
        "transformer",
        d_model=8,
        n_heads=2,
        n_layers=1,
        learned_positions=True,
        attention={"window": 4, "rope_base": None, "conv_width": 0},
    )
    tokens = jnp.arange(10)[None]
    variables = draw(model, jax.random.key(0), tokens)
    assert variables["params"]["positions"].shape == (4, 8)
    found = Pretrained(model, variables)
    whole, _ = read(found, tokens)
    np.testing.assert_allclose(read(found, tokens, 1)[0], whole, atol=1e-5)
    # Places count: the same token elsewhere has other logits.
    other, _ = read(found, np.array([[7, 7]]), 1)
    assert abs(other[0, 0] - other[0, 1]).max() > 1e-3


def test_what_cannot_be_stacked_is_one_line(pretrained):
    model = build("hope", d_model=16, n_heads=2)
    with pytest.raises(ValueError, match="needs a transformer with one MLP"):
        continual.stack_levels(Pretrained(model, {}), PERIODS)
    for arguments, words in (
        ({"periods": (3, 4)}, "each must divide the next"),
        ({"periods": (1,)}, "at least 2 tokens"),
        ({"rate": -1.0}, "cms.rate=-1.0"),
        ({"layers": 4}, "cms.layers=4 must be at most"),
        ({"layers": 1}, "each level needs a block"),
        ({"inner": "lion"}, "cms.inner='lion'"),
    ):
        arguments = {"periods": PERIODS} | arguments
        with pytest.raises(ValueError, match=words):
            continual.stack_levels(pretrained, **arguments)
    with pytest.raises(ValueError, match="does not exist"):
        continual.stack_levels("nowhere", PERIODS)
    stacked = continual.stack_levels(pretrained, PERIODS)
    with pytest.raises(ValueError, match="needs a transformer"):
        continual.stack_levels(stacked, PERIODS)
