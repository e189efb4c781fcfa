"""Rows that read documents on: their memory goes from step to step."""

import contextlib
import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.data import Batch, prepare, train_batches
from nl_jax.errors import DamagedError, InputError
from nl_jax.models import LanguageModel, build, to_json
from nl_jax.training import (
    Checkpoints,
    TrainState,
    list_steps,
    load_model,
    make_mesh,
    make_train_step,
    train,
)
from nl_jax.training.same_config import check_same_config
from nl_jax.training.step import plan_state
from nl_jax.training.train_state import begin_memory
from tests.training.conftest import LENGTHS, draw
from tests.training.test_checkpoint import off_by_a_quarter
from tests.training.test_loop import losses

ROWS, WINDOW, WINDOWS = 2, 64, 2
IDS = np.ones((ROWS, WINDOW * WINDOWS + 1), np.int32)
IDS[1, 100:] = 2  # In the middle of the second window.


models = pytest.mark.parametrize(
    "name",
    [
        "mamba",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("transformer", "gated-deltanet", "hope")
        ),
    ],
)


def gathering():
    """An optimizer that moves nothing and adds up gradients in its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda grads, state, params: (
            jax.tree.map(jnp.zeros_like, grads),
            jax.tree.map(jnp.add, state, grads),
        ),
    )


@functools.cache
def drawn(name):
    model = build(name, d_model=8, n_heads=2, n_layers=1)
    tokens = jax.random.randint(jax.random.key(1), IDS.shape, 0, 256)
    return model, draw(model, jax.random.key(0), tokens[:1, :1]), tokens


def windows(tokens, ids):
    for start in range(0, WINDOW * WINDOWS, WINDOW):
        cut = slice(start, start + WINDOW + 1)
        yield Batch(tokens[:, cut], ids[:, cut])


@functools.cache
def carried(name):
    """Sums of nats by window, and of gradients, of steps that carry.

    Rows are accumulated one by one, and so is what they carry.
    """
    model, variables, tokens = drawn(name)
    optimizer = gathering()
    memory = begin_memory(model, variables, "contiguous", ROWS)
    state = TrainState(variables, optimizer.init(variables), memory)
    step = jax.jit(make_train_step(model, optimizer, LENGTHS, ROWS))
    nats = []
    for batch in windows(tokens, IDS):
        state, metrics = step(state, batch)
        nats.append(float(metrics["sums"].nats))
    return nats, state


@functools.partial(jax.jit, static_argnums=0)
def read(model, variables, batch, state):
    ids = batch.segment_ids[:, :-1]
    tokens = batch.tokens[:, :-1]
    return model.apply(variables, tokens, state, segment_ids=ids)


def token_nats(logits, batch):
    """Cross-entropy of the targets that are in the document before them."""
    chosen = jax.nn.one_hot(batch.tokens[:, 1:], 256)
    nats = -(jax.nn.log_softmax(logits) * chosen).sum(-1)
    return nats * (batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1])


@models
def test_windows_that_carry_are_one_long_window(name):
    model, variables, tokens = drawn(name)
    logits, end = read(model, variables, Batch(tokens, IDS), None)
    nats = token_nats(logits, Batch(tokens, IDS))
    expected = nats.reshape(ROWS, WINDOWS, WINDOW).sum((0, 2))
    found, state = carried(name)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        state.memory,
        end,
    )
    np.testing.assert_array_equal(state.memory.segment, [1, 2])


@models
def test_gradients_stop_where_windows_meet(name):
    model, variables, tokens = drawn(name)

    def chained(variables):
        state, total = None, 0.0
        for batch in windows(tokens, IDS):
            state = jax.lax.stop_gradient(state)
            logits, state = read(model, variables, batch, state)
            nats = token_nats(logits, batch)
            same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
            total = total + nats.sum() / same.sum()
        return total

    expected = jax.jit(jax.grad(chained))(variables)
    _, state = carried(name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        state.optimizer,
        expected,
    )


@pytest.fixture(scope="module")
def config(tiny, documents):
    return tiny("mamba", data=documents("contiguous"))


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """It with checkpoints of steps 2, 4 and 6; not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    train(config, workdir)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def saved_state(workdir, config, step):
    model = LanguageModel(config.model)
    _, shapes = plan_state(config, model, make_mesh(config.mesh))
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.restore(step, shapes)


@pytest.mark.parametrize(
    ("seed", "goes_on"), [(0, True), (1, False)], ids=["on", "anew"]
)
def test_the_next_window_is_read_with_the_memory(copy, config, seed, goes_on):
    """Step 7 by hand; with another seed reading begins anew, from nothing."""
    state = saved_state(copy, config, 6)
    longer = dataclasses.replace(
        config, steps=7, seed=seed, accept_new_config=True
    )
    train(longer, copy)
    model, data = LanguageModel(config.model), prepare(config.data, 16)
    batches = train_batches(
        data, config.data, seq_len=16, batch_size=4, seed=seed
    )
    for _ in range(7 if goes_on else 1):
        batch = next(batches)
    assert (batch.segment_ids[:, 0] == state.memory.segment).any()
    new = begin_memory(model, state.variables, "contiguous", 4)
    memory = state.memory if goes_on else new
    logits, _ = read(model, state.variables, batch, memory)
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    expected = token_nats(logits, batch).sum() / same.sum()
    np.testing.assert_allclose(losses(copy)[-1][1], expected, rtol=1e-5)


def test_a_damaged_memory_is_found(copy, run, config, monkeypatch):
    """A restart from the step before then goes on bit for bit."""
    name = off_by_a_quarter(copy, config, 6, "memory", monkeypatch)
    found = f"memory/{name} has another checksum"
    with pytest.raises(DamagedError, match=found):
        train(config, copy)
    assert [saved.problem for saved in list_steps(copy)] == ["", "", found]
    shutil.rmtree(copy / "checkpoints" / "6" / "memory")
    with pytest.raises(DamagedError, match=r"\(its memory is missing\); that "):
        train(config, copy)
    assert load_model(copy).meta["step"] == 6  # Which needs none.
    assert train(config, copy, skip_damaged=True).step == 6
    assert losses(copy) == losses(run)
    jax.tree.map(
        np.testing.assert_array_equal,
        saved_state(copy, config, 6),
        saved_state(run, config, 6),
    )


def test_how_a_run_reads_stays(copy, config):
    """Rows cannot go on from a memory that is not there, or of others."""
    config = dataclasses.replace(config, accept_new_config=True)
    more = dataclasses.replace(config, batch_size=8)
    with pytest.raises(InputError, match=r"batch_size=4, but now .*=8; use an"):
        train(more, copy)
    windows = dataclasses.replace(config.data, reading="windows")
    plain = dataclasses.replace(config, data=windows)
    check_same_config(
        "runs/mine", to_json(plain), dataclasses.replace(plain, batch_size=8)
    )
    for old, new in ((plain, config), (config, plain)):
        words = f"reading='{old.data.reading}', but now .*; use another --work"
        with pytest.raises(InputError, match=words):
            check_same_config("runs/mine", to_json(old), new)
