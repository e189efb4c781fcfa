"""GPT-2 weights in Hugging Face's layout."""

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.entries import Facts, check_window
from nl_jax.pretrained.harmless import HF_HARMLESS
from nl_jax.pretrained.tensor_source import take_head


def hf_gpt2(source, entries, window):
    """Reads a GPT-2 as described by its ``config.json``."""
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
    heads, eps = facts.count("n_head"), facts.real("layer_norm_epsilon", 1e-5)
    facts.finish(HF_HARMLESS)
    root = "transformer." if "transformer.ln_f.weight" in source else ""
    embedding = source.take(f"{root}wte.weight", (vocab, d))
    head = take_head(source, "lm_head.weight", embedding, tied)
    model = LanguageModel(
        configure(
            "transformer",
            vocab_size=vocab,
            d_model=d,
            n_layers=layers,
            n_heads=heads,
            tie_embeddings=head is None,
            scale_embeddings=False,
            learned_positions=True,
            norm={"kind": "layer", "eps": eps},
            attention={
                "window": check_window(window, context),
                "rope_base": None,
                "conv_width": 0,
                "bias": True,
                "out_bias": True,
            },
            cms={"hidden": hidden / d, "mlp": "gelu"},
        )
    )

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
        "embedding": embedding,
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
    if head is not None:
        params["head"] = head
    source.finish([r".*attn\.(masked_)?bias"])
    return model, {"params": jax.tree.map(jnp.asarray, params)}
