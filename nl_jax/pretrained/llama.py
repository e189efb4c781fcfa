"""Weights of the Llama family, in Hugging Face's layout or GGUF.

Matrices in files are ``[d_out, d_in]``, and are transposed to this library's
``[d_in, d_out]``.
"""

import jax
import jax.numpy as jnp

from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.entries import Facts, check_window
from nl_jax.pretrained.harmless import GGUF_HARMLESS, HF_HARMLESS
from nl_jax.pretrained.rope_entries import gguf_rope, hf_rope
from nl_jax.pretrained.tensor_source import take_head

HF_LLAMA = {
    "embedding": "embed_tokens.weight",
    "norm": "norm.weight",
    "head": "lm_head.weight",
    "mixer_norm": "layers.{}.input_layernorm.weight",
    "q": "layers.{}.self_attn.q_proj.",
    "k": "layers.{}.self_attn.k_proj.",
    "v": "layers.{}.self_attn.v_proj.",
    "out": "layers.{}.self_attn.o_proj.",
    "mlp_norm": "layers.{}.post_attention_layernorm.weight",
    "gate": "layers.{}.mlp.gate_proj.weight",
    "up": "layers.{}.mlp.up_proj.weight",
    "down": "layers.{}.mlp.down_proj.weight",
}
"""Names of tensors after the prefix of the decoder, which the head has not."""

_GGUF_LLAMA = {
    "embedding": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    "mixer_norm": "blk.{}.attn_norm.weight",
    "q": "blk.{}.attn_q.",
    "k": "blk.{}.attn_k.",
    "v": "blk.{}.attn_v.",
    "out": "blk.{}.attn_output.",
    "mlp_norm": "blk.{}.ffn_norm.weight",
    "gate": "blk.{}.ffn_gate.weight",
    "up": "blk.{}.ffn_up.weight",
    "down": "blk.{}.ffn_down.weight",
}


def hf_llama(source, entries, window):
    """Reads a Llama, Mistral or Qwen2 as described by its ``config.json``."""
    facts = Facts(source.path, entries)
    family = facts.get("model_type")
    heads, d = facts.count("num_attention_heads"), facts.count("hidden_size")
    facts.need("hidden_act", "silu", "silu")
    for name in ("mlp_bias", "rope_interleaved", "use_mrope"):
        facts.need(name, False, False)
    context = facts.count("max_position_embeddings", 2048)
    if family == "llama":
        bias = out_bias = facts.need("attention_bias", False, True, False)
    else:
        # Their architectures have these biases, whatever the entry says.
        bias, out_bias = family == "qwen2", False
        facts.need("attention_bias", bias, bias)
        sees = _mistral_window if family == "mistral" else _qwen2_window
        context = min(context, sees(facts) or context)
    prefix = "model." if "model.norm.weight" in source else ""
    names = {
        key: name if key == "head" else prefix + name
        for key, name in HF_LLAMA.items()
    }
    sizes = {
        "vocab": facts.count("vocab_size"),
        "d": d,
        "layers": facts.count("num_hidden_layers"),
        "heads": heads,
        "hidden": facts.count("intermediate_size"),
        "eps": facts.real("rms_norm_eps", 1e-6),
        "tied": facts.need("tie_word_embeddings", None, True, False, None),
    }
    attention = {
        "window": check_window(window, context),
        "kv_heads": facts.count("num_key_value_heads", heads),
        "head_dim": facts.count("head_dim", 0, least=0),
        "bias": bias,
        "out_bias": out_bias,
        **hf_rope(facts, context),
    }
    facts.finish(HF_HARMLESS)
    buffers = [r".*rotary_emb\.inv_freq"]
    return _llama(source, names, buffers, attention, **sizes)


