"""Every model: streams, causality, independence, gradients, compilation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.models import PRESETS, ModelConfig, build, configure, names

LENGTH, VOCAB = 11, 13
TINY = {
    "vocab_size": VOCAB,
    "d_model": 8,
    "n_layers": 2,
    "n_heads": 2,
    "titans": {"chunk_size": 4, "memory_chunk_size": 2},
    "attention": {"window": 6},
    "matrix": {"chunk_size": 4},
    "deep": {"chunk_size": 4, "expansion": 2},
    "titans_attention": {
        "memory": {"chunk_size": 4, "expansion": 2},
        "attention": {"window": 6, "persistent": 2},
    },
    "mamba": {"chunk_size": 4, "state_size": 3},
    "samba": {
        "mamba": {"chunk_size": 4, "state_size": 3},
        "attention": {"window": 6},
    },
    "srwm": {"chunk_size": 4},
}
LEVELS = {"objective": "next_token", "periods": (4, 8), "rate": 0.1}
CASES = {name: (name, {}) for name in names()} | {
    # Behind a layer norm of four channels float32 keeps no five digits.
    "miras-moneta": ("miras-moneta", {"n_heads": 1}),
    "miras-memora": ("miras-memora", {"n_heads": 1}),
    "hope-next-token": ("hope", {"cms": LEVELS}),
    "hope-attention-last-block": (
        "hope-attention",
        {"cms": LEVELS | {"layers": 1}, "tie_embeddings": False},
    ),
    "hope-attention-depth": (
        "hope-attention",
        {"cms": LEVELS | {"placement": "depth", "layers": 3}, "n_layers": 4},
    ),
    "lstm-local-last-block": (
        "lstm",
        {"cms": LEVELS | {"objective": "local", "layers": 1}},
    ),
    "hope-remat": ("hope", {"remat": True}),
}


def make(case, **overrides):
    name, more = CASES[case]
    model = build(name, **TINY | more | overrides)
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, VOCAB)
    return model, model.init(jax.random.key(1), tokens), tokens


# Their mixers are other choices of layers that quick cases have, and equal
# their papers in tests/memory.
ALIKE = (
    "comba",
    "dla",
    "gated-deltanet",
    "gla",
    "longhorn",
    "mamba",
    "oja",
    "retnet",
    "titans-mag",
    "titans-mal",
    "ttt-linear",
)
# Second derivatives of a memory's scan take a minute to compile.
SLOW = (*ALIKE, "hope-next-token")


def marked(name, *more):
    marks = pytest.mark.slow if name in SLOW else ()
    return pytest.param(name, *more, marks=marks)


EXACT = [marked(name, "float64") for name in CASES]
ROUNDED = [marked(name, "float32") for name in names()]


@pytest.fixture(params=map(marked, CASES))
def case(request):
    return make(request.param)


@pytest.mark.parametrize(("name", "dtype"), EXACT + ROUNDED)
def test_whole_equals_any_split_equals_token_by_token(name, dtype):
    """Exact in float64, states too; float32 rounds at the logits' scale."""
    with jax.enable_x64(dtype == "float64"):
        model, variables, tokens = make(name, dtype=dtype)
        variables = jax.tree.map(lambda a: a.astype(dtype), variables)
        apply = jax.jit(model.apply)
        whole, end = apply(variables, tokens)
        for sizes in ([1] * LENGTH, [3, 8], [8, 3]):
            state, outs, at = model.init_state(variables, 2), [], 0
            for size in sizes:
                y, state = apply(variables, tokens[:, at : at + size], state)
                outs.append(y)
                at += size
            outs = jnp.concatenate(outs, 1)
            if dtype == "float32":
                bound = 1e-5 * np.abs(whole).max()
                np.testing.assert_allclose(outs, whole, atol=bound, rtol=0)
                continue
            ends = [state, end]
            if end.cms is not None:  # Held tokens of closed chunks may differ.
                ends = [(s.mixers, s.cms.fast, s.cms.gathered) for s in ends]
            leaves = map(jax.tree.leaves, ((outs, ends[0]), (whole, ends[1])))
            for a, b in zip(*leaves, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-10, rtol=0)


def test_changing_a_token_changes_nothing_before_it_or_beside_it(case):
    model, variables, tokens = case
    apply = jax.jit(lambda t: model.apply(variables, t)[0])
    other = tokens.at[0, 6].set((tokens[0, 6] + 1) % VOCAB)
    a, b = apply(tokens), apply(other)
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0, :6], b[0, :6], atol=1e-6)
    assert np.abs(a[0, 6:] - b[0, 6:]).max(-1).min() > 0


