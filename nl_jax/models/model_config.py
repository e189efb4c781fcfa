"""Configuration of every language model, and the registry of names."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from nl_jax.checks import check_fields
from nl_jax.errors import InputError
from nl_jax.layers import (
    MIXERS,
    AttentionConfig,
    CacheConfig,
    CachedConfig,
    CMSConfig,
    MixerConfig,
    NormConfig,
)
from nl_jax.memory.remat import Remat

_Choices: Any = dataclasses.make_dataclass(
    "_Choices",
    [(name, choices, choices()) for name, choices in MIXERS.items()],
    frozen=True,
)
"""A field for the configuration of each mixer in ``MIXERS``, by name."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Choices):
    """A stack of blocks, each a sequence mixer followed by a continuum memory.

    Besides the fields below, there is one for the configuration of each mixer
    in ``MIXERS``: ``titans``, ``attention``, ``matrix`` and so on.

    Raises:
        ValueError: for an invalid field, naming it and the allowed values.
    """

    name: str = "hope"
    """Name in the registry from which this configuration was made."""
    mixer: str | MixerConfig = "titans"
    """Sequence mixer of every block: a name in ``MIXERS``, configured by the
    field of that name, or a ``MixerConfig``, which replaces that field and need
    not be in ``MIXERS``. In JSON, ``{name: fields}``."""
    vocab_size: int = 256
    """Number of token ids."""
    d_model: int = 128
    """Width of the residual stream."""
    n_layers: int = 2
    """Number of blocks."""
    n_heads: int = 4
    """Number of heads of the mixer; must divide ``d_model``."""
    tie_embeddings: bool = True
    """Whether the output head is the transposed embedding."""
    scale_embeddings: bool = True
    """Whether embeddings enter the first block times ``sqrt(d_model)``."""
    learned_positions: bool = False
    """Whether to add a learned vector for each of the ``attention`` mixer's
    ``window`` positions; later tokens all get the last one."""
    norm: NormConfig = NormConfig()
    """Norm before each mixer, MLP and head."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of products; parameters and fast state are float32."""
    remat: Remat = "none"
    """What of a block's activations the backward pass computes again: nothing;
    all (``"blocks"``); all but products with parameters (``"dots"``); or
    neither these nor memories with a kernel (``"kernels"``). Chunk scans have a
    ``remat`` of their own, in the mixer's configuration."""
    cache: CacheConfig = CacheConfig()
    """Earlier states of the mixer's memory that tokens read besides it."""
    cms: CMSConfig = CMSConfig()
    """Continuum memory that follows the mixer in each block."""

    def __post_init__(self):
        object.__setattr__(self, "mixer", _mixer(self.mixer))
        check_fields(self)
        own_width = getattr(self.choices, "head_dim", 0)
        if not own_width and self.d_model % self.n_heads:
            raise InputError(
                f"n_heads={self.n_heads} must divide d_model={self.d_model}"
            )
        attends = isinstance(self.choices, AttentionConfig)
        if self.learned_positions and not attends:
            raise InputError(
                f"learned_positions goes with mixer='attention', whose window "
                f"bounds them, not with {self.mixer!r}"
            )
        self.choices.check(self.n_heads)
        inner = self.cms.goal.unit == "tokens"
        if inner:
            object.__setattr__(self, "cms", self.cms.on_grid(self.cycle))
        if inner and self.cms.layers > self.n_layers:
            raise InputError(
                f"cms.layers={self.cms.layers} must be at most "
                f"n_layers={self.n_layers}"
            )
        levels, own = len(self.cms.periods), self.cms.layers or self.n_layers
        if self.cms.placement == "depth" and levels > own:
            raise InputError(
                f"{self.cms.shown_periods}: with placement='depth' each "
                f"level needs a block that learns in context; there are {own}"
            )
        fastest = self.cms.periods[0]
        if self.cms.goal.replays and fastest % self.cycle:
            raise InputError(
                f"{self.cms.shown_periods}: the fastest, {fastest}, must "
                f"be a multiple of {self.cycle} tokens, where the chunks of "
                f"{self.mixer} meet"
            )

    @property
    def choices(self) -> MixerConfig:
        """Configuration of the mixer, which caches if ``cache`` says so."""
        if isinstance(self.mixer, MixerConfig):
            own = self.mixer
        else:
            # A mixer registered after this class was made has no field.
            own = getattr(self, self.mixer, None) or MIXERS[self.mixer]()
        return CachedConfig(own, self.cache) if self.cache.segment else own

    @property
    def cycle(self) -> int:
        """Tokens until all chunk boundaries of the mixer coincide."""
        return self.choices.cycle


