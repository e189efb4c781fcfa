"""What one training run is made of: typed, commented, validated.

On the command line every field is a flag, ``--config.data.bpe_vocab_size=512``.
The flags edit an ``ml_collections.ConfigDict`` (:func:`flag_config`);
:func:`freeze` turns it into the frozen dataclass that everything else takes.
Fields of the model are unset until given, so that the model's name and preset
decide what is left out.
"""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import config_dict

from nl_jax.checks import check_count
from nl_jax.data import DataConfig
from nl_jax.errors import InputError
from nl_jax.layers import CMS_OBJECTIVES, CMSObjective, mixer_name
from nl_jax.memory import TABLES, saved_name
from nl_jax.models import ModelConfig, configure
from nl_jax.optimizers import find_optimizer

_HOPE = configure("hope")
_TABLES = {**TABLES, CMSObjective: CMS_OBJECTIVES}
"""Where names of the objects that configurations hold are looked up."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """A rule with warm-up, cosine decay, decoupled weight decay and clipping.

    The default ``learning_rate`` suits AdamW; the others need one of their own.
    ``muon`` and ``m3`` make steps of AdamW's size and bear larger ones, about
    0.01 or 0.02. The momenta follow the size of the gradient: about 0.1, for
    ``deep_momentum`` a little more, and a ``weight_decay`` that is as much
    smaller.
    """

    name: str = dataclasses.field(default="adamw", kw_only=True)
    """The rule, out of ``nl_jax.optimizers.NAMED``; options that have no field
    here keep their defaults."""
    learning_rate: float = 4e-3
    """Peak learning rate."""
    warmup_steps: int = 40
    """Steps over which the rate rises from 0 to its peak."""
    final_rate: float = 0.1
    """Learning rate of the last step, as a share of the peak."""
    b1: float = 0.9
    """Decay of the mean of gradients, or retention of a momentum, in the rules
    whose ``options`` in ``NAMED`` have it and for leaves that fall back on
    AdamW. The others do not read it."""
    b2: float = 0.95
    """Decay of the mean of squared gradients, likewise."""
    eps: float = 1e-8
    """Added to the root of the mean of squared gradients, where ``b2`` is
    read."""
    weight_decay: float = 0.1
    """Decay of matrices, in units of the learning rate; norms, biases, gates,
    convolutions and initial memories do not decay."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""

    def __post_init__(self):
        find_optimizer("optimizer.name", self.name)
        check_count("optimizer.warmup_steps", self.warmup_steps, 0)
        for name in ("learning_rate", "eps", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)} must be positive"
                )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)} must be in [0, 1)"
                )
        if not 0 <= self.final_rate <= 1:
            raise InputError(
                f"optimizer.final_rate={self.final_rate} must be in [0, 1]"
            )
        if self.weight_decay < 0:
            raise InputError(
                f"optimizer.weight_decay={self.weight_decay} must be >= 0"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; see :mod:`nl_jax.training.mesh`."""

    data: int = -1
    """Devices that split the batch; -1 for all that the others leave."""
    fsdp: int = 1
    """Devices that split the batch and, along ``embed``, the parameters."""
    tensor: int = 1
    """Devices that split heads, MLP widths and the vocabulary."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The sample that ends a run."""

    tokens: int = 200
    """Tokens to draw; 0 for no sample."""
    prompt: str = "The "
    """Text that the sample continues."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 0.95
    """Smallest probability mass that tokens are drawn from."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        InputError: at construction, naming the field, its value and what is
            allowed.
    """

    model: ModelConfig = _HOPE
    """The model."""
    data: DataConfig = DataConfig()
    """The text."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The outer optimizer."""
    mesh: MeshConfig = MeshConfig()
    """The devices."""
    sample: SampleConfig = SampleConfig()
    """The sample at the end."""
    seed: int = 0
    """Of initial parameters, data order and the sample."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 8
    """Sequences per optimizer step, over all devices."""
    seq_len: int = 256
    """Tokens per sequence."""
    accumulate: int = 1
    """Parts that a batch is cut into, one after another, to save memory."""
    log_every: int = 1
    """Steps between lines of metrics."""
    eval_every: int = 200
    """Steps between evaluations on the held-out text; 0 for only the last."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep."""
    tensorboard: bool = False
    """Write TensorBoard files too (extra ``tensorboard``)."""
    accept_new_config: bool = False
    """Continue the run in ``workdir`` although its configuration differs."""

    def __post_init__(self):
        for name in ("steps", "batch_size", "seq_len", "accumulate"):
            check_count(name, getattr(self, name))
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            check_count(name, getattr(self, name))
        check_count("eval_every", self.eval_every, 0)
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate={self.accumulate} must divide "
                f"batch_size={self.batch_size}"
            )
        cms = self.model.cms
        if cms.goal.replays and self.seq_len % cms.periods[0]:
            raise InputError(
                f"seq_len={self.seq_len} must be a multiple of the fastest of "
                f"model.cms.periods={cms.periods}, {cms.periods[0]} tokens"
            )
        cycle = self.model.cycle
        if self.seq_len % cycle:
            raise InputError(
                f"seq_len={self.seq_len} must be a multiple of {cycle}, where "
                f"the chunks of model.{self.model.mixer} meet; the next that "
                f"is: {-(-self.seq_len // cycle) * cycle}"
            )