def gguf_llama(source, entries, window):
    """Reads a Llama or Qwen2 as described by the metadata of its GGUF file."""
    family = entries["general.architecture"]
    facts = Facts(source.path, entries, f"{family}.")
    heads = facts.count("attention.head_count")
    d = facts.count("embedding_length")
    width = facts.count("attention.key_length", max(d // heads, 1))
    facts.need("attention.value_length", width, width)
    facts.need("attention.causal", True, True)
    for name in ("expert_count", "expert_used_count"):
        facts.need(name, 0, 0)
    sizes = {
        # Older files lack the entry; their embedding has a row per token.
        "vocab": facts.count(
            "vocab_size", source.shape("token_embd.weight")[0]
        ),
        "d": d,
        "layers": facts.count("block_count"),
        "heads": heads,
        "hidden": facts.count("feed_forward_length"),
        "eps": facts.real("attention.layer_norm_rms_epsilon"),
        "tied": None,
        # The converter reorders queries and keys of Llamas alone.
        "interleaved": family == "llama",
    }
    attention = {
        "window": check_window(window, facts.count("context_length")),
        "kv_heads": facts.count("attention.head_count_kv", heads),
        "head_dim": width,
        "bias": "blk.0.attn_q.bias" in source,
        "out_bias": "blk.0.attn_output.bias" in source,
        **gguf_rope(facts, source, width),
    }
    facts.finish(GGUF_HARMLESS)
    return _llama(source, _GGUF_LLAMA, [], attention, **sizes)


def _mistral_window(facts):
    """Returns the tokens that each token sees; ``None`` for all."""
    # A null entry is no window, a missing one the default of the family.
    default = None if "sliding_window" in facts else 4096
    if facts.get("sliding_window", default) is None:
        return None
    return facts.count("sliding_window", default)


def _qwen2_window(facts):
    """Returns the tokens that each token sees; ``None`` for all."""
    window = facts.get("sliding_window", 4096)
    if not facts.need("use_sliding_window", False, True, False):
        window = None
    first = facts.count("max_window_layers", 28, least=0)
    full, sliding = "full_attention", "sliding_attention"
    if window is None or first >= facts.count("num_hidden_layers"):
        default = [full]
    else:
        default = [full, sliding] if first else [sliding]
    layers = facts.get("layer_types", default)
    if not isinstance(layers, list) or any(n != layers[0] for n in layers):
        facts.refuse("layer_types", layers, "layers that are all alike")
    if layers[:1] == [full]:
        return None
    if layers[:1] != [sliding] or window is None:
        facts.refuse("layer_types", layers, f"{full!r} without a window")
    return facts.count("sliding_window", 4096)


def _llama(
    source,
    names,
    buffers,
    attention,
    *,
    vocab,
    d,
    layers,
    heads,
    hidden,
    eps,
    tied,
    interleaved=False,
):
    """Reads a Llama whose rotary pairs are neighbours if ``interleaved``."""
    kv_heads = attention["kv_heads"]
    width = attention["head_dim"] or d // heads
    if width == d // heads:  # The model says whether heads divide d.
        attention = attention | {"head_dim": 0}
    embedding = source.take(names["embedding"], (vocab, d))
    head = take_head(source, names["head"], embedding, tied)
    model = LanguageModel(
        configure(
            "transformer",
            vocab_size=vocab,
            d_model=d,
            n_layers=layers,
            n_heads=heads,
            tie_embeddings=head is None,
            scale_embeddings=False,
            norm={"eps": eps},
            attention={**attention, "conv_width": 0},
            cms={"hidden": hidden / d},
        )
    )

    def matrix(key, d_in, d_out, suffix=""):
        stack = source.stack(names[key] + suffix, layers, (d_out, d_in))
        return stack.swapaxes(1, 2)

    def halves(stack, count):
        """Reorders the last axis so that rotary pairs are half a head apart."""
        pairs = stack.reshape(*stack.shape[:-1], count, -1, 2)
        return pairs.swapaxes(-1, -2).reshape(stack.shape)

    mixer = {"w_out": matrix("out", heads * width, d, "weight")}
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        mixer[f"w_{name}"] = matrix(name, d, count * width, "weight")
        if attention["bias"]:
            pattern = names[name] + "bias"
            mixer[f"b_{name}"] = source.stack(pattern, layers, (count * width,))
        if interleaved and name != "v":
            for leaf in {f"w_{name}", f"b_{name}"} & mixer.keys():
                mixer[leaf] = halves(mixer[leaf], count)
    if attention["out_bias"]:
        mixer["b_out"] = source.stack(names["out"] + "bias", layers, (d,))
    params = {
        "embedding": embedding,
        "blocks": {
            "norm_scale": source.stack(names["mixer_norm"], layers, (d,)),
            "mixer": mixer,
            "cms": {
                "level_1_scale": source.stack(names["mlp_norm"], layers, (d,)),
                "level_1_gate": matrix("gate", d, hidden),
                "level_1_up": matrix("up", d, hidden),
                "level_1_down": matrix("down", hidden, d),
            },
        },
        "norm_scale": source.take(names["norm"], (d,)),
    }
    if head is not None:
        params["head"] = head
    source.finish(buffers)
    return model, {"params": jax.tree.map(jnp.asarray, params)}
