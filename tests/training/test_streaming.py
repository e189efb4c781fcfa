"""Files read in pieces, losses by position, samples at constant memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import (
    Sampler,
    SamplerState,
    load_state,
    sample_token,
    save_state,
    state_norms,
)
from nl_jax.data import BPETokenizer, read_blocks
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.models.language_model import ModelState
from nl_jax.training import PositionTable
from tests.training.conftest import draw


@pytest.fixture(scope="module")
def trained(tiny):
    model = LanguageModel(tiny("hope").model)
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model, draw(model, jax.random.key(0), tokens)


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
    sample = jax.jit(sample_token)
    for seed in range(5):
        assert sample(jax.random.key(seed), logits, 0.0, 1.0) == 1
        assert sample(jax.random.key(seed), logits, 9.0, 1e-3) == 1


def test_top_p_leaves_the_tail_out():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 2000)
    draw_all = jax.jit(jax.vmap(sample_token, (0, None, None, None)))
    counts = np.bincount(draw_all(keys, logits, 1.0, 0.75), minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.05)
    counts = np.bincount(draw_all(keys, logits, 1.0, 1.0), minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.05)


def test_a_saved_stream_goes_on_as_if_it_had_not_stopped(trained, tmp_path):
    model, variables = trained
    sampler = Sampler(model, variables, vocab_size=200, seed=3)
    sampler.feed(b"abc")
    first = list(sampler.draw(5, temperature=0.7, top_p=0.9))
    path = tmp_path / "state"

    def load(path, **choices):
        choices = {"kind": SamplerState, "meta": {"step": 1}} | choices
        return load_state(path, model, variables, **choices)

    save_state(path, model, sampler.state, meta={"step": 1})
    expected = list(sampler.draw(5, temperature=0.7, top_p=0.9))
    sampler.state = load(path)
    assert list(sampler.draw(5, temperature=0.7, top_p=0.9)) == expected
    assert max(first + expected) < 200
    with pytest.raises(InputError, match=r"model: it has meta.step=1, this"):
        load(path, meta={"step": 2})
    with pytest.raises(InputError, match="a SamplerState, not a ModelState"):
        load(path, kind=ModelState)
    with pytest.raises(InputError, match="nothing does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(InputError, match="a folder, as earlier versions"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError, match="is damaged"):
        load(path)


def test_a_state_has_the_same_size_for_ever(trained):
    model, variables = trained
    sampler = Sampler(model, variables, vocab_size=200)

    def size():
        return sum(leaf.nbytes for leaf in jax.tree.leaves(sampler.state))

    before = size()
    sampler.feed(itertools.repeat(65, 50))
    assert size() == before


def test_a_kept_state_stays_good(trained):
    model, variables = trained
    sampler = Sampler(model, variables, vocab_size=200)
    kept = sampler.state
    first = list(sampler.draw(3))
    sampler.state = kept
    assert list(sampler.draw(3)) == first


@pytest.mark.parametrize("tokens", [[5, -1], [5, 300], [0.5], "ab", [[1]]])
def test_a_sampler_reads_all_ids_or_none(trained, tokens):
    sampler = Sampler(*trained)
    before = sampler.state
    with pytest.raises(InputError, match=r"tokens (has the id|is )"):
        sampler.feed(tokens)
    assert sampler.state is before
    sampler.feed([])
    assert sampler.state is before


def test_impossible_samples_are_refused_at_once(trained):
    sampler = Sampler(*trained)
    for choices, message in (
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_p": "1"}, "top_p='1' must be a finite number"),
        ({"top_p": 2.0}, r"top_p=2.0 must be in \(0, 1\]"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"count": -1}, "count=-1 must be an integer >= 0"),
    ):
        with pytest.raises(InputError, match=message):
            sampler.draw(**{"count": 1} | choices)
    with pytest.raises(InputError, match="vocab_size=999 must be at most"):
        Sampler(*trained, vocab_size=999)
