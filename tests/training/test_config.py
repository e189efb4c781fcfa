import json

import pytest

from nl_jax.data import DataConfig
from nl_jax.errors import InputError
from nl_jax.models import configure
from nl_jax.training import (
    OptimizerConfig,
    TrainConfig,
    flag_config,
    freeze,
    to_json,
)


def test_every_field_has_a_flag():
    flags = flag_config()
    frozen = to_json(freeze(flags))

    def names(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert set(names(frozen)) <= set(names(flags.to_dict()))


def test_defaults_are_the_dataclass_defaults():
    assert freeze(flag_config()) == TrainConfig()


def test_a_flag_changes_its_field_and_keeps_the_preset():
    config = flag_config(model={"name": "transformer", "preset": "small"})
    config.model.d_model = 64
    model = freeze(config).model
    assert (model.d_model, model.n_layers) == (64, 6)
    assert model.cms.hidden == configure("transformer").cms.hidden


def test_the_vocabulary_follows_the_tokenizer():
    config = flag_config(data={"tokenizer": "bpe", "bpe_vocab_size": 300})
    assert freeze(config).model.vocab_size == 300


def test_json_gives_the_model_back():
    config = freeze(flag_config(model={"cms": {"step_periods": (1, 2)}}))
    saved = json.loads(json.dumps(to_json(config)))
    assert configure("hope", **saved["model"]) == config.model


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        (TrainConfig, {"steps": 0}, "steps=0"),
        (TrainConfig, {"batch_size": 6, "accumulate": 4}, "accumulate=4"),
        (
            TrainConfig,
            {"seq_len": 50},
            "must be a multiple of 16, where the chunks of model.titans",
        ),
        (
            DataConfig,
            {"tokenizer": "words"},
            "data.tokenizer='words'.*'byte', 'bpe'",
        ),
        (DataConfig, {"held_out": 1.5}, "held_out=1.5"),
        (OptimizerConfig, {"learning_rate": -1.0}, "learning_rate=-1.0"),
        (OptimizerConfig, {"b2": 1.0}, "b2=1.0"),
        (
            OptimizerConfig,
            {"name": "lion"},
            r"optimizer\.name='lion' must be one of 'adamw', .*'m3'",
        ),
    ],
)
def test_bad_values_name_the_field(kind, fields, words):
    with pytest.raises(InputError, match=words):
        kind(**fields)


def test_a_bad_model_names_the_field():
    with pytest.raises(InputError, match="n_heads=3 must divide d_model"):
        freeze(flag_config(model={"n_heads": 3}))


def test_sequences_hold_whole_chunks_of_levels_that_learn_in_context():
    cms = {"objective": "next_token", "token_periods": (48, 96)}
    with pytest.raises(InputError, match=r"cms\.token_periods"):
        freeze(flag_config(seq_len=64, model={"cms": cms}))
