"""Saved weights: the same logits again, here and in transformers."""

import json
import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from nl_jax import continual
from nl_jax.data import BPETokenizer, ByteTokenizer
from nl_jax.errors import InputError
from nl_jax.layers import RopeScaling
from nl_jax.models import build
from nl_jax.pretrained import (
    Pretrained,
    load_pretrained,
    save_pretrained,
    tokenizer_text,
)
from tests.continual.conftest import LEVELS, VOCAB, apply, equal, make

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (1, 12))
SIZES = {"vocab_size": VOCAB, "d_model": 8, "n_layers": 2, "n_heads": 2}
SCALED = RopeScaling("llama3", 8.0, original_context=40)
FAMILIES = {
    "tied": ("llama", {}, {}),
    "separate": (
        "llama",
        {"bias": True, "out_bias": True, "rope_scaling": SCALED},
        {"tie_embeddings": False},
    ),
    "wide": (
        "qwen2",
        {"bias": True, "kv_heads": 1, "head_dim": 6},
        {"scale_embeddings": False},
    ),
    "odd": (
        "mistral",
        {"head_dim": 6, "rope_scaling": RopeScaling("linear", 4.0)},
        {"n_heads": 3},
    ),
}
"""Name of the family, fields of attention, other fields."""


def transformer(attention, fields):
    attention = {"conv_width": 0, "window": 16} | attention
    model = build("transformer", **SIZES | fields, attention=attention)
    return random_weights(model)


