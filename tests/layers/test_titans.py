"""Self-modifying Titans: the plain recurrence, streams, gradients, bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from nl_jax.layers.mixers.titans import SelfModifyingTitans
from nl_jax.layers.mixers.titans_config import TitansConfig
from nl_jax.models.model_config import MODELS
from tests.memory import plain

HEADS, WIDTH, LENGTH, CHUNK = 2, 4, 11, 4
D = HEADS * WIDTH
ADAPTIVE = {"adaptive_k": True, "adaptive_v": True}
PAPER = {"architecture": "mlp", "objective": "l2", "expansion": 2} | ADAPTIVE
VARIANTS = {
    "default": {},
    "paper": PAPER,
    "adaptive-q": PAPER
    | {"adaptive_q": True, "read": "chunk"}
    | {"gates": "direct", "generator_targets": "rms"},
    "no-dgd": PAPER | {"rule": "gd"},
    "no-momentum": PAPER | {"momentum": False},
    "no-decay": {"decay": False},
    "adaptive-k-v": ADAPTIVE,
    "input-delta": PAPER | {"delta_layers": "input"},
    "state-tracking": {"eta_max": 2.0},
    "linear": {"architecture": "linear"} | ADAPTIVE,
    "hope-paper": MODELS["hope-paper"]["titans"],
    "raw-targets": {"value_norm": "input"} | ADAPTIVE,
    "shared": {
        **ADAPTIVE,
        "architecture": "linear",
        "value_norm": "input",
        "momentum": False,
    },
    "plain": {
        **ADAPTIVE,
        "stream_width": 0.0,
        "output_gate": False,
        "gain": 1.0,
    },
    "narrow": {"stream_width": 1.0, "output_gate": False},
    "shared-l2": {
        **ADAPTIVE,
        "stream_width": 0.0,
        "architecture": "linear",
        "value_norm": "input",
        "momentum": False,
        "objective": "l2",
        "rule": "gd",
    },
}

QUICK = ("default", "paper", "adaptive-q", "shared")


def layer(**options):
    options = {"chunk_size": CHUNK, "memory_chunk_size": CHUNK} | options
    return SelfModifyingTitans(TitansConfig(**options), D, HEADS)


def setup(module, batch=2, length=LENGTH, seed=0):
    x = jax.random.normal(jax.random.key(seed), (batch, length, D))
    init = jax.jit(module.init)
    return nn.meta.unbox(init(jax.random.key(1), x[:, :1])), x


@functools.cache
def drawn(variant, **sizes):
    """The layer of a variant, jitted, its variables and inputs."""
    module = layer(**VARIANTS[variant] | sizes)
    return module, jax.jit(module.apply), *setup(module)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def rms(a):
    return a / np.sqrt(np.mean(a * a, -1, keepdims=True) + 1e-6)


def unit(a):
    return a / np.sqrt(np.sum(a * a, -1, keepdims=True) + 1e-6)


def plain_titans(config, params, x):
    """Eq. 86-90 with 4.4's normalisations, token by token, one sequence."""
    p = jax.tree.map(lambda a: np.asarray(a, float), params)
    n_layers = 2 if config.architecture == "mlp" else 1
    options = {
        "objective": config.objective,
        "delta": config.rule == "dgd",
        "residual": config.architecture == "residual",
    }

    def memory(name, *index):
        ws = [p[f"{name}_{i}"][index] for i in range(n_layers)]
        return plain.Memory(ws, **options)

    makers = {
        (name, h): memory("generators", i, h)
        for i, name in enumerate(config.generated)
        for h in range(HEADS)
    }
    answering = [memory("memory", h) for h in range(HEADS)]
    raws = {name: [np.zeros(D)] * 3 for name in "qkv"}
    stream = []
    outputs = []
    for t, seen in enumerate(x):
        sources = {}
        if config.stream_width:
            stream.append(seen @ p["w_in"])
            taps = zip(p["conv_stream"][::-1], stream[::-1], strict=False)
            u = sum(tap * raw for tap, raw in taps)
            u = u * sigmoid(u)
            sources = {n: seen @ p[f"w_{n}"] for n in "qk"} | {"v": u[:D]}
        if t % config.chunk_size == 0:
            for m in makers.values():
                m.begin_chunk()
        if t % config.memory_chunk_size == 0:
            for m in answering:
                m.begin_chunk()
        made = {
            (name, h): m.generate(
                sources.get(name, seen).reshape(HEADS, WIDTH)[h]
            )
            for (name, h), m in makers.items()
        }
        mixed = {}
        for name in "qkv":
            if (name, 0) in makers:
                raw = np.concatenate([made[name, h] for h in range(HEADS)])
            elif name in sources:
                raw = sources[name]
            else:
                raw = seen @ p[f"w_{name}"]
            raws[name] = [*raws[name][-3:], raw]
            a = raw
            if name in "qk" or not config.stream_width:
                a = sum(p[f"conv_{name}"][j] * raws[name][j] for j in range(4))
                a = a * sigmoid(a)
            mixed[name] = a.reshape(HEADS, WIDTH)
        answer = []
        for h in range(HEADS):
            q, k = unit(mixed["q"][h]), unit(mixed["k"][h])
            raw = config.value_norm == "input"
            v = unit(mixed["v"][h]) if raw else rms(mixed["v"][h])

            def gate(name, source, h=h, made=made):
                if config.gates == "direct":
                    logit = made[source, h].sum() / WIDTH**0.5
                else:
                    logit = rms(made[source, h]) @ p[f"gate_{name}"][h]
                return sigmoid(logit + p[f"gate_{name}_bias"][h])

            alpha = gate("alpha", "alpha") if config.decay else 1.0
            eta = alpha * config.eta_max * gate("eta", "eta")
            mu = gate("mu", "eta") if config.momentum else None
            chunk = config.read == "chunk"
            o = (answering[h].generate if chunk else answering[h].read)(q)
            answer.append(rms(o) * p["out_scale"][h])
            own = [m for key, m in makers.items() if key[1] == h]
            for m in (*own, answering[h]):
                target = m.generate(v)
                if not raw:
                    long = config.generator_targets == "rms"
                    long = long or m is answering[h]
                    target = (rms if long else unit)(target)
                m.write(k, target, eta, alpha, mu)
        y = np.concatenate(answer)
        gate = 1.0
        if config.output_gate:
            opened = seen @ p["w_gate"]
            gate = opened * sigmoid(opened)
        if config.stream_width:
            outputs.append(y @ p["w_out"] + u * gate @ p["w_past"])
        else:
            outputs.append(y * gate @ p["w_out"])
    return np.stack(outputs)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=pytest.mark.slow) if v == "hope-paper" else v
        for v in VARIANTS
        if v != "input-delta"
    ],
)
def test_equals_the_plain_recurrence(variant):
    with jax.enable_x64(True):
        sizes = {"chunk_size": 3, "memory_chunk_size": 5}
        if "shared" in variant:
            sizes["chunk_size"] = 5
        module = layer(**VARIANTS[variant] | sizes)
        assert module.config.shares_recurrence == ("shared" in variant)
        module = dataclasses.replace(module, dtype=jnp.float64)
        variables, x = setup(module)
        wide = jax.tree.map(lambda a: a.astype(float), variables)
        y, _ = jax.jit(module.apply)(wide, x)
        for row in range(2):
            expected = plain_titans(
                module.config, variables["params"], np.asarray(x[row], float)
            )
            np.testing.assert_allclose(y[row], expected, atol=1e-9)


