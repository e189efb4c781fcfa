"""Weights of the Llama family, in Hugging Face's layout or GGUF.

Matrices in files are ``[d_out, d_in]``, and are transposed to this library's
``[d_in, d_out]``.
"""

from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.entries import Facts, check_window
from nl_jax.pretrained.tensor_source import as_parameters

_HF_LLAMA = {
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
    """Reads a Llama as described by its ``config.json``."""
    facts = Facts(source.path, entries)
    heads, d = facts.count("num_attention_heads"), facts.count("hidden_size")
    facts.need("hidden_act", "silu", "silu")
    facts.need("mlp_bias", False, False)
    facts.need("head_dim", d // heads, d // heads)
    # Older files have rope_theta and rope_scaling, newer ones rope_parameters.
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        facts.refuse("rope_scaling", rope, "an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        facts.refuse("rope_scaling", kind, "'default'")
    base = Facts(source.path, rope).get("rope_theta", 10_000.0)
    prefix = "model." if "model.norm.weight" in source else ""
    names = {
        key: name if key == "head" else prefix + name
        for key, name in _HF_LLAMA.items()
    }
    tied = facts.need("tie_word_embeddings", False, True, False)
    return _llama(
        source,
        names,
        [r".*rotary_emb\.inv_freq"] + ["lm_head.weight"] * tied,
        window,
        vocab=facts.count("vocab_size"),
        d=d,
        layers=facts.count("num_hidden_layers"),
        heads=heads,
        kv_heads=facts.count("num_key_value_heads", heads),
        hidden=facts.count("intermediate_size"),
        base=facts.real("rope_theta", base),
        eps=facts.real("rms_norm_eps", 1e-6),
        context=facts.count("max_position_embeddings", 2048),
        tied=tied,
        bias=facts.need("attention_bias", False, True, False),
    )


def gguf_llama(source, entries, window):
    """Reads a Llama as described by the metadata of its GGUF file."""
    facts = Facts(source.path, entries, "llama.")
    heads = facts.count("attention.head_count")
    d = facts.count("embedding_length")
    for name in ("rope.dimension_count", "attention.key_length"):
        facts.need(name, d // heads, d // heads)
    facts.need("rope.scaling.type", "none", "none")
    facts.need("expert_count", 0, 0)
    return _llama(
        source,
        _GGUF_LLAMA,
        [],
        window,
        # Older files lack the entry; their embedding has a row per token.
        vocab=facts.count("vocab_size", source.shape("token_embd.weight")[0]),
        d=d,
        layers=facts.count("block_count"),
        heads=heads,
        kv_heads=facts.count("attention.head_count_kv", heads),
        hidden=facts.count("feed_forward_length"),
        base=facts.real("rope.freq_base", 10_000.0),
        eps=facts.real("attention.layer_norm_rms_epsilon"),
        context=facts.count("context_length"),
        tied="output.weight" not in source,
        interleaved=True,
    )


def _llama(
    source,
    names,
    buffers,
    window,
    *,
    vocab,
    d,
    layers,
    heads,
    kv_heads,
    hidden,
    base,
    eps,
    context,
    tied,
    bias=False,
    interleaved=False,
):
    """Reads a Llama whose rotary pairs are neighbours if ``interleaved``."""
    model = LanguageModel(
        configure(
            "transformer",
            vocab_size=vocab,
            d_model=d,
            n_layers=layers,
            n_heads=heads,
            tie_embeddings=tied,
            norm={"eps": eps},
            attention={
                "window": check_window(window, context),
                "rope_base": base,
                "conv_width": 0,
                "kv_heads": kv_heads,
                "bias": bias,
            },
            cms={"hidden": hidden / d},
        )
    )
    kv = d // heads * kv_heads

    def matrix(key, d_in, d_out, suffix=""):
        stack = source.stack(names[key] + suffix, layers, (d_out, d_in))
        return stack.swapaxes(1, 2)

    def halves(stack, count):
        """Reorders the last axis so that rotary pairs are half a head apart."""
        pairs = stack.reshape(*stack.shape[:-1], count, -1, 2)
        return pairs.swapaxes(-1, -2).reshape(stack.shape)

    mixer = {}
    for name, width in (("q", d), ("k", kv), ("v", kv), ("out", d)):
        mixer[f"w_{name}"] = matrix(name, d, width, "weight")
        if bias:
            pattern = names[name] + "bias"
            mixer[f"b_{name}"] = source.stack(pattern, layers, (width,))
    if interleaved:
        for name, count in (("w_q", heads), ("w_k", kv_heads)):
            mixer[name] = halves(mixer[name], count)
    blocks = {
        "norm_scale": source.stack(names["mixer_norm"], layers, (d,)),
        "mixer": mixer,
        "cms": {
            "level_1_scale": source.stack(names["mlp_norm"], layers, (d,)),
            "level_1_gate": matrix("gate", d, hidden),
            "level_1_up": matrix("up", d, hidden),
            "level_1_down": matrix("down", hidden, d),
        },
    }
    params = {
        "embedding": source.take(names["embedding"], (vocab, d)),
        "blocks": blocks,
        "norm_scale": source.take(names["norm"], (d,)),
    }
    if not tied:
        params["head"] = source.take(names["head"], (vocab, d))
    source.finish(buffers)
    return model, as_parameters(params)
