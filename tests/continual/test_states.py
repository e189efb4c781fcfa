"""States: saved, inspected, reset, forked, and written into the parameters."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import (
    SamplerState,
    consolidate,
    fork,
    inspect,
    load_state,
    reset_level,
    reset_rows,
    save_state,
    stream,
)
from nl_jax.errors import InputError
from nl_jax.layers import TitansConfig
from nl_jax.models import build
from tests.continual.conftest import advance, apply, assert_same, equal, make


@pytest.fixture(scope="module")
def state(learning):
    """Two rows, 22 tokens: 2 into the chunk, 6 into the slower period."""
    return advance(learning, learning.tokens[:, :22])


def row(state, index):
    return jax.tree.map(lambda leaf: leaf[index], state)


def test_a_saved_state_is_the_same_state(learning, state, tmp_path):
    path = tmp_path / "state"
    save_state(path, learning.model, state)
    loaded = load_state(path, learning.model, learning.variables)
    assert equal(loaded, state)
    assert jax.tree.structure(loaded) == jax.tree.structure(state)
    # Replaced, and nothing beside it.
    one = fork(state, 1)
    save_state(path, learning.model, one)
    assert equal(load_state(path, *learning[:2]), one)
    assert os.listdir(tmp_path) == ["state"]


def test_states_keep_their_documents(learning, state, tmp_path):
    """Rows of packed documents: in files, in streams, reset and copied."""
    model, variables, tokens = learning
    known = state._replace(segment=jnp.array([4, 7], jnp.int32))
    logits, key = jnp.zeros(model.config.vocab_size), jax.random.key(0)
    sampler = SamplerState(fork(known, 1), logits, jax.random.key_data(key))
    for saved in (known, sampler):
        save_state(tmp_path / "state", model, saved)
        loaded = load_state(
            tmp_path / "state", model, variables, kind=type(saved)
        )
        assert equal(loaded, saved)
        assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    *_, last = stream(model, variables, tokens[:, 22:24], known)
    anew = reset_rows(model, variables, known, [1])
    level = reset_level(model, variables, known, 1)
    found = [s.segment.tolist() for s in (last.state, anew, level)]
    assert found == [[4, 7], [4, 0], [4, 7]]
    wrong = known._replace(segment=jnp.zeros(3, jnp.int32))
    with pytest.raises(InputError, match=r"segment has shape \(3,\), not"):
        save_state(tmp_path / "state", model, wrong)


def test_bfloat16_leaves_are_saved(tmp_path):
    model = build(
        "transformer", d_model=8, n_heads=2, n_layers=1, dtype="bfloat16"
    )
    tokens = jnp.arange(5)[None]
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    _, state = jax.jit(model.apply)(variables, tokens)
    assert any(a.dtype == jnp.bfloat16 for a in jax.tree.leaves(state))
    save_state(tmp_path / "state", model, state)
    assert equal(load_state(tmp_path / "state", model, variables), state)


def test_files_that_are_no_such_state(learning, static, state, tmp_path):
    path = tmp_path / "state"
    save_state(path, learning.model, state)
    model, variables = learning[:2]
    load_state(path, build(model.config, remat="blocks"), variables)
    with pytest.raises(InputError, match="nothing does not exist; save a"):
        load_state(tmp_path / "nothing", model, variables)
    faster = build(model.config, cms={"rate": 0.2})
    with pytest.raises(
        InputError, match=r"another model: it has cms.rate=0.3, this one 0.2"
    ):
        load_state(path, faster, variables)
    with pytest.raises(InputError, match="is the state of another model"):
        load_state(path, *static[:2])
    with pytest.raises(ValueError, match="state is not one of this deltanet"):
        save_state(path, static.model, state)

    whole = path.read_bytes()
    middle = len(whole) // 2
    garbled = whole[:middle] + bytes(99) + whole[middle + 99 :]
    unbalanced = whole.replace(b"(), }", b"((, }", 1)
    assert unbalanced != whole
    for damaged in (b"", b"hello", whole[:middle], garbled, unbalanced):
        other = tmp_path / "damaged"
        other.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or not a saved state"):
            load_state(other, model, variables)
    np.savez(tmp_path / "a.npz", header=np.array([{"a": 1}], object))
    with pytest.raises(InputError, match="damaged or not a saved state"):
        load_state(tmp_path / "a.npz", model, variables)  # It is a pickle.
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    for change, words in (
        ({"format": "nl_jax state 9"}, "has the format 'nl_jax state 9'"),
        ({"rows": 5}, "its arrays have other shapes"),
    ):
        np.savez(
            tmp_path / "b.npz", header=json.dumps(header | change), **arrays
        )
        with pytest.raises(InputError, match=words):
            load_state(tmp_path / "b.npz", model, variables)


def test_a_failed_save_leaves_the_file_as_it_was(
    learning, state, tmp_path, monkeypatch
):
    path = tmp_path / "state"
    save_state(path, learning.model, state)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"could not save .*No space left"):
        save_state(path, learning.model, state)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["state"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="could not save"):
        save_state(tmp_path / "no" / "folder", learning.model, state)
    with pytest.raises(InputError, match="could not save"):
        save_state(tmp_path, learning.model, state)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="could not save"):
        save_state(".", learning.model, state)
    assert os.listdir(tmp_path) == ["state"]
    shutil.rmtree(tmp_path)


def test_inspection_measures(learning, state):
    model, variables = learning[:2]
    report = inspect(model, variables, state)
    fresh = inspect(model, variables, model.init_state(variables, 2))
    assert [level.name for level in report.levels] == [
        "cms.level_1",
        "cms.level_2",
    ]
    for index, level in enumerate(report.levels):
        fast = row(state.cms.fast[index], 1)
        norm = np.sqrt(sum((leaf**2).sum() for leaf in fast.values()))
        np.testing.assert_allclose(level.norm[1], norm, rtol=1e-5)
        assert (level.distance > 1e-3).all()
        assert (fresh.levels[index].distance == 0).all()
        assert (fresh.levels[index].gathered == 0).all()
    # 22 tokens are 5 chunks of 4 and 2 tokens, 2 periods of 8 and 6 tokens.
    assert report.levels[0].position.tolist() == [2, 2]
    assert report.levels[1].position.tolist() == [6, 6]
    assert (report.levels[0].gathered == 0).all()
    assert (report.levels[1].gathered > 0).all()
    assert all(norms.shape == (2, 2) for norms in report.mixers.values())
    assert report.finite
    assert "cms.level_2: token 6 of 8, norm" in str(report)
    broken = jax.tree.map(jnp.copy, state)
    broken.cms.gathered[1]["up"] = broken.cms.gathered[1]["up"] + jnp.nan
    assert not inspect(model, variables, broken).finite


def test_rows_are_reset_and_others_keep_every_bit(learning, state):
    model, variables, _ = learning
    found = reset_rows(model, variables, state, [1])
    assert equal(row(found, 0), row(state, 0))
    assert equal(row(found, 1), row(model.init_state(variables, 2), 1))
    # It goes on as a new context, beside one that is inside a period.
    nats, fresh, kept = (
        read_on(learning, start)
        for start in (found, model.init_state(variables, 2), state)
    )
    np.testing.assert_allclose(nats[1], fresh[1], atol=1e-5)
    np.testing.assert_allclose(nats[0], kept[0], atol=1e-5)
    assert np.abs(nats[1] - kept[1]).max() > 0.01


def read_on(case, state):
    """Losses of the rest of the tokens, and scores of the next one."""
    chunks = list(stream(*case[:2], case.tokens[:, 22:], state, chunk=8))
    nats = [chunk.nats for chunk in chunks]
    return np.concatenate([*nats, chunks[-1].logits], 1)


def test_a_level_is_reset_and_others_keep_every_bit(learning, state):
    model, variables = learning[:2]
    start = model.init_state(variables, 2)
    found = reset_level(model, variables, state, 2)
    assert equal(found.cms.fast[1], start.cms.fast[1])
    assert equal(found.cms.gathered[1], start.cms.gathered[1])
    assert not equal(found.cms.fast[1], state.cms.fast[1])
    assert equal(found.cms.fast[0], state.cms.fast[0])
    assert equal(found.mixers, state.mixers)
    assert equal(found.cms.position, state.cms.position)
    only = reset_level(model, variables, state, 2, rows=0)
    assert equal(row(only, 0), row(found, 0))
    assert equal(row(only, 1), row(state, 1))


def test_mixers_are_reset_on_the_grid_of_chunks(learning, state):
    """The levels go on where the unfinished chunk began, token by token."""
    model, variables, tokens = learning
    found = reset_level(model, variables, state, "mixers")
    start = model.init_state(variables, 2)
    assert equal(found.mixers, start.mixers)
    assert equal(found.cms.fast, state.cms.fast)
    assert found.cms.position.tolist() == [4, 4]
    whole = advance(learning, tokens[:, :20])  # Where that chunk began.
    whole = whole._replace(
        mixers=start.mixers, cms=whole.cms._replace(carry=start.mixers)
    )
    after, expected = (
        advance(learning, tokens[:, :5], s) for s in (found, whole)
    )
    assert_same(after, expected, 1e-5)


def test_static_models_have_rows_and_mixers_too(static, tmp_path):
    model, variables, tokens = static
    state = advance(static, tokens[:, :10])
    start = model.init_state(variables, 2)
    assert equal(reset_level(model, variables, state, "mixers"), start)
    found = reset_rows(model, variables, state, 0)
    assert equal(row(found, 0), row(start, 0))
    assert equal(row(found, 1), row(state, 1))
    save_state(tmp_path / "state", model, state)
    assert equal(load_state(tmp_path / "state", model, variables), state)
    report = inspect(model, variables, state)
    assert report.levels == () and report.finite
    for call in (reset_level, consolidate):
        with pytest.raises(ValueError, match="no MLP of this deltanet learns"):
            call(model, variables, state, 1)


def test_forks_begin_alike_and_go_on_alone(learning, state):
    users = fork(state, [1, 0])
    assert equal(row(users, 0), row(state, 1))
    assert equal(row(users, 1), row(state, 0))
    users = fork(state, [1] * 2)
    before = jax.tree.map(np.array, state)
    after = advance(learning, learning.tokens[:, 22:], users)
    assert not equal(row(after, 0), row(after, 1))
    same = np.repeat(learning.tokens[:1, 22:], 2, 0)
    after = advance(learning, same, users)
    assert equal(row(after, 0), row(after, 1))
    assert equal(state, before)


def test_consolidated_weights_are_what_a_new_context_begins_with(
    learning, state
):
    model, variables = learning[:2]
    before = jax.tree.map(np.array, variables)
    new = consolidate(model, variables, state, 2, row=1)
    fresh = model.init_state(new, 1)
    assert equal(row(fresh.cms.fast[1], 0), row(state.cms.fast[1], 1))
    old = model.init_state(variables, 1)
    assert equal(fresh.cms.fast[0], old.cms.fast[0])
    # The block that does not learn in context and all else keep every bit.
    differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), new, variables)
    changed = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(differ)
        if leaf
    }
    cms = "['params']['blocks']['cms']['level_2_{}']"
    assert changed == {cms.format(name) for name in ("gate", "up", "down")}
    for name in ("gate", "up", "down"):
        slow = new["params"]["blocks"]["cms"][f"level_2_{name}"]
        kept = variables["params"]["blocks"]["cms"][f"level_2_{name}"]
        assert np.array_equal(slow[0], kept[0])
    assert equal(variables, before)
    report = inspect(model, new, state)
    assert report.levels[1].distance[1] == 0 < report.levels[1].distance[0]


SHARED = {"architecture": "linear", "momentum": False, "value_norm": "input"}
assert TitansConfig(**SHARED).shares_recurrence


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("hope", {}),
        ("hope", {"titans": SHARED}),
        pytest.param(
            "titans-mac",
            {"titans_attention": {"memory": {"chunk_size": 4}}},
            marks=pytest.mark.slow,
        ),
        ("srwm", {}),
    ],
)
def test_memories_of_mixers_are_consolidated(name, choices):
    """A new context starts from the weights of the old one, mixer by mixer."""
    model, variables, tokens = make(name, **choices)
    tokens = np.tile(tokens, 2)[:, :44]
    _, state = apply(model, variables, tokens, model.init_state(variables, 2))
    new = consolidate(model, variables, state, "mixers", row=1)
    mixed = consolidate(
        model, variables, state, "mixers", weights=[0.25, 0.75], share=0.4
    )

    def weights(mixers):
        """Of all memories; if one recurrence is shared, ``M_t = M_0 G_t``."""
        memory = getattr(mixers.memory, "memory", mixers.memory)
        memory = getattr(memory, "memory", memory)
        both = [getattr(memory, "weights", memory)]
        if not hasattr(mixers, "generators"):
            return both
        both.append(mixers.generators.weights)
        if both[0]:
            return both
        (product,) = both[1]
        starts = memory.start[0], mixers.generators.start[0]
        return [
            np.einsum("blhij,blhjk->blhik", product, starts[0]),
            np.einsum("blhij,blnhjk->blnhik", product, starts[1]),
        ]

    old = weights(model.init_state(variables, 1).mixers)
    learned = weights(state.mixers)
    assert not equal(row(learned, 0), row(learned, 1))
    begun = weights(model.init_state(new, 1).mixers)
    assert_same(row(begun, 0), row(learned, 1), atol=1e-6)
    expected = jax.tree.map(
        lambda a, b: 0.6 * a[0] + 0.1 * b[0] + 0.3 * b[1], old, learned
    )
    found = weights(model.init_state(mixed, 1).mixers)
    assert_same(row(found, 0), expected, atol=1e-6)
    same = jax.tree.map(np.array_equal, new, variables)
    changed = {
        jax.tree_util.keystr(path)
        for path, kept in jax.tree_util.tree_leaves_with_path(same)
        if not kept
    }
    assert changed
    assert all("memory" in at or "generators" in at for at in changed)


def test_a_share_of_weighted_rows_is_consolidated(learning, state):
    model, variables = learning[:2]
    new = consolidate(
        model, variables, state, 1, weights=[0.25, 0.75], share=0.4
    )
    name = "level_1_up"
    old = variables["params"]["blocks"]["cms"][name][1]
    fast = state.cms.fast[0]["up"][:, 0]
    expected = 0.6 * old + 0.4 * (0.25 * fast[0] + 0.75 * fast[1])
    found = new["params"]["blocks"]["cms"][name][1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"level": 0}, "level=0 must be from 1, the fastest, to 2, or"),
        ({"level": 3}, "level=3 must be from 1"),
        ({"level": "mixers"}, "level='mixers': the memories of .* do not"),
        ({"level": "all"}, "level='all' must be from 1.*, or 'mixers'$"),
        ({"row": None}, "row=None: the state has 2 rows"),
        ({"row": 2}, r"rows=\[2\] must be one or several of 0 to 1"),
        ({"share": 0}, r"share=0 must be in \(0, 1\]"),
        ({"share": 1.5}, r"share=1.5 must be in \(0, 1\]"),
        ({"weights": [0.5, 0.5]}, "row=0 and weights are given"),
        ({"row": None, "weights": [1.0]}, r"shape \(1,\); needs \(2,\)"),
        ({"row": None, "weights": [0.5, 0.6]}, "with a sum of 1"),
        ({"row": None, "weights": [1.5, -0.5]}, "must be >= 0"),
    ],
)
def test_what_cannot_be_consolidated(learning, state, choices, words):
    with pytest.raises(ValueError, match=words):
        consolidate(
            learning.model,
            learning.variables,
            state,
            **{"level": 1, "row": 0} | choices,
        )


def test_rows_and_levels_that_are_not_there(learning, static, state):
    model, variables = learning[:2]
    for rows in ([2], [-1], [], 0.5, [[0]]):
        with pytest.raises(ValueError, match="one or several of 0 to 1"):
            reset_rows(model, variables, state, rows)
        with pytest.raises(ValueError, match="one or several of 0 to 1"):
            fork(state, rows)
    with pytest.raises(ValueError, match="from 1, the fastest, to 2, or 'mix"):
        reset_level(model, variables, state, 3)
    for call in (inspect, lambda *a: reset_rows(*a, 0)):
        with pytest.raises(ValueError, match="not one of this deltanet"):
            call(static.model, static.variables, state)
