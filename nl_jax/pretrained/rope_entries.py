"""Rotary positions as ``config.json`` and GGUF files describe them."""

from typing import Any

from nl_jax.layers import AttentionConfig, RopeScaling
from nl_jax.pretrained.entries import Facts
from nl_jax.pretrained.tensor_source import TensorSource

_BASE = 10_000.0


def hf_rope(facts: Facts, context: int) -> dict[str, Any]:
    """Reads ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.

    Returns:
        Fields of :class:`~nl_jax.layers.AttentionConfig`.

    Raises:
        InputError: for a kind of scaling, or an entry, that is not supported.
    """
    facts.need("partial_rotary_factor", 1.0, 1.0)
    old, new = facts.get("rope_scaling"), facts.get("rope_parameters")
    if old and new and old != new:
        facts.refuse("rope_scaling", old, "either that or rope_parameters")
    name, found = ("rope_parameters", new) if new else ("rope_scaling", old)
    if not isinstance(found or {}, dict):
        facts.refuse(name, found, "an object")
    rope = Facts(f"{facts.path}: {name}", found or {})
    rope.need("partial_rotary_factor", 1.0, 1.0)
    base = rope.real("rope_theta", facts.real("rope_theta", _BASE))
    if "rope_theta" in facts and facts.real("rope_theta", base) != base:
        facts.refuse("rope_theta", facts.get("rope_theta"), f"{base}, as there")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        rope.refuse("type", rope.get("type"), f"{kind!r}, the rope_type")
    scaling = RopeScaling()
    if kind == "linear":
        scaling = RopeScaling(kind, rope.real("factor"))
    elif kind == "llama3":
        scaling = RopeScaling(
            kind,
            rope.real("factor"),
            rope.real("low_freq_factor"),
            rope.real("high_freq_factor"),
            rope.count("original_max_position_embeddings", context),
        )
    elif kind != "default":
        rope.refuse("rope_type", kind, "'default', 'linear' or 'llama3'")
    # Other kinds do not need the context before scaling.
    rope.finish(("original_max_position_embeddings",))
    return {"rope_base": base, "rope_scaling": scaling}


def gguf_rope(
    facts: Facts, source: TensorSource, head_dim: int
) -> dict[str, Any]:
    """Reads the entries ``rope.*``, and divisors from ``rope_freqs.weight``.

    Returns:
        Fields of :class:`~nl_jax.layers.AttentionConfig`.

    Raises:
        InputError: for a kind of scaling that is not supported.
    """
    base = facts.real("rope.freq_base", _BASE)
    facts.need("rope.dimension_count", head_dim, head_dim)
    facts.need("rope.scaling.attn_factor", 1.0, 1.0)
    # Older files have scale_linear instead; all may leave out the type.
    kind = facts.need("rope.scaling.type", "linear", "linear", "none")
    old = facts.real("rope.scale_linear", 1.0)
    factor = facts.real("rope.scaling.factor", old)
    factor = 1.0 if kind == "none" else factor
    scaling = RopeScaling("linear", factor) if factor != 1 else RopeScaling()
    if "rope_freqs.weight" in source:
        table = source.take("rope_freqs.weight", (head_dim // 2,))
        scaling = RopeScaling("table", factor, table=table.tolist())
    return {"rope_base": base, "rope_scaling": scaling}


def rope_entries(config: AttentionConfig) -> dict[str, Any]:
    """Returns ``rope_theta`` and ``rope_scaling`` for ``config.json``.

    Scaling by a table has no form there.
    """
    scaling = config.rope_scaling
    entries: dict[str, Any] = {}
    if scaling.kind != "none":
        entries |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        entries |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return {"rope_theta": config.rope_base, "rope_scaling": entries or None}
