"""Small checkpoints in the layouts of others, and their models in NumPy."""

import json

import numpy as np
from safetensors.numpy import save_file

LLAMA = {
    "model_type": "llama",
    "vocab_size": 23,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 50.0,
    "max_position_embeddings": 20,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 23,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 20,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
"""Heads of 8 channels have frequencies in each of its three ranges."""


def head_dim(config):
    default = config["hidden_size"] // config["num_attention_heads"]
    return config.get("head_dim", default)


def llama_weights(config, seed=0):
    d, width = config["hidden_size"], head_dim(config)
    q = config["num_attention_heads"] * width
    kv = config["num_key_value_heads"] * width
    biases = "qkvo" if config.get("attention_bias") else ""
    biases = "qkv" if config["model_type"] == "qwen2" else biases
    hidden, vocab = config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": d}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, d)
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        widths = {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}
        for name, shape in widths.items():
            shapes[f"{block}self_attn.{name}_proj.weight"] = shape
            if name in biases:
                shapes[f"{block}self_attn.{name}_proj.bias"] = shape[0]
        shapes |= {
            f"{block}mlp.gate_proj.weight": (hidden, d),
            f"{block}mlp.up_proj.weight": (hidden, d),
            f"{block}mlp.down_proj.weight": (d, hidden),
            f"{block}input_layernorm.weight": d,
            f"{block}post_attention_layernorm.weight": d,
        }
    return _draw(shapes, seed)


def gpt2_weights(config, seed=0):
    d, vocab = config["n_embd"], config["vocab_size"]
    shapes = {
        "transformer.wte.weight": (vocab, d),
        "transformer.wpe.weight": (config["n_positions"], d),
        "transformer.ln_f.weight": d,
        "transformer.ln_f.bias": d,
    }
    for i in range(config["n_layer"]):
        for name, (come, to) in {
            "attn.c_attn": (d, 3 * d),
            "attn.c_proj": (d, d),
            "mlp.c_fc": (d, 4 * d),
            "mlp.c_proj": (4 * d, d),
        }.items():
            shapes[f"transformer.h.{i}.{name}.weight"] = (come, to)
            shapes[f"transformer.h.{i}.{name}.bias"] = to
        for name in ("ln_1", "ln_2"):
            shapes[f"transformer.h.{i}.{name}.weight"] = d
            shapes[f"transformer.h.{i}.{name}.bias"] = d
    return _draw(shapes, seed)


def _draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(scale=0.4, size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(folder, config, weights, shards=1):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    places = {}
    for shard in range(shards):
        part = dict(list(weights.items())[shard::shards])
        save_file(part, folder / f"part-{shard}.safetensors")
        places |= dict.fromkeys(part, f"part-{shard}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return folder


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write_gguf(
    path, config, weights, tokens=None, architecture="llama", extra=()
):
    """As llama.cpp's converter: rows of a Llama's q and k become neighbouring
    pairs. ``extra`` are calls of the writer's methods.
    """
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for method, *arguments in extra:
        getattr(writer, method)(*arguments)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        writer.add_token_merges(["a b"])
    for name, array in weights.items():
        for key, count in (("q_proj", heads), ("k_proj", kv)):
            if key in name and architecture == "llama":
                halves = array.reshape(count, 2, -1, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, heads, kv_heads, turn=lambda x: x, window=None):
    """Causal attention of one sequence, ``[T, ...]``, head by head."""
    T, d = len(q), q.shape[-1] // heads
    out = []
    for head in range(heads):
        shared = head * kv_heads // heads
        mine = turn(q[:, head * d : (head + 1) * d])
        key = turn(k[:, shared * d : (shared + 1) * d])
        scores = mine @ key.T / np.sqrt(d)
        scores[np.triu_indices(T, 1)] = -np.inf
        scores[np.tril_indices(T, -(window or T))] = -np.inf
        out.append(softmax(scores) @ v[:, shared * d : (shared + 1) * d])
    return np.concatenate(out, -1)


def rope_divisors(rope, base, half):
    """Divisors of the frequencies by scaling of the kinds linear and llama3."""
    kind, found = rope.get("rope_type", rope.get("type", "default")), []
    for index in range(half):
        wavelength = 2 * np.pi * base ** (index / half)
        divisor = rope["factor"] if kind != "default" else 1.0
        if kind == "llama3":
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            turns = rope["original_max_position_embeddings"] / wavelength
            if turns > high:
                divisor = 1.0
            elif turns >= low:
                smooth = (turns - low) / (high - low)
                divisor = 1 / ((1 - smooth) / divisor + smooth)
        found.append(divisor)
    return np.array(found)


def rotary(base, interleaved=False, rope=()):
    """Rotates pairs of complex numbers."""

    def turn(x):
        T, d = x.shape
        pairs = x.reshape(T, d // 2, 2)
        if not interleaved:
            pairs = x.reshape(T, 2, d // 2).swapaxes(1, 2)
        numbers = pairs[..., 0] + 1j * pairs[..., 1]
        angle = np.arange(T)[:, None] * base ** (-2 * np.arange(d // 2) / d)
        angle = angle / rope_divisors(dict(rope), base, d // 2)
        numbers = numbers * np.exp(1j * angle)
        pairs = np.stack([numbers.real, numbers.imag], -1)
        if not interleaved:
            pairs = pairs.swapaxes(1, 2)
        return pairs.reshape(T, d)

    return turn


def llama_logits(config, weights, ids, interleaved=False):
    """A Llama's logits of one sequence, in NumPy."""
    w = {name: np.asarray(a, np.float64) for name, a in weights.items()}
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = rope.get("rope_theta", config.get("rope_theta"))
    turn = rotary(base, interleaved, rope)
    sliding = config.get("use_sliding_window", True)
    window = config.get("sliding_window") if sliding else None
    heads = config["num_attention_heads"], config["num_key_value_heads"]

    def norm(x, name):
        mean = np.square(x).mean(-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * w[name]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        h = norm(x, block + "input_layernorm.weight")
        q, k, v = (linear(h, f"{block}self_attn.{n}_proj") for n in "qkv")
        h = attend(q, k, v, *heads, turn, window)
        x = x + linear(h, block + "self_attn.o_proj")
        h = norm(x, block + "post_attention_layernorm.weight")
        gate, up = (linear(h, f"{block}mlp.{n}_proj") for n in ("gate", "up"))
        x = x + linear(gate / (1 + np.exp(-gate)) * up, block + "mlp.down_proj")
    tied = w["model.embed_tokens.weight"]
    return norm(x, "model.norm.weight") @ w.get("lm_head.weight", tied).T


def gpt2_logits(config, weights, ids):
    """A GPT-2's logits of one sequence, in NumPy."""
    w = {
        name.removeprefix("transformer."): np.asarray(a, np.float64)
        for name, a in weights.items()
    }

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(x.var(-1, keepdims=True) + config["layer_norm_epsilon"])
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x, name):
        return x @ w[name + ".weight"] + w[name + ".bias"]

    x = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)]
    for i in range(config["n_layer"]):
        h = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        heads = (config["n_head"],) * 2
        h = attend(*np.split(h, 3, -1), *heads)
        x = x + linear(h, f"h.{i}.attn.c_proj")
        h = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T
