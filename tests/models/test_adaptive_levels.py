"""A level that steps when its signal says so; DGD by the model's own loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.continual import fork, inspect, load_state, reset_level, save_state
from nl_jax.layers.continuum.probes import probed, writes
from nl_jax.models import build

CHUNK, LENGTH, VOCAB = 4, 42, 13


def make(dtype="float64", **cms):
    cms = {"token_periods": (CHUNK, 4 * CHUNK), "rate": 0.3} | cms
    model = build(
        "lstm",
        vocab_size=VOCAB,
        d_model=8,
        n_layers=1,
        n_heads=2,
        dtype=dtype,
        cms={"objective": "next_token", "hidden": 1.0} | cms,
    )
    tokens = jax.random.randint(jax.random.key(0), (2, LENGTH), 0, VOCAB)
    variables = jax.jit(model.init)(jax.random.key(1), tokens)
    return model, jax.tree.map(lambda a: a.astype(dtype), variables), tokens


def plain(model, variables, tokens):
    """One row: every chunk's gradient, what is decided, and the step."""
    config, params = model.config.cms, variables["params"]
    slow, rates = model.fast_parameters(params)
    fast = jax.tree.map(lambda a: a[None], slow)
    mixers = model.init_state(variables, 1).mixers

    @jax.jit
    def differentiate(fast, piece, mixers):
        def loss(fast):
            logits, after = model.forward(params, piece, mixers, fast)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits[:, :-1], piece[:, 1:]
            )
            return losses.sum(), (losses.mean(), after)

        return jax.grad(loss, has_aux=True)(fast)

    def norm(tree):
        return np.sqrt(sum((np.asarray(a) ** 2).sum() for a in tree.values()))

    def descend(weights, grads, rate):
        return jax.tree.map(lambda w, g: w - rate[0] * g, weights, grads)

    total = jax.tree.map(jnp.zeros_like, fast[1])
    since, norms, steps = 0, 0.0, []
    mean, weight = 0.0, 0.0
    for number in range(LENGTH // CHUNK):
        piece = tokens[None, number * CHUNK : (number + 1) * CHUNK]
        grads, (loss, mixers) = differentiate(fast, piece, mixers)
        total = jax.tree.map(jnp.add, total, grads[1])
        since, norms = since + 1, norms + norm(grads[1])
        if config.adaptive == "coherence":
            high = norm(total) >= config.threshold * norms
        else:
            high = weight > 0 and loss > config.threshold * mean / weight
        mean, weight = 0.9 * mean + 0.1 * loss, 0.9 * weight + 0.1
        second = fast[1]
        if since == 4 or (since >= config.least and high):
            second = descend(second, total, rates[1])
            total = jax.tree.map(jnp.zeros_like, total)
            since, norms = 0, 0.0
            steps.append(number)
        fast = (descend(fast[0], grads[0], rates[0]), second)
    return steps, fast


@pytest.mark.parametrize(
    "choices",
    [
        {"adaptive": "coherence", "threshold": 0.7, "least": 2},
        {"adaptive": "surprise", "threshold": 1.02},
    ],
    ids=lambda choices: choices["adaptive"],
)
def test_steps_when_its_signal_says_so_however_it_is_cut(choices):
    with jax.enable_x64(True):
        model, variables, tokens = make(**choices)
        apply = jax.jit(model.apply)
        whole, end = apply(variables, tokens)
        found = []
        for row in range(2):
            steps, fast = plain(model, variables, tokens[row])
            found.append(steps)
            assert end.cms.signal.steps[row, 0] == len(steps)
            pairs = zip(end.cms.fast, fast, strict=True)
            for level, expected in pairs:
                for name, leaf in expected.items():
                    np.testing.assert_allclose(
                        level[name][row], leaf[0], atol=1e-10
                    )
        # It is no grid, and rows decide by themselves.
        gaps = {b - a for steps in found for a, b in itertools.pairwise(steps)}
        assert len(gaps) > 1 and found[0] != found[1]

        state, outs, at = model.init_state(variables, 2), [], 0
        for size in (7, 7, 7, 7, 7, 7):
            y, state = apply(variables, tokens[:, at : at + size], state)
            outs.append(y)
            at += size
        np.testing.assert_allclose(jnp.concatenate(outs, 1), whole, atol=1e-10)
        kept = [
            (s.cms.fast, s.cms.gathered, s.cms.signal) for s in (state, end)
        ]
        for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def test_the_bounds_are_fixed_periods():
    """A signal that is always high, and one that never is."""
    with jax.enable_x64(True):
        for threshold, least, period in ((1e-9, 2, 2), (1e9, 1, 4)):
            model, variables, tokens = make(
                adaptive="surprise", threshold=threshold, least=least
            )
            fixed = build(
                model.config,
                cms={
                    "adaptive": "none",
                    "token_periods": (CHUNK, period * CHUNK),
                },
            )
            logits, _ = jax.jit(model.apply)(variables, tokens)
            expected, _ = jax.jit(fixed.apply)(variables, tokens)
            np.testing.assert_allclose(logits, expected, atol=1e-12)


def test_what_it_decides_by_is_saved_forked_inspected_and_reset(tmp_path):
    model, variables, tokens = make(
        "float32", adaptive="coherence", threshold=0.7, least=2
    )
    tokens = tokens[:, :22]
    _, state = jax.jit(model.apply)(variables, tokens)
    save_state(tmp_path / "state", model, state)
    loaded = load_state(tmp_path / "state", model, variables)
    for a, b in zip(*map(jax.tree.leaves, (loaded, state)), strict=True):
        np.testing.assert_array_equal(a, b)
    signal = state.cms.signal
    assert fork(state, [1]).cms.signal.norms[0] == signal.norms[1]
    level = inspect(model, variables, state).levels[1]
    np.testing.assert_array_equal(
        level.position, signal.since[:, 0] * CHUNK + 22 % CHUNK
    )
    reset = reset_level(model, variables, state, 2).cms
    assert (reset.signal.norms == 0).all()
    np.testing.assert_array_equal(reset.signal.since, signal.since)
    row = {row.name: row for row in model.levels()}["cms.level_2"]
    assert row.rule == "GD in context, at coherence"


def test_probes_are_the_factors_of_the_gradient():
    with jax.enable_x64(True):
        model, variables, tokens = make(inner=("dgd", "sgd"))
        slow, _ = model.fast_parameters(variables["params"])
        fast = jax.tree.map(lambda a: jnp.stack([a, a]), slow)

        @jax.jit
        def gradient(fast):
            def loss(fast):
                logits, _ = model.forward(
                    variables["params"], tokens[:, :CHUNK], fast=fast
                )
                return jnp.sin(logits).sum()

            return jax.grad(loss)(fast)

        config = model.config.cms
        laid = gradient(probed(config, fast, CHUNK, jnp.float64))
        first, second = writes(config, laid)
        for name, (x, slope) in first.items():
            assert x.shape[2] == slope.shape[2] == CHUNK
            product = jnp.einsum("rbti,rbtj->rbij", x, slope)
            np.testing.assert_allclose(product, laid[0][name], atol=1e-12)
        assert set(second) == {"gate", "up", "down"}


def test_an_optimizer_without_a_name_can_read_and_be_saved(tmp_path):
    model, variables, tokens = make("float32", inner=optax.trace(0.9))
    named = build(model.config, cms={"inner": "momentum"})
    logits, state = jax.jit(model.apply)(variables, tokens[:, :9])
    expected, _ = jax.jit(named.apply)(variables, tokens[:, :9])
    np.testing.assert_array_equal(logits, expected)
    save_state(tmp_path / "state", model, state)
    loaded = load_state(tmp_path / "state", model, variables)
    for a, b in zip(*map(jax.tree.leaves, (loaded, state)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adaptive": "mood"}, "cms.adaptive='mood' must be one of"),
        (
            {"adaptive": "surprise", "token_periods": (4,)},
            "at least two levels",
        ),
        ({"adaptive": "surprise", "least": 5}, "cms.least=5 must be at most 4"),
        (
            {"adaptive": "coherence", "threshold": 1.5},
            r"cms.threshold=1.5 must be in \(0, 1\]",
        ),
        ({"adaptive": "coherence"}, "cms.least=1 must be at least 2 with"),
        ({"least": 0}, "cms.least=0 must be an integer >= 1"),
    ],
)
def test_wrong_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
