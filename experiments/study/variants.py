"""Variants of Hope, each one change away from another, of equal size."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from nl_jax.errors import InputError
from nl_jax.models import ModelConfig, build, configure
from nl_jax.nested.level_table import count_bytes, count_parameters


class Variant(NamedTuple):
    """A model and the one it is compared with."""

    base: str
    """Variant from which it differs by one change; empty for the first."""
    change: str
    """The change, in words."""
    name: str
    """Model in the registry."""
    fields: Mapping[str, Any] = MappingProxyType({})
    """Fields of ``ModelConfig`` that differ from those of the name."""


_ONE: dict[str, Any] = {"cms": {"step_periods": (1,)}}


def _deep(base, change, **deep):
    return Variant(base, change, "titans", {"deep": deep})


def _titans(change, base="hope-one-level", **titans):
    return Variant(base, change, "hope", {**_ONE, "titans": titans})


_EQUAL = {"output_scale": 1.0, "last_scale": 1.0, "output_gain": 1.0}
_ALONE = {
    **_EQUAL,
    "stream_width": 0.0,
    "output_gate": False,
    "head_width": 0,
}
PLAIN = {**_ALONE, "gain": 1.0}
"""Fields of Titans without a stream past the memories or merged heads."""
_RESIDUAL = {"architecture": "residual"}
_DOT = {**_RESIDUAL, "objective": "dot_product"}
ADAPTIVE = {"adaptive_k": True, "adaptive_v": True}
"""Fields of Titans whose keys and values memories make."""


def _hope(change, **titans):
    return Variant("hope", change, "hope", {"titans": titans})


def _chunks(size):
    sizes = {"chunk_size": size, "memory_chunk_size": size}
    return _titans(f"chunks of {size} tokens", **sizes)


VARIANTS: dict[str, Variant] = {
    # From Titans to Hope.
    "titans": Variant("", "Titans", "titans"),
    "titans-residual": _deep("titans", "residual for MLP memory", **_RESIDUAL),
    "titans-dot": _deep("titans-residual", "dot product for L2", **_DOT),
    "titans-dgd": _deep("titans-dot", "delta rule", **_DOT, rule="dgd"),
    "hope-plain": _titans(
        "self-generated targets and gates", "titans-dgd", **PLAIN
    ),
    "hope-calm": _titans(
        "generators begin a tenth as large", "hope-plain", **_ALONE
    ),
    "hope-narrow": _titans(
        "a convolved, gated stream past the memories",
        "hope-calm",
        **_EQUAL,
        stream_width=1.0,
        head_width=0,
    ),
    "hope-stream-2": _titans(
        "a stream of twice the width, of which half is the values",
        "hope-narrow",
        **_EQUAL,
        stream_width=2.0,
        head_width=0,
    ),
    "hope-stream-3": _titans(
        "of three times the width", "hope-stream-2", **_EQUAL, head_width=0
    ),
    "hope-pairs": _titans("narrow heads in pairs", "hope-stream-3", **_EQUAL),
    "hope-levels-1-1": Variant(
        "hope-pairs",
        "two MLPs of half the width in a chain, both moved every step",
        "hope",
        {"cms": {"step_periods": (1, 1)}, "titans": _EQUAL},
    ),
    "hope-levels-1-4": Variant(
        "hope-levels-1-1",
        "the second moved every fourth step",
        "hope",
        {"titans": _EQUAL},
    ),
    "hope": Variant(
        "hope-levels-1-4",
        "memories' outputs begin small but in the last block, and learn faster",
        "hope",
    ),
    # One choice of Hope at a time.
    "hope-one-level": Variant("hope", "one level", "hope", _ONE),
    "l2": _titans("L2 for dot product", objective="l2"),
    "mlp": _titans(
        "MLP memories, whose parameters a stream of twice the width leaves",
        architecture="mlp",
        expansion=1,
        stream_width=2.0,
    ),
    "linear": _titans("linear memories", architecture="linear"),
    "gd": _titans("no delta rule", rule="gd"),
    "no-momentum": _titans("no momentum", momentum=False),
    "no-decay": _titans("no decay", decay=False),
    "read-after": _titans("reads after the write", read="after"),
    "read-chunk": _titans("reads the chunk's start", read="chunk"),
    "rms-targets": _titans("longer targets", generator_targets="rms"),
    "direct-gates": _titans("gates without readout", gates="direct"),
    "no-gate": _titans("no output gate", output_gate=False),
    "scale-2": _titans("outputs begin as in the last block", output_scale=2.0),
    "last-scale-0.3": _titans("as in the other blocks", last_scale=0.3),
    "output-gain-1": _titans(
        "outputs learn as slowly as others", output_gain=1.0
    ),
    "generator-gain-1": _titans("generators begin 10 times as large", gain=1.0),
    "adaptive-k-v": _titans("keys and values from memories", **ADAPTIVE),
    "adaptive-q": _titans("queries from a memory", adaptive_q=True),
    "no-convolution": _titans("no convolution", conv_width=1),
    "chunk-1": _chunks(1),
    "chunk-4": _chunks(4),
    "chunk-64": _chunks(64),
    "eta-0": _titans("first steps of 0.5 for 0.12", eta_bias=0.0),
    "alpha-2": _titans("first retention 0.88 for 0.998", alpha_bias=2.0),
    "gain-1": _titans("initial memory 4 times as large", memory_gain=1.0),
    "gain-0": _titans("initial memory near zero", memory_gain=0.01),
    "narrow-heads": _titans("heads not merged", head_width=0),
    "next-token": Variant(
        "hope",
        "levels learn in context",
        "hope",
        {"cms": {"step_periods": (1, 4), "objective": "next_token"}},
    ),
    "local": Variant(
        "hope",
        "levels learn in context, from own keys and values, whose parameters "
        "a stream of twice the width leaves",
        "hope",
        {
            "cms": {"step_periods": (1, 4), "objective": "local"},
            "titans": {"stream_width": 2.0},
        },
    ),
    # Table 6: Hope without one of its parts; hope-one-level has no second one.
    "without-dgd": _hope("no delta rule", rule="gd"),
    "without-momentum": _hope("no momentum", momentum=False),
    "without-decay": _hope("no weight decay", decay=False),
    "with-k": _hope("keys from a memory", adaptive_k=True),
    "with-v": _hope("values from a memory", adaptive_v=True),
    "with-q": _hope("queries from a memory", adaptive_q=True),
    "paper": Variant("hope", "the paper's settings", "hope-paper"),
    # Others.
    "hope-attention": Variant("", "attention", "hope-attention"),
    "transformer": Variant("hope-attention", "one level", "transformer"),
    "mamba": Variant("", "Mamba", "mamba"),
    "mamba-wide": Variant(
        "mamba",
        "three times the width for twice",
        "mamba",
        {"mamba": {"expansion": 3.0}},
    ),
    "gated-deltanet": Variant("", "Gated DeltaNet", "gated-deltanet"),
    "gated-deltanet-gate": Variant(
        "gated-deltanet",
        "output gate",
        "gated-deltanet",
        {"matrix": {"output_gate": True}},
    ),
}
"""By name, in the order of the report."""
ABLATION = (
    "hope",
    *(name for name in VARIANTS if name.startswith(("without-", "with-"))),
    "hope-one-level",
)
"""The variants of Table 6."""


@functools.cache
def model_of(name: str, **shape: int) -> ModelConfig:
    """Returns a variant with levels as wide as the size of ``hope`` allows.

    Args:
        name: in ``VARIANTS``.
        **shape: fields of both, where the variant has no others.

    Example:
        >>> model_of("hope-one-level").cms.hidden < model_of("mamba").cms.hidden
        True
    """
    variant = VARIANTS[name]
    return as_large_as_hope(variant.name, shape, **variant.fields)


def as_large_as_hope(
    name: str, shape: Mapping[str, int], **fields: Any
) -> ModelConfig:
    """Returns a model with levels as wide as the size of ``hope`` allows.

    Args:
        name: in the registry.
        shape: fields of both.
        **fields: of this model, in place of those or beside them.
    """
    size = count_of(configure("hope", **shape))
    return sized(name, {**shape, **fields}, size)


def sized(name: str, fields: Mapping[str, Any], size: int) -> ModelConfig:
    """Returns a model with the levels' width that comes nearest to a size.

    Args:
        name: in the registry.
        fields: of ``ModelConfig`` that differ from those of the name.
        size: number of parameters.

    Raises:
        InputError: if that is more than 1 % away, since the rest of the model
            is too large.
    """
    unit = configure(name, **fields).d_model

    def wide(hidden):
        cms = {**fields.get("cms", {}), "hidden": hidden / unit}
        return configure(name, **{**fields, "cms": cms})

    one, two = (count_of(wide(hidden)) for hidden in (1, 2))
    found = wide(max(round(1 + (size - one) / (two - one)), 1))
    if abs(count_of(found) - size) > 0.01 * size:
        raise InputError(
            f"{name} of width {unit} in {found.n_layers} blocks cannot have "
            f"{size:,} parameters: with levels of a hidden width of "
            f"{round(found.cms.hidden * unit)} it has {count_of(found):,}"
        )
    return found


@functools.cache
def count_of(config: ModelConfig) -> int:
    """Returns the number of parameters."""
    return count_parameters(build(config).parameter_shapes())


def state_bytes(config: ModelConfig) -> int:
    """Returns the bytes of the state that one stream carries on."""
    model = build(config)
    return count_bytes(
        jax.eval_shape(
            lambda variables: model.init_state(variables, 1),
            model.parameter_shapes(),
        )
    )