@pytest.mark.parametrize(
    "variant",
    [
        v if v in QUICK else pytest.param(v, marks=pytest.mark.slow)
        for v in VARIANTS
    ],
)
def test_whole_equals_any_split_equals_token_by_token(variant):
    sizes = {} if "shared" in variant else {"memory_chunk_size": 2}
    module, apply, variables, x = drawn(variant, **sizes)
    whole, end = apply(variables, x)
    start = module.apply(variables, 2, method="initial_state")
    for sizes in ([1] * LENGTH, [5, 1, 5]):
        state, outs, at = start, [], 0
        for size in sizes:
            y, state = apply(variables, x[:, at : at + size], state)
            outs.append(y)
            at += size
        np.testing.assert_allclose(jnp.concatenate(outs, 1), whole, atol=1e-5)
        for a, b in zip(*map(jax.tree.leaves, (state, end)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("variant", ["default", "paper", "adaptive-q"])
def test_causal_independent_rows_and_live_gradients(variant):
    module, _, variables, x = drawn(variant)

    @jax.jit
    def at(x):  # Gradient of one row's token 6 with respect to everything.
        return jax.grad(
            lambda v, x: jnp.sin(module.apply(v, x)[0][0, 6]).sum(),
            argnums=(0, 1),
        )(variables, x)

    slow, fast = at(x)
    assert np.all(fast[0, 7:] == 0), "a later token reaches an earlier output"
    assert np.all(fast[1] == 0), "rows leak into one another"
    assert np.all(np.abs(fast[0, :7]).max(-1) > 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slow):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_rows_at_different_positions_do_not_disturb_each_other():
    """A row that starts late gives what it gives alone."""
    module, apply, variables, x = drawn("paper", memory_chunk_size=2)
    fresh = module.apply(variables, 2, method="initial_state")
    _, ahead = apply(variables, x[:, :5], fresh)
    mixed = jax.tree.map(lambda a, b: a.at[1].set(b[1]), ahead, fresh)
    y, _ = apply(variables, x[:, 5:10], mixed)
    late, _ = apply(variables, x[:, 5:10], fresh)
    np.testing.assert_allclose(y[1], late[1], atol=1e-5)


def adversarial(kind):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(8192, D)).astype("float32")
    if kind == "repeat":
        tokens[:] = tokens[0]
    elif kind == "alternate":
        tokens[:] = tokens[np.arange(8192) % 2]
    return jnp.asarray(10 * tokens[None])


@pytest.mark.parametrize(
    "variant",
    [
        "default",
        "paper",
        pytest.param("hope-paper", marks=pytest.mark.slow),
        "state-tracking",
        "shared",
    ],
)
@pytest.mark.parametrize("trained", [False, True])
def test_no_memory_grows_without_bound(variant, trained):
    sizes = {"chunk_size": 16, "memory_chunk_size": 16}
    module, apply, variables, _ = drawn(variant, **sizes)
    start = module.apply(variables, 1, method="initial_state")
    if trained:  # Far from initialisation: every parameter tripled, alpha ~ 1.
        variables = jax.tree.map(lambda a: 3 * a, variables)
    for kind in ("repeat", "alternate", "random"):
        x = adversarial(kind)
        y, half = apply(variables, x[:, :4096], start)
        rest, end = apply(variables, x[:, 4096:], half)
        assert np.isfinite(y).all() and np.isfinite(rest).all(), kind
        sizes = [
            np.array([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(s[:2])])
            for s in (half, end)
        ]
        assert np.all(sizes[1] <= 2 * sizes[0] + 10), (kind, sizes)


def gradient_growth(kinds=None, **options):
    """Norm of the gradient at 512 tokens, in units of that at 32.

    If ``kinds`` is given, there are only so many different tokens.
    """
    options = {"chunk_size": 16, "memory_chunk_size": 16} | options
    module = layer(**options)
    variables, x = setup(module, batch=4, length=512)
    if kinds:
        x = x[:, jax.random.randint(jax.random.key(2), (512,), 0, kinds)]

    @jax.jit
    def size(tokens):  # A mask, so that both lengths share one compilation.
        def loss(variables):
            y, _ = module.apply(variables, x)
            read = jnp.arange(x.shape[1]) < tokens
            return jnp.sin(y).mean(-1).mean(0) @ read / tokens

        return optax.tree.norm(jax.grad(loss)(variables))

    return size(512) / size(32)


@pytest.mark.parametrize("variant", ["default", "paper", "shared"])
def test_gradients_do_not_grow_with_the_length(variant):
    forgets = {"alpha_bias": 4.0, "eta_bias": -1.0}
    assert gradient_growth(**VARIANTS[variant] | forgets) < 2


@pytest.mark.parametrize(
    ("longest", "least", "most"),
    [(0.1, 0, 2), pytest.param(1.0, 1e6, np.inf, marks=pytest.mark.slow)],
)
def test_short_steps_bound_gradients_of_l2_where_keys_repeat(
    longest, least, most
):
    """Why ``hope-paper`` has short ones; were the second to pass, drop them."""
    options = VARIANTS["hope-paper"] | {"eta_bias": 0.0, "eta_max": longest}
    assert least <= gradient_growth(kinds=4, **options) < most


def test_gradients_of_linear_memories_that_forget_explode():
    """Why the default memory is residual; were this to pass, drop it."""
    forgets = {"alpha_bias": 4.0, "eta_bias": -1.0}
    options = VARIANTS["plain"] | {"architecture": "linear"} | forgets
    assert gradient_growth(**options) > 20


def test_the_literal_equations_overflow():
    """Why the normalisations exist; were this to pass, they could go."""
    module = layer(**PAPER | {"literal": True, "chunk_size": 16})
    variables, _ = setup(module)
    x = 10 * jax.random.normal(jax.random.key(2), (16, 256, D))
    y, _ = jax.jit(module.apply)(variables, x)
    overflows = ~np.isfinite(y).all((1, 2))
    assert overflows.sum() >= 4, "most rows do, which ones is rounding"


def test_bfloat16_stays_close_to_float32():
    module, apply, variables, x = drawn("paper", memory_chunk_size=2)
    low = dataclasses.replace(module, dtype=jnp.bfloat16)
    y, _ = apply(variables, x)
    y16, state = jax.jit(low.apply)(variables, x)
    assert y16.dtype == jnp.bfloat16
    assert state.memory.weights[0].dtype == jnp.float32
    np.testing.assert_allclose(y16.astype("float32"), y, atol=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "tree"}, "architecture='tree' must be one of"),
        ({"chunk_size": 0}, "chunk_size=0 must be an integer >= 1"),
        ({"eta_max": 3.0}, r"eta_max=3.0 must be in \(0, 2\]"),
        ({"stream_width": 0.5}, "stream_width=0.5 must be 0 or at least 1"),
        ({"stream_width": -3.0}, "stream_width=-3.0 must be 0 or at least 1"),
        ({"output_scale": 0.0}, "output_scale=0.0 must be positive"),
        ({"last_scale": -1.0}, "last_scale=-1.0 must be positive"),
        ({"output_gain": 0.0}, "output_gain=0.0 must be positive"),
        ({"read": "never"}, "read='never' must be one of"),
        ({"gain": float("nan")}, "gain=nan must be a finite number"),
        ({"momentum": "no"}, "momentum='no' must be True or False"),
        ({"gates": "own"}, "gates='own' must be one of 'readout', 'direct'"),
        ({"generator_targets": "l2"}, "must be one of 'unit', 'rms'"),
        ({"implementation": "cuda"}, "implementation='cuda' must be one of"),
    ],
)
def test_bad_configurations_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TitansConfig(**options)


@pytest.mark.parametrize(
    ("width", "heads", "merged"),
    [(0, 6, 6), (8, 6, 6), (9, 6, 3), (99, 6, 3), (99, 2, 1), (99, 3, 3)],
)
def test_narrow_heads_are_merged_in_pairs(width, heads, merged):
    # 48 channels in 6 heads of 8 become 3 of 16.
    module = TitansConfig(head_width=width).build(48, heads, None)
    assert module.n_heads == merged


def test_no_heads_are_refused():
    module = TitansConfig(head_width=16).build(48, 0, None)
    with pytest.raises(ValueError, match="n_heads=0 must divide d_model=48"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 1, 48)))
