"""What layers and memories cannot read is refused in one line."""

import functools

import jax
import jax.numpy as jnp
import pytest

from nl_jax.errors import InputError
from nl_jax.layers import MIXERS, CMSConfig, ContinuumMemory, Mixer
from nl_jax.memory import Gates, associative_memory

D, HEADS = 8, 2
X = jnp.ones((2, 3, D))
WRONG = {
    "no tokens": X[:, :0],
    "no rows": X[:0],
    "another width": X[..., 1:],
    "no batch": X[0],
    "integers": X.astype(int),
}


@functools.cache
def drawn(name):
    """A mixer, and the shapes of its parameters and state."""
    layer = MIXERS[name]().build(D, HEADS, None)
    variables, (_, state) = (
        jax.eval_shape(layer.init, jax.random.key(0), X),
        jax.eval_shape(lambda: layer.init_with_output(jax.random.key(0), X))[0],
    )
    return layer, variables, state


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_refuse_what_is_no_stream(name):
    layer, variables, state = drawn(name)
    for wrong in WRONG.values():
        with pytest.raises(InputError, match=r"got .*; needs real numbers, \["):
            jax.eval_shape(layer.apply, variables, wrong)
    with pytest.raises(InputError, match="got 1 rows, but a state of 2"):
        jax.eval_shape(layer.apply, variables, X[:1], state)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_mixers_answer_in_the_dtype_of_the_input(name, dtype):
    """The state keeps its own, so that the next call compiles nothing."""
    layer, variables, state = drawn(name)
    for given in (None, state):
        y, after = jax.eval_shape(
            layer.apply, variables, X.astype(dtype), given
        )
        assert y.dtype == dtype and y.shape == X.shape
        assert jax.tree.all(jax.tree.map(lambda a, b: a == b, state, after))


def test_a_mixer_may_have_no_state():
    class Twice(Mixer):
        def initial_state(self, batch_size):
            return ()

        def __call__(self, x, state=None):
            x, state, _ = self.begin(x, state)
            return 2 * x, state

    y, state = Twice(None, D, HEADS).apply({}, X)
    assert state == () and (y == 2).all()


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"lstm", "mamba"}))
def test_heads_that_do_not_fit_are_named(name):
    layer = MIXERS[name]().build(D, 3, None)
    with pytest.raises(InputError, match=r"n_heads=\d must divide d_model"):
        jax.eval_shape(layer.init, jax.random.key(0), X)


def test_a_continuum_memory_refuses_what_is_no_stream():
    layer = ContinuumMemory(CMSConfig(), D)
    variables = jax.eval_shape(layer.init, jax.random.key(0), X)
    for name in set(WRONG) - {"no batch"}:
        with pytest.raises(InputError, match="ContinuumMemory got"):
            jax.eval_shape(layer.apply, variables, WRONG[name])


def scan(momentum=False, lead=(), **changed):
    memory = associative_memory("mlp", chunk_size=2, momentum=momentum)
    state = memory.init(jax.random.key(0), D, D, lead=lead)
    gates = Gates(jnp.ones(3), jnp.zeros(3))
    inputs = dict.fromkeys("kvq", X[0]) | {"gates": gates} | changed
    return jax.eval_shape(lambda: memory.scan(state, **inputs))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": X[0, :0]}, r"k is float32\[0, 8\]; needs real numbers"),
        ({"k": X[0, 0]}, r"k is float32\[8\]; needs real numbers"),
        ({"v": X[0, :, 1:]}, r"v is float32\[3, 7\]; needs real numbers, .*8"),
        ({"q": X[0, 1:]}, r"q is float32\[2, 8\]; .* T as in k"),
        ({"v": X[0].astype(int)}, r"v is int32\[3, 8\]; needs real numbers"),
        ({"k": X}, r"k has leading axes \(2,\), the memory \(\); use vmap"),
        ({"k": X, "lead": (3,)}, r"k has leading axes \(2,\), the memory \(3,"),
        ({"gates": Gates(jnp.ones(2), jnp.zeros(2))}, "each of 3 tokens"),
        ({"momentum": True}, "gates.log_mu .* a memory with momentum"),
        ({"gates": Gates(*jnp.ones((3, 3)))}, "a memory without momentum"),
    ],
)
def test_memories_refuse_what_does_not_fit(changed, message):
    with pytest.raises(InputError, match=message):
        scan(**changed)


def test_memories_are_read_and_drawn_at_their_width():
    memory = associative_memory("linear")
    state = memory.init(jax.random.key(0), D, 5)
    with pytest.raises(InputError, match=r"q is float32\[3, 7\]"):
        memory.read(state, X[0, :, 1:])
    with pytest.raises(InputError, match="d_in=None must be an integer"):
        memory.init(jax.random.key(0))