def flag_config(**changes: Any) -> config_dict.ConfigDict:
    """Returns all fields as a ``ConfigDict`` for ``config_flags``.

    ``model`` has ``name`` and ``preset`` and every field of ``ModelConfig``,
    unset; the others hold their defaults.

    Args:
        **changes: values in place of defaults, nested as mappings.

    Example:
        >>> config = flag_config(steps=10, model={"d_model": 64})
        >>> freeze(config).model.d_model
        64
    """
    config = config_dict.ConfigDict()
    for field in dataclasses.fields(TrainConfig):
        if field.name == "model":
            value = _placeholders(_HOPE)
            value.name = "hope"
            value.preset = "tiny"
        elif dataclasses.is_dataclass(field.default):
            value = config_dict.ConfigDict(
                dataclasses.asdict(typing.cast(Any, field.default))
            )
        else:
            value = field.default
        config[field.name] = value
    config.update(changes)
    return config


def freeze(config: config_dict.ConfigDict) -> TrainConfig:
    """Returns the validated dataclass of what flags left in ``config``.

    Raises:
        InputError: for values that are not allowed.
    """
    fields = config.to_dict()
    choices = _given(fields.pop("model"))
    data = DataConfig(**fields.pop("data"))
    if "vocab_size" not in choices:
        bpe = data.tokenizer == "bpe"
        choices["vocab_size"] = data.bpe_vocab_size if bpe else 256
    name, preset = choices.pop("name"), choices.pop("preset")
    try:
        model = configure(name, preset=preset, **choices)
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error
    return TrainConfig(
        model=model,
        data=data,
        optimizer=OptimizerConfig(**fields.pop("optimizer")),
        mesh=MeshConfig(**fields.pop("mesh")),
        sample=SampleConfig(**fields.pop("sample")),
        **fields,
    )


def to_json(config: Any) -> dict[str, Any]:
    """Returns a dataclass as nested mappings of what JSON can hold.

    What has a name, an objective of one's own for instance, is its name.

    Raises:
        InputError: if that name stands for something else in its table.
    """
    out = {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }
    if isinstance(mixer := out.get("mixer"), dict):
        out["mixer"] = {mixer_name(config.mixer): mixer}
    return out


def _plain(value):
    for kind, table in _TABLES.items():
        if isinstance(value, kind):
            return saved_name(value, table)
    if dataclasses.is_dataclass(value):
        return to_json(value)
    return [*map(_plain, value)] if isinstance(value, tuple) else value


def _placeholders(config) -> config_dict.ConfigDict:
    """A ``ConfigDict`` with each field's type and no value."""
    out = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            out[field.name] = _placeholders(value)
        else:
            out[field.name] = config_dict.placeholder(
                _plain_type(hints[field.name], value)
            )
    return out


def _plain_type(hint, value) -> type:
    if value is not None:
        return type(value)
    arguments = typing.get_args(hint)
    plain = [a for a in arguments if a is not types.NoneType]
    return plain[0] if plain and isinstance(plain[0], type) else str


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Leaves out what no flag has set."""
    out = {}
    for name, value in fields.items():
        value = _given(value) if isinstance(value, dict) else value
        if value is not None and value != {}:
            out[name] = value
    return out
