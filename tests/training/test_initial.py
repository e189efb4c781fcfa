"""Runs that begin with weights of others."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nl_jax.data import BPETokenizer, ByteTokenizer, prepare, train_batches
from nl_jax.errors import InputError
from nl_jax.models import LanguageModel
from nl_jax.pretrained import Pretrained, save_pretrained, tokenizer_text
from nl_jax.training import begin_run, flag_config, load_weights, train
from nl_jax.training.initial import initial_tokenizer
from nl_jax.training.matching import put_weights
from tests.training.conftest import draw


@pytest.fixture
def source(tiny, tmp_path):
    """A model of other sizes and weights than a run's, and its folder."""
    config = tiny(model={"attention": {"conv_width": 0}}).model
    model = LanguageModel(config)
    variables = draw(model, jax.random.key(7), jnp.zeros((1, 1), jnp.int32))
    found = Pretrained(model, variables, tokenizer_text(ByteTokenizer()))
    save_pretrained(found, tmp_path / "source")
    return found, tmp_path / "source"


def flags(text_file, path, **changes):
    data = {"paths": (str(text_file),), "max_held_out_bytes": 256}
    changes = {"data": data, "seq_len": 16, "batch_size": 4} | changes
    config = flag_config(**changes, steps=1, eval_every=0)
    config.init_from = str(path)
    return config


def test_a_run_begins_with_the_weights_and_resumes_without_them(
    source, text_file, tmp_path
):
    found, folder = source
    config, initial = begin_run(flags(text_file, folder), tmp_path / "run")
    assert config.model == load_weights(folder).model.config
    assert config.init_from == str(folder)
    first = train(config, tmp_path / "run", initial=initial)

    data = prepare(config.data, 16)
    batches = train_batches(data, config.data, seq_len=16, batch_size=4, seed=0)
    batch = next(batches).tokens
    batches.close()
    logits, _ = found.model.apply(found.variables, batch[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, batch[:, 1:]
    )
    assert first.records[0]["loss"] == pytest.approx(float(losses.mean()))

    shutil.rmtree(folder)
    (tmp_path / "run" / "config.json").write_text("{")  # The run needs none.
    later = flags(text_file, "", accept_new_config=True)
    later.steps = 2
    config, initial = begin_run(later, tmp_path / "run")
    assert initial is None and config.init_from == str(folder)
    # Nor need the configuration say where the weights came from.
    bare = dataclasses.replace(config, init_from="")
    assert train(bare, tmp_path / "run").step == 2
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["init_from"] == str(folder)
    other = dataclasses.replace(
        config, init_from="elsewhere", accept_new_config=False
    )
    with pytest.raises(InputError, match="but now init_from='elsewhere'"):
        train(other, tmp_path / "run")
    # A run is such weights too.
    again = load_weights(tmp_path / "run", 1)
    assert again.model.config == config.model
    assert again.tokenizer_json == found.tokenizer_json


def test_fields_that_are_set_change_the_model(source, text_file, tmp_path):
    def model(**fields):
        config = flags(text_file, source[1], model=fields)
        return begin_run(config, tmp_path)[0].model

    base = load_weights(source[1]).model.config
    assert model(dtype="bfloat16") == dataclasses.replace(
        base, dtype="bfloat16"
    )
    assert model(name="transformer") == base
    hope = model(name="hope-attention")
    assert (hope.name, hope.attention) == ("hope-attention", base.attention)
    assert hope.cms.hidden == base.cms.hidden and len(hope.cms.periods) == 2
    for fields, words in (
        ({"preset": "small"}, "preset='small' does not go with init_from"),
        ({"name": "gpt9"}, "'gpt9' does not exist"),
    ):
        with pytest.raises(InputError, match=words):
            model(**fields)


def test_the_tokenizer_is_that_of_the_weights(source, text_file, tmp_path):
    found, _ = source
    bpe = BPETokenizer.train(text_file.read_bytes(), 256)
    folder = tmp_path / "bpe"
    save_pretrained(
        dataclasses.replace(found, tokenizer_json=tokenizer_text(bpe)), folder
    )
    config, initial = begin_run(flags(text_file, folder), tmp_path)
    assert config.data.tokenizer == "bpe"
    tokenizer = initial_tokenizer(config, initial)
    data = prepare(config.data, 16, tokenizer)
    assert data.tokenizer.to_json() == bpe.to_json()
    other = dataclasses.replace(config.data, tokenizer="byte")
    with pytest.raises(InputError, match="is not the one that the checkpoint"):
        train(dataclasses.replace(config, data=other))


def test_parameters_are_matched_by_name(caplog):
    caplog.set_level("INFO", "nl_jax")
    drawn = {"a": np.zeros(2), "b": {"c": np.zeros(3)}}
    found = {"b": {"c": np.ones(3), "d": np.ones(1)}}
    merged = put_weights("path", found, drawn)
    assert merged["b"]["c"] is found["b"]["c"] and merged["a"] is drawn["a"]
    assert merged.keys() == drawn.keys() and merged["b"].keys() == {"c"}
    assert "drawn, since they are not there: a" in caplog.text
    assert "there, but not in this model: b.d" in caplog.text
    with pytest.raises(InputError, match=r"b.c has shape \(3,\), in the model"):
        put_weights("path", found, {"b": {"c": np.zeros(4)}})
    with pytest.raises(InputError, match="has no parameter of this model"):
        put_weights("path", {"x": np.ones(1)}, drawn)


def test_weights_that_are_not_there(text_file, tmp_path):
    for path, step, words in (
        (tmp_path / "nowhere", None, "does not exist"),
        (tmp_path, None, "holds neither model.safetensors nor"),
        (tmp_path, 3, "step=3: .* holds no checkpoints"),
    ):
        with pytest.raises(InputError, match=words):
            load_weights(path, step)
    with pytest.raises(InputError, match="does not exist"):
        begin_run(flags(text_file, tmp_path / "nowhere"), tmp_path / "run")