def random_weights(model):
    """With biases and norms that are not 0 and 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    rng = np.random.default_rng(0)
    return Pretrained(
        model,
        jax.tree.map(
            lambda s: jnp.asarray(rng.normal(0, 0.4, s.shape), s.dtype), shapes
        ),
    )


def logits_of(found):
    return apply(found.model, found.variables, jnp.asarray(TOKENS), None)[0]


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    name, attention, fields = FAMILIES[request.param]
    found = transformer(attention, fields)
    assert save_pretrained(found, tmp_path / "m") == name
    return found, tmp_path / "m"


def test_the_llama_family_comes_back_bit_for_bit(family):
    found, folder = family
    back = load_pretrained(folder)
    assert not back.model.config.scale_embeddings
    np.testing.assert_array_equal(logits_of(back), logits_of(found))
    again = folder.with_name("again")
    save_pretrained(back, again)
    twice = load_pretrained(again)
    assert twice.model == back.model
    assert equal(twice.variables, back.variables)


def test_transformers_reads_the_llama_family(family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found, folder = family
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    with torch.no_grad():
        logits = model(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits, logits_of(found), atol=1e-4, rtol=0)


def test_transformers_reads_the_tokenizers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    model = random_weights(
        build("transformer", **SIZES | {"vocab_size": 270}, attention=PLAIN)
    )
    text = "naïve 1234\n  they're\x00 日本"
    bpe = BPETokenizer.train(text.encode() * 9, 270)
    for number, tokenizer in enumerate((ByteTokenizer(), bpe)):
        folder = tmp_path / str(number)
        found = Pretrained(
            model.model, model.variables, tokenizer_text(tokenizer)
        )
        save_pretrained(found, folder)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer.encode(text).tolist()
        assert theirs.decode(ids) == text
        own = load_pretrained(folder).tokenizer()
        assert type(own) is type(tokenizer)
        assert own.to_json() == tokenizer.to_json()


PLAIN = {"conv_width": 0, "window": 16}


@pytest.mark.parametrize("name", ["hope", "gpt2", "table", "conv", "kept"])
def test_other_models_come_back_as_they_were(tmp_path, name):
    table = RopeScaling("table", 2.0, table=(1.0, 3.0))
    fields = {
        "hope": {"dtype": "bfloat16"},
        "gpt2": {
            "norm": {"kind": "layer"},
            "learned_positions": True,
            "attention": PLAIN | {"rope_base": None},
            "cms": {"mlp": "gelu"},
        },
        "table": {"attention": PLAIN | {"rope_scaling": table}},
        "conv": {},
        "kept": {"attention": PLAIN | {"persistent": 2}},
    }[name]
    kind = "hope" if name == "hope" else "transformer"
    found = random_weights(build(kind, **SIZES | fields))
    assert save_pretrained(found, tmp_path / "m") == "nl_jax"
    back = load_pretrained(tmp_path / "m")
    assert back.model == found.model
    assert equal(back.variables, found.variables)
    with pytest.raises(InputError, match="window=4 goes with models of other"):
        load_pretrained(tmp_path / "m", window=4)


def test_stacked_and_consolidated_models(tmp_path):
    """Levels come along; without them, what they have learned."""
    plain = transformer({}, {})
    stacked = continual.stack_levels(plain, (4, 8), rate=0.3)
    model = stacked.model
    _, state = apply(model, stacked.variables, jnp.asarray(TOKENS), None)
    variables = continual.consolidate(model, stacked.variables, state, 1)
    learned = Pretrained(model, variables)
    assert save_pretrained(learned, tmp_path / "m") == "nl_jax"
    back = load_pretrained(tmp_path / "m")
    assert back.model == model and equal(back.variables, variables)
    np.testing.assert_array_equal(logits_of(back), logits_of(learned))

    static = continual.unstack_levels(back)
    assert static.model == plain.model
    assert save_pretrained(static, tmp_path / "s") == "llama"
    cms = load_pretrained(tmp_path / "s").variables["params"]["blocks"]["cms"]
    for name, weights in cms.items():
        before = plain.variables["params"]["blocks"]["cms"][name]
        fast = state.cms.fast[0].get(name.removeprefix("level_1_"))
        if fast is not None:  # The first level is the first of two blocks.
            np.testing.assert_array_equal(weights[0], fast[0, 0])
            assert not np.array_equal(weights[0], before[0])
        np.testing.assert_array_equal(weights[1], before[1])
    with pytest.raises(InputError, match="only a transformer with levels"):
        continual.unstack_levels(plain)


def test_bfloat16_rounds_to_nearest(tmp_path, monkeypatch):
    found = transformer({}, {"scale_embeddings": False})
    # An empty folder stays the current one of whoever is in it.
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path / "m")
    save_pretrained(found, ".", dtype="bfloat16")
    assert sorted(os.listdir(".")) == ["config.json", "model.safetensors"]
    half = (tmp_path / "m" / "model.safetensors").stat().st_size
    modes = {path.stat().st_mode for path in (tmp_path / "m").iterdir()}
    assert len(modes) == 1
    save_pretrained(found, tmp_path / "n")
    assert half < 0.6 * (tmp_path / "n" / "model.safetensors").stat().st_size
    rounded = jax.tree.map(
        lambda a: np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32),
        found.variables,
    )
    assert equal(load_pretrained(tmp_path / "m").variables, rounded)


def test_what_cannot_be_saved_is_one_line(tmp_path, monkeypatch):
    found = transformer({}, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("")
    unnamed = LEVELS | {"inner": optax.scale_by_lion()}
    unnamed = random_weights(build("hope-attention", **SIZES, cms=unnamed))
    for model, name, dtype, words in (
        (found, "full", "float32", "full exists already; give a new folder"),
        (found, "full/precious", "float32", "exists already"),
        (found, "full/precious/m", "float32", "could not save"),
        (found, "m", "int8", "dtype='int8' must be one of"),
        (unnamed, "m", "float32", "cms.inner holds an optax transformation"),
    ):
        with pytest.raises(InputError, match=words) as error:
            save_pretrained(model, tmp_path / name, dtype=dtype)
        assert "\n" not in str(error.value)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(InputError, match=r"could not save .*No space left"):
        save_pretrained(found, tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_damaged_files_of_this_library_are_one_line(tmp_path):
    case = make("deltanet")
    save_pretrained(Pretrained(*case[:2]), tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    whole = json.loads(file.read_text())
    for change, words in (
        ({"format": 2}, "format=2; this version reads 1"),
        ({"model": 5}, "its entry model is damaged"),
        ({"model": whole["model"] | {"cms": 5}}, "its entry model is damaged"),
        ({"model": whole["model"] | {"new": 5}}, "unknown field new"),
        ({"model": whole["model"] | {"d_model": 16}}, "has shape"),
        ({"rope_theta": 5.0}, "rope_theta=5.0 is not known"),
    ):
        file.write_text(json.dumps(whole | change))
        with pytest.raises(InputError, match=words) as error:
            load_pretrained(tmp_path / "m")
        assert "\n" not in str(error.value)