def _mixer(mixer: Any) -> str | MixerConfig:
    """Checks a name or configuration, or makes one from ``{name: fields}``."""
    if isinstance(mixer, MixerConfig):
        return mixer
    name, fields = mixer, None
    if isinstance(mixer, Mapping) and len(mixer) == 1:
        ((name, fields),) = mixer.items()
    if not isinstance(name, str) or name not in MIXERS:
        raise InputError(
            f"mixer={name!r} must be one of {', '.join(map(repr, MIXERS))}; a "
            "new name has to be put into nl_jax.layers.MIXERS first, for the "
            "class of its choices"
        )
    return (
        name if fields is None else _merge(MIXERS[name](), fields, f"{name}.")
    )


def _matrix(**matrix: Any) -> dict[str, Any]:
    """Matrix memories, with as many parameters as a Transformer."""
    # The MLP's three matrices shrink by the output gate's parameters.
    hidden = 11 / 3 if matrix.get("output_gate") else 4.0
    return {"mixer": "matrix", "matrix": matrix, "cms": {"hidden": hidden}}


def _deep(**deep: Any) -> dict[str, Any]:
    """Memories that learn by gradient descent while reading."""
    # The MLP shrinks by the parameters of initial MLPs at four heads.
    mlp = deep.get("architecture", "mlp").startswith("mlp")
    return {
        "mixer": "deep",
        "deep": deep,
        "cms": {"hidden": 10 / 3 if mlp else 4.0},
    }


def _titans_attention(hidden: float, **choices: Any) -> dict[str, Any]:
    """Titans' memory and attention, with parameters taken from the MLP."""
    return {
        "mixer": "titans_attention",
        "titans_attention": choices,
        "cms": {"hidden": hidden},
    }


MODELS: dict[str, dict[str, Any]] = {
    # The MLPs shrink by the parameters of the mixer's stream and gate.
    "hope": {
        "mixer": "titans",
        "titans": {"head_width": 64}
        | {"output_scale": 0.3, "last_scale": 2.0, "output_gain": 3.0},
        "cms": {"step_periods": (1, 4), "hidden": 0.4},
    },
    "hope-paper": {
        "mixer": "titans",
        "titans": {
            "architecture": "mlp",
            "expansion": 2,
            "objective": "l2",
            "momentum": False,
            # With steps up to alpha, gradients of L2 grow with the length.
            "eta_max": 0.1,
            "read": "chunk",
            "generator_targets": "rms",
            "gates": "direct",
            "adaptive_k": True,
            "adaptive_v": True,
            "stream_width": 0.0,
            "output_gate": False,
            "gain": 1.0,
        },
        # The MLP shrinks by the parameters of the memories at four heads.
        "cms": {"step_periods": (1, 4), "hidden": 1.5},
    },
    "hope-attention": {"mixer": "attention", "cms": {"step_periods": (1, 4)}},
    "transformer": {"mixer": "attention", "cms": {"hidden": 4.0}},
    "linear-attention": _matrix(rule="hebbian", features="elu"),
    "retnet": _matrix(
        rule="hebbian", decay="fixed", features="rotary", output_gate=True
    ),
    "gla": _matrix(
        rule="hebbian", decay="channel", features="scaled", output_gate=True
    ),
    "deltanet": _matrix(rule="delta"),
    "gated-deltanet": _matrix(rule="delta", decay="scalar"),
    "longhorn": _matrix(rule="longhorn", features="scaled"),
    "comba": _matrix(rule="comba", decay="scalar", output_gate=True),
    "oja": _matrix(rule="oja", decay="scalar"),
    "rwkv7": _matrix(rule="rwkv7", decay="channel", features="scaled"),
    "titans": _deep(),
    "dla": _deep(objective="dot_product"),
    "ttt-linear": _deep(
        architecture="linear_norm", momentum=False, retention="mean"
    ),
    "ttt-mlp": _deep(architecture="mlp_norm", momentum=False, retention="mean"),
    "miras-moneta": _deep(
        architecture="mlp_norm", objective="lp", retention="lq", momentum=False
    ),
    "miras-yaad": _deep(
        architecture="mlp_norm", objective="gated_huber", momentum=False
    ),
    # Larger steps on logits multiply roundings, and learn worse.
    "miras-memora": _deep(
        architecture="mlp_norm", retention="kl", momentum=False, eta_bias=-3.0
    ),
    "atlas": _deep(degree=2, rule="muon", window=4, eta_bias=-1.5)
    | {"cms": {"hidden": 3.0}},
    "titans-mac": _titans_attention(
        5 / 3, combine="context", memory={"chunk_size": 32}
    ),
    "titans-mag": _titans_attention(2.0, combine="gate"),
    "titans-mal": _titans_attention(2.0, combine="layer"),
    "mamba": {"mixer": "mamba", "cms": {"hidden": 3.0}},
    "samba": {"mixer": "samba", "cms": {"hidden": 1.4}},
    "srwm": {"mixer": "srwm", "cms": {"hidden": 53 / 12}},
    "lstm": {"mixer": "lstm", "cms": {"hidden": 7 / 3}},
}
"""Named models, as overrides of :class:`ModelConfig`."""

