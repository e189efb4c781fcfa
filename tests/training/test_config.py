import dataclasses
import json
import re

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
from nl_jax.training.same_config import check_same_config


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
        (
            DataConfig,
            {"carry_windows": 4},
            "data.carry_windows=4 has no effect without data.reading='contig",
        ),
        (
            DataConfig,
            {"packed_share": 0.5, "reading": "packed"},
            "data.packed_share=0.5 has no effect without data.reading='contig",
        ),
        (
            DataConfig,
            {"bpe_vocab_size": 300},
            "data.bpe_vocab_size=300 has no effect without data.tokenizer='bpe",
        ),
        (
            DataConfig,
            {"bpe_sample_bytes": 300, "tokenizer": "byte"},
            "data.bpe_sample_bytes=300 has no effect without",
        ),
        (
            DataConfig,
            {"stdlib": True, "paths": ("a.txt",)},
            "data.stdlib=True has no effect with data.paths",
        ),
        (
            DataConfig,
            {"held_out": 0.2, "held_out_paths": ("a.txt",)},
            "data.held_out=0.2 has no effect with data.held_out_paths",
        ),
        (
            DataConfig,
            {"prompt_field": "ask"},
            "data.prompt_field='ask' has no effect on the default text",
        ),
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (
            "m3",
            {
                "period": 4,
                "slow_weight": 1.0,
                "together": False,
                "accumulation": "sum",
            },
        ),
        ("muon", {"neuron_decay": 0.75}),
    ],
)
def test_options_of_an_optimizer_are_flags(monkeypatch, name, options):
    arguments = ["train", f"--config.optimizer.name={name}"]
    for option, value in options.items():
        arguments.append(f"--config.optimizer.options.{option}={value}")
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


def plain_fields(config, prefix=()):
    """Yields the path and type of each field, at any depth."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), (*prefix, field.name)
        if dataclasses.is_dataclass(value):
            yield from plain_fields(value, path)
        elif field.type in (bool, int, float, str):
            yield path, field.type


def replaced(config, path, value):
    name, *rest = path
    if rest:
        value = replaced(getattr(config, name), rest, value)
    return dataclasses.replace(config, **{name: value})


NAN = float("nan")
WRONG = {
    bool: ["no", 1],
    int: [1.5, True, NAN],
    float: [NAN, "0.1", True],
    str: [5],
}


def test_every_field_refuses_values_of_other_types():
    """By its name, whatever it configures; for numbers, also what is none."""
    config, count = TrainConfig(), 0
    for path, kind in plain_fields(config):
        for value in WRONG[kind]:
            if path == ("data", "tokenizer"):  # Paths have several types.
                continue
            with pytest.raises(ValueError, match=path[-1]):
                replaced(config, path, value)
            count += 1
    assert count > 200


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("seed=4294967296", "seed=4294967296 must be less than 2**32"),
        ("seed=99999999999999999999", "must be less than 2**32"),
        ("steps=99999999999999999999", "must be less than 2**31"),
        ("model.d_model=2147483648", "d_model=2147483648 must be less than"),
        ("sample.top_p=2", "top_p=2.0 must be in (0, 1]"),
        ("sample.top_p=nan", "top_p=nan must be a finite number"),
        ("sample.temperature=-1", "temperature=-1.0 must be >= 0"),
        ("sample.temperature=inf", "temperature=inf must be a finite number"),
        ("sample.tokens=-5", "sample.tokens=-5 must be an integer >= 0"),
        ("sample.prompt=", "sample.prompt='' must have some text"),
        ("mesh.data=0", "mesh.data=0 must be at least 1, or -1"),
        ("mesh.fsdp=-2", "mesh.fsdp=-2 must be an integer >= -1"),
        ("optimizer.clip_norm=nan", "clip_norm=nan must be positive"),
        ("data.paths=", "data.paths=('',) must be paths"),
        ("model.titans.gain=nan", "gain=nan must be a finite number"),
        ("model.cms.rate=inf", "cms.rate=inf must be a finite number"),
    ],
)
def test_nonsense_is_refused_by_name(flag, words):
    whole = node = flag_config()
    name, _, value = flag.partition("=")
    *parents, last = name.split(".")
    for parent in parents:
        node = node[parent]
    kind = node.get_type(last)
    node[last] = (value,) if kind is tuple else kind(value)
    with pytest.raises(InputError, match=re.escape(words)):
        freeze(whole)


def test_default_periods_are_those_that_were_once_saved():
    cms = {"objective": "next_token"}
    config = TrainConfig(model=configure("hope", cms=cms))
    saved = to_json(config)
    check_same_config("runs/mine", saved, config)
    saved["model"]["cms"]["token_periods"] = [16, 64]
    check_same_config("runs/mine", saved, config)
    numbers = configure(config.model, cms={"token_periods": (16, 32)})
    with pytest.raises(
        InputError, match=r"now model.cms.token_periods=\[16, 3"
    ):
        check_same_config(
            "runs/mine",
            to_json(config),
            dataclasses.replace(config, model=numbers),
        )
    saved["model"]["cms"]["token_periods"] = [32, 64]
    with pytest.raises(InputError, match=r"cms\.token_periods=\[32, 64\], but"):
        check_same_config("runs/mine", saved, config)


@pytest.mark.parametrize("was", ["blocks", True, False])
def test_a_run_goes_on_with_another_remat(was):
    """Only roundings depend on it. Once it was true or false."""
    config = TrainConfig(model=configure("hope", preset="tiny"))
    saved = to_json(config)
    saved["model"]["remat"] = was
    saved["model"]["titans"]["remat"] = 4
    check_same_config("runs/mine", saved, config)
