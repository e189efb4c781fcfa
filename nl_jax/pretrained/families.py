"""Pretrained architectures as configurations and parameters of this library.

Matrices are kept as ``[d_in, d_out]`` here, so those of (out, in) layouts are
transposed. The embedding is multiplied by the root of the width when tokens are
looked up, so it is stored divided by that, and where it is also the head the
last norm makes up for it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.entries import Facts, check_window
from nl_jax.pretrained.tensor_source import TensorSource


@dataclasses.dataclass(frozen=True)
class _Llama:
    """What tells one model of the Llama family from another."""

    vocab: int
    d: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    base: float
    eps: float
    context: int
    tied: bool
    bias: bool = False
    interleaved: bool = False
    """Whether rotary pairs are neighbours; else half a head apart."""


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


def _hf_llama(source, entries, window):
    facts = Facts(source.path, entries)
    heads, d = facts.count("num_attention_heads"), facts.count("hidden_size")
    facts.need("hidden_act", "silu", "silu")
    facts.need("mlp_bias", False, False)
    facts.need("head_dim", d // heads, d // heads)
    # Older files have rope_theta beside rope_scaling, newer ones one entry.
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
    llama = _Llama(
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
    buffers = [r".*rotary_emb\.inv_freq"] + ["lm_head.weight"] * tied
    return _llama(llama, source, names, window, buffers)


def _gguf_llama(source, entries, window):
    facts = Facts(source.path, entries, "llama.")
    heads = facts.count("attention.head_count")
    d = facts.count("embedding_length")
    for name in ("rope.dimension_count", "attention.key_length"):
        facts.need(name, d // heads, d // heads)
    facts.need("rope.scaling.type", "none", "none")
    facts.need("expert_count", 0, 0)
    llama = _Llama(
        # Files from before the entry was there have a row for each token.
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
    return _llama(llama, source, _GGUF_LLAMA, window, [])


def _llama(llama, source, names, window, buffers):
    d, layers, hidden = llama.d, llama.layers, llama.hidden
    model = LanguageModel(
        configure(
            "transformer",
            vocab_size=llama.vocab,
            d_model=d,
            n_layers=layers,
            n_heads=llama.heads,
            tie_embeddings=llama.tied,
            norm={"eps": llama.eps},
            attention={
                "window": check_window(window, llama.context),
                "rope_base": llama.base,
                "conv_width": 0,
                "kv_heads": llama.kv_heads,
                "bias": llama.bias,
            },
            cms={"hidden": hidden / d},
        )
    )
    kv = d // llama.heads * llama.kv_heads

    def matrix(key, d_in, d_out, suffix=""):
        stack = source.stack(names[key] + suffix, layers, (d_out, d_in))
        return stack.swapaxes(1, 2)

    def turn(stack, heads):
        """Brings the last axis of q or k to pairs half a head apart."""
        if not llama.interleaved:
            return stack
        pairs = stack.reshape(*stack.shape[:-1], heads, -1, 2)
        return pairs.swapaxes(-1, -2).reshape(stack.shape)

    mixer = {}
    for name, heads, width in (
        ("q", llama.heads, d),
        ("k", llama.kv_heads, kv),
        ("v", 0, kv),
        ("out", 0, d),
    ):
        found = {"w": matrix(name, d, width, "weight")}
        if llama.bias:
            pattern = names[name] + "bias"
            found["b"] = source.stack(pattern, layers, (width,))
        for kind, leaf in found.items():
            mixer[f"{kind}_{name}"] = turn(leaf, heads) if heads else leaf
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
        "embedding": source.take(names["embedding"], (llama.vocab, d)),
        "blocks": blocks,
        "norm_scale": source.take(names["norm"], (d,)),
    }
    if not llama.tied:
        params["head"] = source.take(names["head"], (llama.vocab, d))
    source.finish(buffers)
    return model, _scaled(params)


def _hf_gpt2(source, entries, window):
    facts = Facts(source.path, entries)
    d, layers = facts.count("n_embd"), facts.count("n_layer")
    vocab, context = facts.count("vocab_size"), facts.count("n_positions", 1024)
    hidden = facts.count("n_inner", 4 * d)
    gelu = ("gelu_new", "gelu_pytorch_tanh")
    facts.need("activation_function", "gelu_new", *gelu)
    facts.need("scale_attn_weights", True, True)
    facts.need("scale_attn_by_inverse_layer_idx", False, False)
    facts.need("add_cross_attention", False, False)
    tied = facts.need("tie_word_embeddings", True, True, False)
    model = LanguageModel(
        configure(
            "transformer",
            vocab_size=vocab,
            d_model=d,
            n_layers=layers,
            n_heads=facts.count("n_head"),
            tie_embeddings=tied,
            learned_positions=True,
            norm={
                "kind": "layer",
                "eps": facts.real("layer_norm_epsilon", 1e-5),
            },
            attention={
                "window": check_window(window, context),
                "rope_base": None,
                "conv_width": 0,
                "bias": True,
            },
            cms={"hidden": hidden / d, "mlp": "gelu"},
        )
    )
    root = "transformer." if "transformer.ln_f.weight" in source else ""

    def stack(name, *shape):
        return source.stack(f"{root}h.{{}}.{name}", layers, shape)

    mixer = {
        "w_out": stack("attn.c_proj.weight", d, d),
        "b_out": stack("attn.c_proj.bias", d),
    }
    weights = np.split(stack("attn.c_attn.weight", d, 3 * d), 3, -1)
    biases = np.split(stack("attn.c_attn.bias", 3 * d), 3, -1)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        mixer |= {f"w_{name}": weight, f"b_{name}": bias}
    positions = source.take(f"{root}wpe.weight", (context, d))
    params = {
        "embedding": source.take(f"{root}wte.weight", (vocab, d)),
        "positions": positions[: model.config.attention.window],
        "blocks": {
            "norm_scale": stack("ln_1.weight", d),
            "norm_bias": stack("ln_1.bias", d),
            "mixer": mixer,
            "cms": {
                "level_1_scale": stack("ln_2.weight", d),
                "level_1_bias": stack("ln_2.bias", d),
                "level_1_up": stack("mlp.c_fc.weight", d, hidden),
                "level_1_up_bias": stack("mlp.c_fc.bias", hidden),
                "level_1_down": stack("mlp.c_proj.weight", hidden, d),
                "level_1_down_bias": stack("mlp.c_proj.bias", d),
            },
        },
        "norm_scale": source.take(f"{root}ln_f.weight", (d,)),
        "norm_bias": source.take(f"{root}ln_f.bias", (d,)),
    }
    if not tied:
        params["head"] = source.take("lm_head.weight", (vocab, d))
    source.finish([r".*attn\.(masked_)?bias"] + ["lm_head.weight"] * tied)
    return model, _scaled(params)


def _scaled(params):
    """Makes up for the factor with which embeddings are looked up."""
    root = params["embedding"].shape[1] ** 0.5
    params["embedding"] = params["embedding"] / root
    if "head" not in params:
        for name in ("norm_scale", "norm_bias"):
            if name in params:
                params[name] = params[name] * root
    return {"params": jax.tree.map(jnp.asarray, params)}


Loader = Callable[
    [TensorSource, Mapping[str, Any], int | None], tuple[LanguageModel, Any]
]
ARCHITECTURES: dict[str, dict[str, Loader]] = {
    "safetensors": {"llama": _hf_llama, "gpt2": _hf_gpt2},
    "gguf": {"llama": _gguf_llama},
}
"""By format and by the name that files give themselves."""
