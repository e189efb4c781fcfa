"""Levels that learn in context: the contract of the continuum memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.models import build

CHUNK, VOCAB = 4, 13


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens, state=None):
    """One program for all tests of a model and a shape."""
    return model.apply(variables, tokens, state)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, mixers=None, fast=None):
    return model.forward(params, tokens, mixers, fast)


@functools.cache
def drawn(model, shape):
    tokens = jnp.zeros(shape, jnp.int32)
    return jax.jit(model.init)(jax.random.key(1), tokens)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def make(dtype="float32", mixer="titans", **cms):
    cms = {
        "objective": "next_token",
        "token_periods": (4, 8),
        "rate": 0.3,
    } | cms
    model = build(
        "hope" if mixer == "titans" else "hope-attention",
        vocab_size=VOCAB,
        d_model=8,
        n_layers=2,
        n_heads=2,
        dtype=dtype,
        titans={"chunk_size": 4, "memory_chunk_size": 2},
        cms=cms,
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 18), 0, VOCAB)
    return model, drawn(model, tokens.shape), tokens


@pytest.mark.parametrize(
    ("form", "inner"),
    [
        ("sequential", "sgd"),
        ("independent", ("momentum", "sgd")),
        ("nested", ("momentum", "sgd")),
    ],
)
def test_equals_the_plain_loop_over_chunks(x64, form, inner):
    """Section 7.1 written out: read, differentiate, step what is due."""
    model, variables, tokens = make(
        "float64", "attention", form=form, inner=inner
    )
    variables = jax.tree.map(lambda a: a.astype(float), variables)
    params = variables["params"]
    logits, end = apply(model, variables, tokens)

    slow, rates = model.fast_parameters(params)
    begin = jax.tree.map(lambda a: jnp.broadcast_to(a, (2, *a.shape)), slow)
    zeros = jax.tree.map(jnp.zeros_like, begin)
    rates = [r[None, :, None, None] for r in rates]

    def descend(weights, rate, total):
        return jax.tree.map(lambda w, g: w - rate * g, weights, total)

    fast, expected = begin, []
    point, since, trace = begin[0], zeros[0], zeros[0]
    mixers = model.init_state(variables, 2).mixers
    waiting = zeros[1]

    @jax.jit
    def gradient(fast, piece, mixers):
        def loss(fast):
            logits, after = model.forward(params, piece, mixers, fast)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits[:, :-1], piece[:, 1:]
            )
            return losses.sum(), (logits, after)

        return jax.grad(loss, has_aux=True)(fast)

    for number in range(4):
        piece = tokens[:, number * CHUNK : (number + 1) * CHUNK]
        grads, (out, mixers) = gradient(fast, piece, mixers)
        expected.append(out)
        trace = jax.tree.map(lambda m, g: 0.9 * m + g, trace, grads[0])
        if form == "sequential":
            trace = grads[0]
        first = descend(fast[0], rates[0], trace)
        waiting = jax.tree.map(jnp.add, waiting, grads[1])
        since = jax.tree.map(jnp.add, since, grads[0])
        second = fast[1]
        if number % 2:  # The slower level: every 8 tokens, the sum of both.
            second = descend(second, rates[1], waiting)
            waiting = zeros[1]
            if form == "nested":  # The faster one begins anew.
                point = first = descend(point, rates[1], since)
                since = trace = zeros[0]
        fast = (first, second)
    expected.append(forward(model, params, tokens[:, 16:], mixers, fast)[0])
    np.testing.assert_allclose(logits, jnp.concatenate(expected, 1), atol=1e-10)
    for a, b in zip(*map(jax.tree.leaves, (end.cms.fast, fast)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), fast, begin)
    assert min(jax.tree.leaves(moved)) > 0


def across_depth(**more):
    """Four blocks: one static, two of level 1, one of level 2."""
    model, _, tokens = make()
    depth = {"placement": "depth", "layers": 3}
    model = build(model.config, mixer="lstm", n_layers=4, cms=depth | more)
    return model, drawn(model, tokens.shape), tokens


def test_a_level_across_depth_is_the_mlps_of_its_blocks():
    """One MLP per block, and every block reads the weights of its level."""
    model, variables, tokens = across_depth()
    params = variables["params"]
    cms = params["blocks"]["cms"]
    assert {name.split("_")[1] for name in cms} == {"1"}
    own = {0: slice(1, 3), 1: slice(3, 4)}
    fast, _ = model.fast_parameters(params)
    moved, other = [], dict(cms)
    for level, blocks in own.items():
        noise = jax.random.key(level)
        weights = {}
        for name, leaf in fast[level].items():
            np.testing.assert_array_equal(leaf, cms[f"level_1_{name}"][blocks])
            more = jax.random.normal(noise, leaf.shape)
            weights[name] = (leaf + more)[None].repeat(2, 0)
            key = f"level_1_{name}"
            other[key] = other[key].at[blocks].add(more)
        moved.append(weights)
    found, _ = forward(model, params, tokens, fast=tuple(moved))
    blocks = params["blocks"] | {"cms": other}
    expected, _ = forward(model, params | {"blocks": blocks}, tokens)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_levels_across_depth_step_at_their_own_periods():
    model, variables, tokens = across_depth()
    fresh = model.init_state(variables, 2)
    start = fresh.cms.fast
    _, early = apply(model, variables, tokens[:, :4], fresh)
    _, late = apply(model, variables, tokens[:, 4:8], early)

    def moved(state):
        change = jax.tree.map(
            lambda a, b: np.abs(a - b).max((0, 2, 3)), state.cms.fast, start
        )
        return [np.stack([*level.values()]).max(0) for level in change]

    assert (moved(early)[0] > 0).all() and (moved(early)[1] == 0).all()
    assert (moved(late)[1] > 0).all()
    assert [len(level) for level in moved(late)] == [2, 1]


@pytest.mark.parametrize("made", [make, across_depth])
def test_rate_zero_is_the_static_network_bit_for_bit(x64, made):
    """By configuration; in the machinery, at a learned zero, to rounding."""
    model, variables, tokens = made()
    if made is across_depth:  # XLA rounds a scan of one block in its own way.
        model, variables, tokens = made(layers=4)
    depth = model.config.cms.placement == "depth"
    outer = {"objective": "outer", "placement": "block"}
    if depth:
        outer["step_periods"] = (1,)
    static = build(model.config, cms=outer)
    never = build(model.config, cms={"rate": 0.0})
    plain, _ = apply(static, variables, tokens)
    still, state = apply(never, variables, tokens)
    np.testing.assert_array_equal(still, plain)
    assert state.cms is None

    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            jnp.full_like(leaf, -1e3)  # exp of it is 0.
            if str(path[-1].key).endswith("log_rate")
            else leaf
        ),
        variables,
    )
    variables = jax.tree.map(lambda a: a.astype(float), variables)
    static, model = (build(m.config, dtype="float64") for m in (static, model))
    plain, _ = apply(static, variables, tokens)
    learning, state = apply(model, variables, tokens)
    np.testing.assert_allclose(learning, plain, rtol=1e-12, atol=1e-12)
    first = jax.tree.leaves(model.init_state(variables, 2).cms.fast)
    for a, b in zip(jax.tree.leaves(state.cms.fast), first, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "mixer", ["attention", pytest.param("titans", marks=pytest.mark.slow)]
)
def test_outer_gradient_equals_finite_differences(x64, mixer):
    model, variables, tokens = make("float64", mixer)
    tokens = tokens[:1, :10]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: a.astype(float), variables)

    # The value too comes from the program of the gradient.
    @jax.jit
    @jax.value_and_grad
    def loss(variables):
        logits, _ = model.apply(variables, tokens)
        return jnp.sin(logits).sum()

    _, grads = loss(variables)
    flat, tree = jax.tree.flatten(variables)
    step = 1e-6
    for index, grad in enumerate(jax.tree.leaves(grads)):
        direction = rng.normal(size=grad.shape)

        def along(sign, index=index, direction=direction):
            moved = list(flat)
            moved[index] = flat[index] + sign * step * direction
            return loss(tree.unflatten(moved))[0]

        numeric = (along(1) - along(-1)) / (2 * step)
        exact = np.vdot(grad, direction)
        np.testing.assert_allclose(exact, numeric, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"form": "star"}, "cms.form='star' must be one of"),
        ({"inner": ("sgd",)}, "must be one optimizer or one for each of the 2"),
        ({"inner": "sdg"}, "cms.inner='sdg' must be one of"),
        ({"form": "nested", "objective": "outer"}, "goes with objective"),
        ({"placement": "width"}, "cms.placement='width' must be one of"),
        (
            {"placement": "depth", "form": "nested"},
            "cms.placement='depth' goes with form='sequential'",
        ),
        (
            {"placement": "depth", "objective": "outer"},
            "cms.placement='depth' goes with form='sequential'",
        ),
    ],
)
def test_wrong_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)


def test_first_order_drops_the_second_derivatives_only():
    one = {"mixer": "attention", "token_periods": (4,)}
    model, variables, tokens = make(**one)
    first, _, _ = make(**one, first_order=True)

    def run(model):
        def loss(variables):
            logits, _ = model.apply(variables, tokens)
            return jnp.sin(logits).sum(), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    (exact, logits), (cheap, same) = run(model), run(first)
    np.testing.assert_allclose(logits, same, atol=1e-6)
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), exact, cheap)
    assert max(jax.tree.leaves(difference)) > 1e-3
    # The rates' gradients stay: they multiply the inner gradients.
    rates = cheap["params"]["blocks"]["cms"]["level_1_log_rate"]
    assert np.abs(rates).min() > 0


def test_rows_stand_at_different_places_of_the_grid():
    model, variables, tokens = make(mixer="attention", rate=0.1)
    fresh = model.init_state(variables, 2)
    _, ahead = apply(model, variables, tokens[:, :3], fresh)
    mixed = jax.tree.map(lambda a, b: a.at[1].set(b[1]), ahead, fresh)
    logits, _ = apply(model, variables, tokens[:, 3:], mixed)
    alone, _ = apply(model, variables, tokens[:, 3:], fresh)
    whole, _ = apply(model, variables, tokens)
    np.testing.assert_allclose(logits[1], alone[1], atol=1e-5)
    np.testing.assert_allclose(logits[0], whole[0, 3:], atol=1e-5)


def test_learning_in_context_lowers_the_loss_on_a_repeated_text():
    """The point of it: the same text again costs less than the first time."""
    model, variables, tokens = make(mixer="attention", rate=0.1)
    again = jnp.tile(tokens[:, :8], (1, 20))

    def losses(model):
        logits, _ = apply(model, variables, again)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :-1], again[:, 1:]
        )

    learning = losses(model)
    static = losses(build(model.config, cms={"rate": 0.0}))
    assert learning[:, -8:].mean() < 0.7 * static[:, -8:].mean()


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["hope", "gated-deltanet"])
@pytest.mark.parametrize(
    ("periods", "length"), [((512, 1024), 1024), ((256,), 600), ((128,), 130)]
)
def test_long_periods_have_gradients(mixer, periods, length):
    """Kernels are chosen from 128 tokens on; a chunk is differentiated."""
    cms = {"objective": "next_token", "token_periods": periods}
    small = {"d_model": 8, "n_heads": 1, "n_layers": 1}
    model = build(mixer, **small, cms=cms)
    tokens = jax.random.randint(jax.random.key(0), (1, length), 0, 256)
    variables = jax.jit(model.init)(jax.random.key(1), tokens)

    def loss(variables):
        return jnp.square(model.apply(variables, tokens)[0]).mean()

    gradient = jax.jit(jax.grad(loss))(variables)
    rate = gradient["params"]["blocks"]["cms"]["level_1_log_rate"]
    moved = length > periods[0]
    assert jnp.isfinite(rate).all() and jnp.any(rate != 0) == moved
