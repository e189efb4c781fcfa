import json

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from nl_jax.data import DataConfig
from nl_jax.errors import InputError
from nl_jax.models import configure, to_json
from nl_jax.training import (
    OptimizerConfig,
    TrainConfig,
    flag_config,
    freeze,
)


def test_every_field_has_a_flag():
    config = flag_config()
    frozen = to_json(freeze(config))

    def names(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from names(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert set(names(frozen)) <= set(names(config.to_dict()))


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
        (OptimizerConfig, {"learning_rate": np.inf}, "learning_rate=inf must"),
        (OptimizerConfig, {"weight_decay": np.nan}, "weight_decay=nan must"),
        (OptimizerConfig, {"schedule": "step"}, "schedule='step' must be one"),
        (OptimizerConfig, {"decay_share": 2.0}, "decay_share=2.0 must be in"),
        (OptimizerConfig, {"b2": 1.0}, "b2=1.0"),
        (
            OptimizerConfig,
            {"options": {"period": 4}},
            "optimizer.options.period is no option of 'adamw'; it has eps_ro",
        ),
        (
            OptimizerConfig,
            {"name": "momentum", "options": {"retention": 0.5}},
            "optimizer.options.retention of 'momentum' is the field 'b1'",
        ),
        (
            OptimizerConfig,
            {"name": "m3", "options": {"period": 0}},
            "optimizer.options of 'm3': period=0 must be an integer >= 1",
        ),
        (
            OptimizerConfig,
            {"name": "m3", "options": {"damping": "0.1"}},
            "optimizer.options.damping='0.1' must be a number",
        ),
        (
            OptimizerConfig,
            {"name": "m3", "options": {"state_dtype": "int8"}},
            "optimizer.options of 'm3': state_dtype='int8' must be a dtype",
        ),
        (
            OptimizerConfig,
            {"name": "dgd"},
            "'dgd' cannot be chosen by name: it has to be given the layer_inp",
        ),
        (
            OptimizerConfig,
            {"name": "lion"},
            r"optimizer\.name='lion' must be one of 'sgd', .*'m3'",
        ),
    ],
)
def test_bad_values_name_the_field(kind, fields, words):
    with pytest.raises(InputError, match=words):
        kind(**fields)


def test_options_of_an_optimizer_are_flags(monkeypatch):
    options = {
        "period": 4,
        "slow_weight": 1.0,
        "together": False,
        "accumulation": "sum",
    }
    arguments = ["train", "--config.optimizer.name=m3"]
    for name, value in options.items():
        arguments.append(f"--config.optimizer.options.{name}={value}")
    monkeypatch.setattr("sys.argv", arguments)
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", flag_config(), flag_values=values)
    values(arguments)
    found = freeze(values.config).optimizer
    assert found.options == options
    saved = json.loads(json.dumps(to_json(found)))
    assert OptimizerConfig(**saved) == found
    hash(found)


def test_a_bad_model_names_the_field():
    with pytest.raises(InputError, match="n_heads=3 must divide d_model"):
        freeze(flag_config(model={"n_heads": 3}))


def test_sequences_hold_whole_chunks_of_levels_that_learn_in_context():
    cms = {"objective": "next_token", "token_periods": (48, 96)}
    with pytest.raises(InputError, match=r"cms\.token_periods"):
        freeze(flag_config(seq_len=64, model={"cms": cms}))