_PAPER = {"vocab_size": 32_000, "dtype": "bfloat16", "remat": "blocks"}
_CHUNKS = {"chunk_size": 64, "memory_chunk_size": 64}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"d_model": 256, "n_layers": 6, "n_heads": 4},
    "125m": _PAPER
    | {"d_model": 768, "n_layers": 12, "n_heads": 16}
    | {"titans": _CHUNKS, "cms": {"layers": 3}},
    "760m": _PAPER
    | {"d_model": 1536, "n_layers": 24, "n_heads": 16}
    | {"titans": _CHUNKS, "cms": {"layers": 6}},
    "1.3b": _PAPER
    | {"d_model": 2048, "n_layers": 18, "n_heads": 8}
    | {"titans": _CHUNKS, "cms": {"layers": 5}},
}
"""Model sizes. Large ones have the paper's shapes and 32k vocabulary; in models
that learn in context, their last quarter of blocks does."""


def names() -> list[str]:
    """Returns the model names that :func:`nl_jax.models.build` takes.

    Example:
        >>> "hope" in names()
        True
    """
    return sorted(MODELS)


def configure(
    name_or_config: str | ModelConfig, *, preset: str = "tiny", **overrides
) -> ModelConfig:
    """Resolves a name, a preset and overrides into a configuration.

    Args:
        name_or_config: a name in :func:`names`, or a configuration to change.
        preset: a size in ``PRESETS``; ignored with a configuration.
        **overrides: fields of :class:`ModelConfig`; nested ones as mappings.

    Raises:
        ValueError: for an unknown name, preset or field.

    Example:
        >>> configure("hope", d_model=64, titans={"chunk_size": 8}).d_model
        64
    """
    base = name_or_config
    if not isinstance(base, ModelConfig):
        if base not in MODELS:
            raise InputError(
                f"model {base!r} does not exist; there are {', '.join(names())}"
            )
        if preset not in PRESETS:
            raise InputError(
                f"preset={preset!r} must be one of {', '.join(PRESETS)}"
            )
        sized = _merge(ModelConfig(name=base), PRESETS[preset], "")
        base = _merge(sized, MODELS[base], "")
        if _PAPER.items() <= PRESETS[preset].items():
            # Devices multiply by tiles of 128, and split widths evenly.
            tile = 128 / base.d_model
            for name in ("cms", "samba"):
                hidden = round(getattr(base, name).hidden / tile) * tile
                base = _merge(base, {name: {"hidden": hidden}}, "")
    config = _merge(base, overrides, "")
    config.cms.check_units(overrides.get("cms", {}), base.cms)
    return config


def _changed(present, value, name):
    """Returns a nested configuration with the fields of a mapping changed."""
    if isinstance(value, Mapping):
        return _merge(present, value, f"{name}.")
    if not isinstance(value, type(present)):
        raise InputError(
            f"{name}={value!r} must be a mapping of fields or of type "
            f"{type(present).__name__}"
        )
    return value


def _merge(config, overrides, prefix):
    known = {f.name for f in dataclasses.fields(config) if f.init}
    changes = {}
    for name, value in overrides.items():
        if name not in known:
            near = difflib.get_close_matches(name, known) or sorted(known)
            raise InputError(
                f"unknown field {prefix}{name}; {type(config).__name__} has "
                f"{', '.join(near)}"
            )
        present = getattr(config, name)
        if dataclasses.is_dataclass(present) and name != "mixer":
            value = _changed(present, value, prefix + name)
        elif (
            isinstance(present, MixerConfig)
            and isinstance(value, Mapping)
            and not value.keys() & MIXERS.keys()  # Else another mixer's name.
        ):
            value = _merge(present, value, f"{prefix}{name}.")
        changes[name] = value
    return dataclasses.replace(config, **changes)
