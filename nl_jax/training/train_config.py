"""Configuration of a training run.

Each field is a command-line flag, such as ``--config.data.bpe_vocab_size=512``.
Flags edit an ``ml_collections.ConfigDict`` (:func:`flag_config`), from which
:func:`freeze` makes the frozen dataclass that all other code takes. Fields of
the model that no flag sets are those of its name and preset.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from flax.core import FrozenDict
from ml_collections import config_dict

from nl_jax.checks import check_fields, is_number, require
from nl_jax.data import DataConfig
from nl_jax.errors import InputError
from nl_jax.models import ModelConfig, configure
from nl_jax.models.model_config import MODELS
from nl_jax.optimizers import NAMED, check_options, find_optimizer
from nl_jax.training.mesh_config import MeshConfig

_HOPE = configure("hope")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with warm-up, a schedule, weight decay and clipping.

    The default ``learning_rate`` suits AdamW. ``muon`` and ``m3`` make steps of
    AdamW's size and tolerate larger rates, about 0.01 or 0.02. Steps of the
    momenta grow with the gradient: they need about 0.1, ``deep_momentum`` a
    little more, and a ``weight_decay`` smaller by the same factor.
    """

    name: str = dataclasses.field(default="adamw", kw_only=True)
    """Name of the optimizer in ``nl_jax.optimizers.NAMED``."""
    options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, kw_only=True
    )
    """Its options that have no field here, by keyword, as in
    ``--config.optimizer.options.period=4`` for M3."""
    learning_rate: float = 4e-3
    """Peak learning rate."""
    warmup_steps: int = 40
    """Number of steps over which the learning rate rises from 0 to its peak."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """What follows the warm-up: a cosine from the peak to the final rate; the
    peak; or (warm-up, stable, decay) the peak and a linear decay at the end."""
    final_rate: float = 0.1
    """Learning rate of the last step, as a fraction of the peak; not used by
    the constant schedule."""
    decay_share: float = 0.2
    """Share of all steps that the decay of ``wsd`` takes."""
    b1: float = 0.9
    """Decay of the mean of gradients, or retention of a momentum, in optimizers
    with this option in ``NAMED`` and for parameters that fall back to AdamW."""
    b2: float = 0.95
    """Decay of the mean of squared gradients, in optimizers that keep one."""
    eps: float = 1e-8
    """Term added to the root mean square of gradients, where ``b2`` is used."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices, multiplied by the learning rate;
    norms, biases, gates, convolutions and initial memories do not decay."""
    clip_norm: float = 1.0
    """Global norm to which larger gradients are clipped."""

    def __post_init__(self):
        check_fields(self, "optimizer.", free=["clip_norm"], warmup_steps=0)
        find_optimizer("optimizer.name", self.name)
        if not isinstance(self.options, Mapping):
            raise InputError(
                f"optimizer.options={self.options!r} must be a mapping"
            )
        check_options("optimizer.options", self.name, self.options)
        object.__setattr__(self, "options", FrozenDict(self.options))
        for name in ("learning_rate", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)} must be positive "
                    "and finite"
                )
        clip = self.clip_norm
        if not (is_number(clip) or clip == math.inf) or clip <= 0:
            raise InputError(
                f"optimizer.clip_norm={clip!r} must be positive; inf does not "
                "clip"
            )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)} must be in [0, 1)"
                )
        for name in ("final_rate", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"optimizer.{name}={getattr(self, name)} must be in [0, 1]"
                )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(
                f"optimizer.weight_decay={self.weight_decay} must be >= 0 and "
                "finite"
            )


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Text sampled from the model at the end of a run."""

    tokens: int = 200
    """Number of tokens to sample; 0 for no sample."""
    prompt: str = "The "
    """Text that the sample continues."""
    temperature: float = 0.8
    """Divisor of the logits; 0 always takes the likeliest token."""
    top_p: float = 0.95
    """Probability mass of the likeliest tokens that are sampled from."""

    def __post_init__(self):
        check_fields(self, "sample.", tokens=0)
        require(
            not self.tokens or bool(self.prompt),
            "sample.prompt='' must have some text; sample.tokens=0 draws none",
        )
        require(
            self.temperature >= 0,
            f"sample.temperature={self.temperature} must be >= 0; 0 always "
            "takes the likeliest token",
        )
        require(
            0 < self.top_p <= 1,
            f"sample.top_p={self.top_p} must be in (0, 1]; 1 allows all tokens",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of a training run.

    Raises:
        InputError: if a value is not allowed; the message names its field.
    """

    model: ModelConfig = _HOPE
    """Architecture of the model."""
    data: DataConfig = DataConfig()
    """Text and tokenizer."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer of the model's parameters."""
    mesh: MeshConfig = MeshConfig()
    """Layout of the devices."""
    sample: SampleConfig = SampleConfig()
    """Text sampled at the end of the run."""
    init_from: str = ""
    """Weights that the parameters of the same names begin with: the workdir of
    another run, or a path of pretrained weights. Empty to draw all."""
    seed: int = 0
    """Seed of the initial parameters, the data order and the sample."""
    steps: int = 600
    """Number of optimizer steps."""
    batch_size: int = 8
    """Number of sequences per optimizer step, over all devices."""
    seq_len: int = 256
    """Number of tokens per sequence."""
    accumulate: int = 1
    """Number of parts that a batch is processed in, to save memory."""
    log_every: int = 1
    """Number of steps between records of metrics."""
    eval_every: int = 200
    """Steps between evaluations on held-out text; 0 for one at the end only."""
    checkpoint_every: int = 100
    """Number of steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Steps between checkpoints that are kept besides; 0 for none."""
    stall_seconds: float = 600.0
    """Seconds without a step after which all threads' stacks are printed."""
    accept_new_config: bool = False
    """Whether to resume a run whose saved configuration differs; the model, the
    tokenizer and the optimizer's name and options must be the same."""

    def __post_init__(self):
        check_fields(self, seed=0, eval_every=0, keep_every=0)
        if not self.stall_seconds > 0:
            raise InputError(
                f"stall_seconds={self.stall_seconds} must be positive"
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate={self.accumulate} must divide "
                f"batch_size={self.batch_size}"
            )
        cms = self.model.cms
        if cms.goal.replays and self.seq_len % cms.periods[0]:
            raise InputError(
                f"seq_len={self.seq_len} must be a multiple of the fastest of "
                f"model.{cms.shown_periods}, {cms.periods[0]} tokens"
            )
        self.mesh.check_sequence(self.model, self.data.reading, self.seq_len)
        cycle = self.model.cycle
        if self.seq_len % cycle:
            raise InputError(
                f"seq_len={self.seq_len} must be a multiple of {cycle}, where "
                f"the chunks of model.{self.model.mixer} meet; the next that "
                f"is: {-(-self.seq_len // cycle) * cycle}"
            )


def flag_config(**changes: Any) -> config_dict.ConfigDict:
    """Returns a ``ConfigDict`` of all fields, for ``config_flags``.

    ``model`` has a ``name``, a ``preset`` and all fields of ``ModelConfig``,
    which are unset; other fields have their defaults.

    Args:
        **changes: values to use instead, as nested mappings.

    Example:
        >>> config = flag_config(steps=10, model={"d_model": 64})
        >>> freeze(config).model.d_model
        64
    """
    config = config_dict.ConfigDict()
    for field in dataclasses.fields(TrainConfig):
        if field.name == "model":
            value = _placeholders(_HOPE)
            value.preset = config_dict.placeholder(str)
        elif dataclasses.is_dataclass(field.default):
            plain = {
                name: dict(value) if isinstance(value, Mapping) else value
                for name, value in vars(field.default).items()
            }
            if "options" in plain:
                plain["options"] = _option_placeholders()
            value = config_dict.ConfigDict(plain)
        else:
            value = field.default
        config[field.name] = value
    config.update(changes)
    return config


def freeze(
    config: config_dict.ConfigDict, base: ModelConfig | None = None
) -> TrainConfig:
    """Returns the validated configuration of a :func:`flag_config`.

    Args:
        config: configuration with changes.
        base: model whose fields are taken where none is set; by default those
            of the name and preset.

    Raises:
        InputError: if a value is not allowed.
    """
    fields = config.to_dict()
    choices = _given(fields.pop("model"))
    data = DataConfig(**fields.pop("data"))
    if base is None and "vocab_size" not in choices:
        choices["vocab_size"] = data.vocab_size()
    name, preset = choices.pop("name", None), choices.pop("preset", None)
    if base is not None and preset:
        raise InputError(
            f"config.model.preset={preset!r} does not go with init_from, whose "
            "model has its own sizes"
        )
    try:
        if base is None:
            model = configure(
                name or "hope", preset=preset or "tiny", **choices
            )
        else:
            if name not in (None, base.name):
                configure(name)  # Refuses unknown names.
                base = configure(base, name=name, **MODELS[name])
            model = configure(base, **choices)
    except ValueError as error:
        raise InputError(f"config.model: {error}") from error
    return TrainConfig(
        model=model,
        data=data,
        optimizer=OptimizerConfig(**_given(fields.pop("optimizer"))),
        mesh=MeshConfig(**fields.pop("mesh")),
        sample=SampleConfig(**fields.pop("sample")),
        **fields,
    )


def _option_placeholders() -> config_dict.ConfigDict:
    """Returns the options of all optimizers that a flag can hold."""
    out = config_dict.ConfigDict()
    for row in NAMED.values():
        for name, keyword in row.keywords.items():
            kind: Any = type(keyword.default)
            if keyword.default is None:
                hint = keyword.annotation
                hints = (hint, *typing.get_args(hint))
                kind = str if Any in hints else None
                kind = next((k for k in (int, float) if k in hints), kind)
            if kind in (bool, int, float, str):
                out[name] = config_dict.placeholder(kind)
    return out


def _placeholders(config) -> config_dict.ConfigDict:
    """Returns a ``ConfigDict`` of typed fields without values."""
    out = config_dict.ConfigDict()
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not field.init:
            continue
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
    """Leaves out fields that are not set."""
    out = {}
    for name, value in fields.items():
        value = _given(value) if isinstance(value, dict) else value
        if value is not None and value != {}:
            out[name] = value
    return out
