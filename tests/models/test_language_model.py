"""Every model: streams, causality, independence, gradients, compilation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.models import build, names

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
LEVELS = {"objective": "next_token", "token_periods": (4, 8), "rate": 0.1}
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
    "hope-remat": ("hope", {"remat": "blocks"}),
    "hope-cached": ("hope", {"cache": {"segment": 4, "segments": 2}}),
    "deltanet-cached": (
        "deltanet",
        {"cache": {"segment": 4, "segments": 2, "restart": True}},
    ),
}


# Their mixers are other choices of layers that quick cases have, and equal
# their papers in tests/memory.
ALIKE = (
    "comba",
    "dla",
    "gated-deltanet",
    "gla",
    "hope-paper",
    "longhorn",
    "mamba",
    "oja",
    "retnet",
    "titans-mag",
    "titans-mal",
    "ttt-linear",
)
# Second derivatives of a memory's scan take long to compile, and so do levels
# across depth; a quick test compares hope-remat with hope.
SLOW = (
    *ALIKE,
    "hope-next-token",
    "hope-attention-depth",
    "hope-remat",
    "hope-cached",
)
# One case of each mixer, and levels in blocks of their own.
EXACT = (
    "deltanet",
    "hope",
    "hope-attention-last-block",
    "lstm",
    "lstm-local-last-block",
    "mamba",
    "srwm",
    "titans",
    "titans-mac",
    "transformer",
)


class Bench:
    """A model with the three programs that all of its tests share."""

    def __init__(self, case, dtype="float32"):
        name, more = CASES[case]
        self.model = build(name, **TINY | more | {"dtype": dtype})
        self.dtype = dtype
        self.tokens = jax.random.randint(
            jax.random.key(0), (2, LENGTH), 0, VOCAB
        )
        # Parameters are float32 in models of every dtype.
        self.variables = jax.tree.map(
            lambda a: a.astype(dtype),
            jax.jit(self.model.init)(jax.random.key(1), self.tokens)
            if dtype == "float32"
            else bench(case).variables,
        )
        self.traces = []
        self.apply = jax.jit(self._apply)
        self.read = jax.jit(self.model.apply)
        self.learn = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    @functools.cached_property
    def state(self):
        """The state that two rows begin with."""
        initial = jax.jit(self.model.init_state, static_argnums=1)
        return initial(self.variables, 2)

    def _apply(self, variables, tokens, state):
        self.traces.append(tokens.shape)
        return self.model.apply(variables, tokens, state)

    def _loss(self, variables, tokens):
        logits, state = self.model.apply(variables, tokens)
        loss = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], tokens[:, 1:]
        ).mean()
        return loss, (logits, state)

    def whole(self, tokens=None):
        """Logits and the state behind all tokens in one call."""
        tokens = self.tokens if tokens is None else tokens
        if self.dtype == "float64":  # Nothing else needs its gradient.
            return self.read(self.variables, tokens)
        return self.learn(self.variables, tokens)[0][1]

    def in_parts(self, sizes):
        """Logits and the state behind tokens that come in several calls."""
        state, outs, at = self.state, [], 0
        for size in sizes:
            y, state = self.apply(
                self.variables, self.tokens[:, at : at + size], state
            )
            outs.append(y)
            at += size
        return jnp.concatenate(outs, 1), state


@functools.cache
def bench(case, dtype="float32"):
    return Bench(case, dtype)


def over_cases(cases, slow):
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(c, marks=pytest.mark.slow) if c in slow else c
            for c in cases
        ],
        scope="module",
    )


every_case = over_cases(CASES, SLOW)


def splits(length, sizes=(1, 5)):
    """Every way to cut ``length`` into parts of these sizes."""
    if not length:
        return [[]]
    return [
        [size, *rest]
        for size in sizes
        if size <= length
        for rest in splits(length - size, sizes)
    ]


@pytest.mark.smoke
@over_cases(
    [*names(), "hope-attention-last-block", "hope-next-token"],
    ("hope-next-token",),
)
def test_one_training_step_lowers_the_loss(case):
    it = bench(case)
    (before, _), grads = it.learn(it.variables, it.tokens)
    moved = jax.tree.map(lambda p, g: p - 0.05 * g, it.variables, grads)
    (after, _), _ = it.learn(moved, it.tokens)
    assert np.isfinite(before) and after < before


@every_case
def test_gradients_reach_every_parameter(case):
    it = bench(case)
    _, grads = it.learn(it.variables, it.tokens)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        per_layer = leaf if "blocks" in str(path) else leaf[None]
        # Static blocks have no use for what only inner steps read.
        inner = ("log_rate", "_key", "_value")
        if "cms" in str(path) and str(path[-1].key).endswith(inner):
            per_layer = leaf[-(it.model.config.cms.layers or len(leaf)) :]
        for layer, g in enumerate(per_layer):
            name = f"{jax.tree_util.keystr(path)} layer {layer}"
            assert np.isfinite(g).all() and np.abs(g).max() > 0, name


@every_case
def test_changing_a_token_changes_nothing_before_it_or_beside_it(case):
    it = bench(case)
    other = it.tokens.at[0, 6].set((it.tokens[0, 6] + 1) % VOCAB)
    (a, _), (b, _) = it.whole(), it.whole(other)
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(a[0, :6], b[0, :6], atol=1e-6)
    assert np.abs(a[0, 6:] - b[0, 6:]).max(-1).min() > 0


@every_case
def test_any_split_equals_the_whole_and_compiles_once(case):
    """As float32 rounds, at the scale of the logits."""
    it = bench(case)
    whole, end = it.whole()
    bound = 1e-5 * np.abs(whole).max()
    for sizes in splits(LENGTH):
        outs, state = it.in_parts(sizes)
        np.testing.assert_allclose(outs, whole, atol=bound, rtol=0)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, end)
    assert sorted(it.traces) == [(2, 1), (2, 5)]


def check_exact_parts(case, sizes):
    """Logits and states in float64."""
    with jax.enable_x64(True):
        it = bench(case, "float64")
        whole, end = it.whole()
        outs, state = it.in_parts(sizes)
        ends = [state, end]
        if end.cms is not None:  # Held tokens of closed chunks may differ.
            ends = [(s.mixers, s.cms.fast, s.cms.gathered) for s in ends]
        leaves = map(jax.tree.leaves, ((outs, ends[0]), (whole, ends[1])))
        for a, b in zip(*leaves, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10, rtol=0)


@over_cases(CASES, set(CASES) - set(EXACT))
def test_in_float64_any_split_equals_the_whole_exactly(case):
    for sizes in splits(LENGTH):
        check_exact_parts(case, sizes)


@pytest.mark.slow
@over_cases(CASES, ())
@pytest.mark.parametrize("sizes", [(3, 8), (8, 3)], ids=str)
def test_parts_of_other_sizes_equal_the_whole(case, sizes):
    check_exact_parts(case, sizes)


@pytest.mark.slow
@over_cases(CASES, ())
def test_a_fresh_call_and_a_stream_are_traced_once_each(case):
    it = bench(case)
    chex.clear_trace_counter()
    apply = jax.jit(chex.assert_max_traces(it.model.apply, n=2))
    _, state = apply.eval_shape(it.variables, it.tokens)
    for _ in range(2):
        _, state = apply.eval_shape(it.variables, it.tokens, state)


def test_remat_changes_nothing():
    outs, _ = bench("hope").in_parts([5, 5, 1])
    again, _ = bench("hope-remat").in_parts([5, 5, 1])
    np.testing.assert_array_equal(outs, again)


def test_bfloat16_model_keeps_float32_parameters_and_logits():
    it = bench("hope")
    low = build(it.model.config, dtype="bfloat16")
    low_variables = jax.jit(low.init)(jax.random.key(1), it.tokens)
    chex.assert_trees_all_equal(it.variables, low_variables)
    logits16, state = jax.jit(low.apply)(it.variables, it.tokens)
    assert logits16.dtype == jnp.float32
    assert state.mixers.memory.weights[0].dtype == jnp.float32
    np.testing.assert_allclose(logits16, it.whole()[0], atol=0.3)


@every_case
def test_logical_axes_match_every_parameter(case):
    model, variables = bench(case).model, bench(case).variables
    axes = model.logical_axes()

    def check(leaf, names):
        assert len(names) == leaf.ndim

    jax.tree.map(check, variables, axes)
    blocks = jax.tree.leaves(
        axes["params"]["blocks"], is_leaf=lambda a: isinstance(a, tuple)
    )
    assert all(names[0] == "layers" for names in blocks)


def test_periods_of_outer_levels_go_to_the_optimizer():
    it = bench("hope")
    periods = it.model.parameter_periods(it.variables)["params"]["blocks"]
    assert periods["cms"]["level_1_up"] == 1
    assert periods["cms"]["level_2_up"] == 4
    assert periods["mixer"]["w_out"] == 1


def test_bad_tokens_are_named():
    it = bench("transformer")
    with pytest.raises(ValueError, match="needs \\[batch, length >= 1\\]"):
        it.model.apply(it.variables, jnp.zeros((3,), jnp.int32))
    with pytest.raises(ValueError, match="needs integers"):
        it.model.apply(it.variables, jnp.zeros((1, 3)))


def test_ids_that_do_not_exist_are_named():
    """Where their values are known; a compiled program clamps them."""
    it = bench("transformer")
    for wrong in (-1, VOCAB):
        with pytest.raises(ValueError, match=f"tokens has the id {wrong}; the"):
            it.model.apply(it.variables, [[0, wrong]])
    clamped, _ = it.read(it.variables, jnp.full((2, LENGTH), VOCAB + 9))
    last, _ = it.read(it.variables, jnp.full((2, LENGTH), VOCAB - 1))
    np.testing.assert_array_equal(clamped, last)


def test_rows_of_tokens_and_state_must_be_equally_many():
    it = bench("transformer")
    with pytest.raises(ValueError, match="tokens has 1 rows, but state 2"):
        it.model.apply(it.variables, jnp.zeros((1, 1), jnp.int32), it.state)
    with pytest.raises(ValueError, match="state is a tuple; needs a ModelSta"):
        it.model.apply(it.variables, jnp.zeros((1, 1), jnp.int32), (1, 2))
    with pytest.raises(ValueError, match="batch_size=0 must be an integer"):
        it.model.init_state(it.variables, 0)
