"""Files read in pieces, losses by position, samples at constant memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import PositionTable, Sampler, sample_token, state_norms
from nl_jax.data import BPETokenizer, read_blocks
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.training import load_tree, save_tree, saved


@pytest.fixture(scope="module")
def trained(tiny):
    model = LanguageModel(tiny("hope").model)
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model, model.init(jax.random.key(0), tokens)


def test_norms_name_each_leaf(trained):
    model, variables = trained
    norms = state_norms(model.init_state(variables, 1))
    assert norms and all(np.isfinite(list(norms.values())))
    assert any("memory" in name for name in norms)


def test_buckets_double():
    table = PositionTable()
    for _ in range(4):
        table.add(np.full(25, np.log(2.0)), np.ones(25, np.int32))
    rows = table.rows()
    assert [row["start"] for row in rows] == [0, 2, 4, 8, 16, 32, 64]
    assert sum(row["bytes"] for row in rows) == 100
    assert all(row["bits_per_byte"] == pytest.approx(1) for row in rows)
    assert table.total() == pytest.approx(1)


@pytest.mark.parametrize("size", [3, 7, 1000])
def test_blocks_spell_the_file(tmp_path, size):
    path = tmp_path / "a.txt"
    text = "naïve\n日本日本日本日本日本日本日本日本日本日本日本日本\nend"
    path.write_text(text * 5)
    blocks = list(read_blocks(path, size))
    assert b"".join(blocks) == path.read_bytes()


def test_bpe_blocks_spell_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some words and more words\n" * 50)
    tokenizer = BPETokenizer.train(path.read_bytes(), 280)
    tokens = np.concatenate(
        [tokenizer.encode(block) for block in read_blocks(path, 64)]
    )
    assert tokenizer.byte_lengths[tokens].sum() == path.stat().st_size


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "not a file"),
        (b"", "is empty"),
        (b"a\0b", "is binary"),
        (b"\xff" * 9, "not UTF-8"),
    ],
)
def test_bad_files(tmp_path, content, words):
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_blocks(path))


def test_greedy_sampling_takes_the_best():
    logits = jnp.array([0.0, 2.0, 1.0])
    for seed in range(5):
        assert sample_token(jax.random.key(seed), logits, 0.0, 1.0) == 1
        assert sample_token(jax.random.key(seed), logits, 9.0, 1e-3) == 1


def test_top_p_leaves_the_tail_out():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 2000)
    draw = jax.jit(jax.vmap(sample_token, (0, None, None, None)))
    counts = np.bincount(draw(keys, logits, 1.0, 0.75), minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.05)
    counts = np.bincount(draw(keys, logits, 1.0, 1.0), minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_a_saved_stream_goes_on_as_if_it_had_not_stopped(trained, tmp_path):
    model, variables = trained
    sampler = Sampler(model, variables, vocab_size=200, seed=3)
    sampler.feed(b"abc")
    first = list(sampler.draw(5, temperature=0.7, top_p=0.9))
    save_tree(tmp_path / "state", sampler.state, {"model": 1})
    shapes = jax.eval_shape(lambda: sampler.state)
    expected = list(sampler.draw(5, temperature=0.7, top_p=0.9))
    sampler.state = load_tree(tmp_path / "state", shapes, {"model": 1})
    assert list(sampler.draw(5, temperature=0.7, top_p=0.9)) == expected
    assert max(first + expected) < 200
    with pytest.raises(InputError, match="another model"):
        load_tree(tmp_path / "state", shapes, {"model": 2})
    with pytest.raises(InputError, match="does not exist"):
        load_tree(tmp_path / "nothing", shapes, {"model": 1})
    for file in (tmp_path / "state" / "tree" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(InputError, match="is damaged"):
        load_tree(tmp_path / "state", shapes, {"model": 1})


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path, tree = tmp_path / "state", {"a": jnp.arange(3.0)}
    for factor in (1, 2):
        save_tree(path, {"a": factor * tree["a"]}, {})

    def stop(folder, *args, **options):
        folder.mkdir()
        raise OSError("no space left")

    monkeypatch.setattr(saved.ocp, "save_checkpointables", stop)
    with pytest.raises(InputError, match=r"could not save .*no space left"):
        save_tree(path, tree, {})
    found = load_tree(path, tree, {})
    np.testing.assert_array_equal(found["a"], 2 * tree["a"])


def test_a_state_has_the_same_size_for_ever(trained):
    model, variables = trained
    sampler = Sampler(model, variables)

    def size():
        return sum(leaf.nbytes for leaf in jax.tree.leaves(sampler.state))

    before = size()
    sampler.feed(itertools.repeat(65, 50))
    assert size() == before