def test_gradients_reach_every_parameter(case):
    model, variables, tokens = case

    def loss(variables):
        logits, _ = model.apply(variables, tokens)
        return jnp.sin(3 * logits).sum()

    grads = jax.jit(jax.grad(loss))(variables)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        per_layer = leaf if "blocks" in str(path) else leaf[None]
        # Static blocks have no use for what only inner steps read.
        inner = ("log_rate", "_key", "_value")
        if "cms" in str(path) and str(path[-1].key).endswith(inner):
            per_layer = leaf[-(model.config.cms.layers or len(leaf)) :]
        for layer, g in enumerate(per_layer):
            name = f"{jax.tree_util.keystr(path)} layer {layer}"
            assert np.isfinite(g).all() and np.abs(g).max() > 0, name


def test_second_call_does_not_compile_again(case):
    model, variables, tokens = case
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(model.apply, n=2))
    _, state = apply(variables, tokens)  # Fresh is one trace, a stream another.
    for _ in range(2):
        _, state = apply(variables, tokens, state)


def test_remat_changes_nothing():
    model, variables, tokens = make("hope")
    again, _, _ = make("hope-remat")
    np.testing.assert_array_equal(
        model.apply(variables, tokens)[0], again.apply(variables, tokens)[0]
    )


def test_bfloat16_model_keeps_float32_parameters_and_logits():
    model, variables, tokens = make("hope")
    low, low_variables, _ = make("hope", dtype="bfloat16")
    chex.assert_trees_all_equal(variables, low_variables)
    logits, _ = model.apply(variables, tokens)
    logits16, state = low.apply(variables, tokens)
    assert logits16.dtype == jnp.float32
    assert state.mixers.memory.weights[0].dtype == jnp.float32
    np.testing.assert_allclose(logits16, logits, atol=0.3)


def test_logical_axes_match_every_parameter(case):
    model, variables, _ = case
    axes = model.logical_axes()

    def check(leaf, names):
        assert len(names) == leaf.ndim

    jax.tree.map(check, variables, axes)
    blocks = jax.tree.leaves(
        axes["params"]["blocks"], is_leaf=lambda a: isinstance(a, tuple)
    )
    assert all(names[0] == "layers" for names in blocks)


def test_periods_of_outer_levels_go_to_the_optimizer():
    model, variables, _ = make("hope")
    periods = model.parameter_periods(variables)["params"]["blocks"]
    assert periods["cms"]["level_1_up"] == 1
    assert periods["cms"]["level_2_up"] == 4
    assert periods["mixer"]["w_out"] == 1


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("125m", (90, 180)), ("760m", (600, 1000)), ("1.3b", (1000, 1700))],
)
@pytest.mark.parametrize("name", names())
def test_large_presets_have_the_size_they_are_named_for(name, preset, millions):
    model = build(name, preset=preset)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    assert millions[0] < count < millions[1]
    assert model.config.vocab_size == 32_000


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: build("gpt"), "model 'gpt' does not exist; there are"),
        (lambda: build("hope", preset="huge"), "preset='huge' must be one of"),
        (lambda: build("hope", width=3), "unknown field width"),
        (
            lambda: build("hope", titans={"chunks": 3}),
            "unknown field titans.chunks",
        ),
        (lambda: build("hope", n_heads=3), "n_heads=3 must divide d_model=128"),
        (
            lambda: build("hope", cms={"periods": (4, 6)}),
            "4 does not divide 6",
        ),
        (
            lambda: build(
                "hope", cms={"objective": "next_token", "periods": (8, 16)}
            ),
            "the fastest, 8, must be a multiple of 16 tokens",
        ),
        (
            lambda: build(
                "transformer",
                cms={"objective": "next_token", "periods": (4,), "layers": 5},
            ),
            "cms.layers=5 must be at most n_layers=2",
        ),
        (
            lambda: build(
                "transformer",
                cms=LEVELS | {"placement": "depth", "layers": 1},
            ),
            "each level needs a block that learns in context; there are 1",
        ),
    ],
)
def test_bad_configurations_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_bad_tokens_are_named():
    model, variables, _ = make("transformer")
    with pytest.raises(ValueError, match="needs \\[batch, length >= 1\\]"):
        model.apply(variables, jnp.zeros((3,), jnp.int32))
    with pytest.raises(ValueError, match="needs integers"):
        model.apply(variables, jnp.zeros((1, 3)))


def test_a_configuration_can_be_changed_and_rebuilt():
    config = configure("hope", d_model=64)
    assert isinstance(config, ModelConfig)
    assert build(config, n_layers=3).config.n_layers == 3
    assert set(PRESETS) == {"tiny", "small", "125m", "760m", "1.3b"}
