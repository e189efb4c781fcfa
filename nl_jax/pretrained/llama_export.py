"""Models of this library as checkpoints of the Llama family."""

from typing import Any

import numpy as np

from nl_jax.layers import AttentionConfig
from nl_jax.models import ModelConfig
from nl_jax.pretrained.llama import HF_LLAMA
from nl_jax.pretrained.rope_entries import rope_entries

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def as_llama(
    config: ModelConfig, params: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns a model's ``config.json`` and tensors in the Llama family.

    Logits are equal up to as many tokens as attention sees; later ones are
    beyond the context that is given there.

    Args:
        config: configuration of the model.
        params: its parameters, without the collection's name.

    Returns:
        ``None`` if the family does not hold such models.
    """
    family = _family(config)
    if family is None:
        return None
    attention: Any = config.choices
    d, heads = config.d_model, config.n_heads
    # The family has no factor before the blocks.
    tied = config.tie_embeddings and not config.scale_embeddings
    entries = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": d,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": attention.kv_heads or heads,
        "head_dim": attention.head_dim or d // heads,
        "intermediate_size": params["blocks"]["cms"]["level_1_up"].shape[-1],
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        "max_position_embeddings": attention.window,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": None,
        **rope_entries(attention),
    }
    if family == "llama":
        entries |= {"attention_bias": attention.bias, "mlp_bias": False}
    elif family == "mistral":
        entries["sliding_window"] = None
    else:
        entries["use_sliding_window"] = False
    return entries, _tensors(config, params, tied)


def _family(config):
    attention, cms = config.choices, config.cms
    if not isinstance(attention, AttentionConfig):
        return None
    # Whatever has no entry in config.json must be as in the family.
    plain = AttentionConfig(
        window=attention.window,
        rope_base=attention.rope_base,
        rope_scaling=attention.rope_scaling,
        conv_width=0,
        kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        bias=attention.bias,
        out_bias=attention.out_bias,
    )
    one_mlp = cms.goal.unit == "steps" and len(cms.periods) == 1
    if (
        attention != plain
        or attention.rope_base is None
        or attention.rope_scaling.kind == "table"
        or config.norm.kind != "rms"
        or config.learned_positions
        or not (one_mlp and cms.form == "sequential" and cms.mlp == "swiglu")
    ):
        return None
    family = {(False, False): "llama", (True, True): "llama"}
    family |= {(True, False): "qwen2"}
    found = family.get((attention.bias, attention.out_bias))
    if config.d_model % config.n_heads and found == "llama":
        return None if attention.bias else "mistral"
    return found


def _tensors(config, params, tied):
    blocks, tensors = params["blocks"], {}

    def add(key, stack, suffix=""):
        for index, layer in enumerate(np.asarray(stack)):
            name = HF_LLAMA[key].format(index)
            tensors[f"model.{name}{suffix}"] = layer.T

    add("mixer_norm", blocks["norm_scale"])
    for key in ("q", "k", "v", "out"):
        for leaf, suffix in (("w", "weight"), ("b", "bias")):
            if f"{leaf}_{key}" in blocks["mixer"]:
                add(key, blocks["mixer"][f"{leaf}_{key}"], suffix)
    add("mlp_norm", blocks["cms"]["level_1_scale"])
    for key in ("gate", "up", "down"):
        add(key, blocks["cms"][f"level_1_{key}"])
    embedding = np.asarray(params["embedding"])
    factor = config.d_model**0.5 if config.scale_embeddings else 1.0
    tensors[f"model.{HF_LLAMA['embedding']}"] = embedding * factor
    tensors[f"model.{HF_LLAMA['norm']}"] = np.asarray(params["norm_scale"])
    if not tied:
        head = params.get("head", embedding)
        tensors[HF_LLAMA["head"]] = np.asarray(head)
    return tensors
