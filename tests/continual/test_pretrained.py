"""Weights of others: the same logits and continuation, and what is refused."""

import ml_dtypes
import numpy as np
import pytest

from nl_jax.pretrained import load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.pretrained_checks import (
    IDS,
    MISTRAL,
    QWEN2,
    check_same,
    logits_of,
    refused,
)
from tests.continual.pretrained_files import GPT2, LLAMA, LLAMA3


@pytest.mark.parametrize(
    ("change", "shards"),
    [
        ({}, 1),
        ({"tie_word_embeddings": True, "num_key_value_heads": 4}, 2),
        ({"attention_bias": True, "num_key_value_heads": 1}, 1),
    ],
)
def test_llama_from_safetensors_equals_numpy(tmp_path, change, shards):
    config = LLAMA | change
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights, shards)
    pretrained = load_pretrained(folder)
    assert pretrained.tokenizer_json is None
    check_same(pretrained, lambda ids: files.llama_logits(config, weights, ids))


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"head_dim": 8, "rope_theta": None, "rope_parameters": LLAMA3},
        MISTRAL,
        QWEN2,
    ],
    ids=["llama3", "mistral", "qwen2"],
)
def test_families_of_llama_equal_numpy(tmp_path, config):
    """Scaled positions, wider heads, windows, biases of q, k and v alone."""
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights)
    found = logits_of(load_pretrained(folder), IDS)
    expected = files.llama_logits(config, weights, IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_spellings_of_positions_and_windows_are_one_configuration(tmp_path):
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0}
    llama3 = LLAMA3 | {"type": "llama3", "attention_factor": None}
    sizes = {"max_position_embeddings": 40}
    unsaid = {
        name: value
        for name, value in llama3.items()
        if name != "original_max_position_embeddings"
    }
    context = MISTRAL | {"sliding_window": None}
    groups = [
        [
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}},
            LLAMA | {"rope_parameters": linear},
            LLAMA | {"rope_parameters": linear, "rope_scaling": linear},
        ],
        [
            LLAMA | sizes | {"rope_scaling": LLAMA3},
            LLAMA | sizes | {"rope_scaling": llama3, "rope_theta": None},
            LLAMA | sizes | {"rope_parameters": unsaid},
        ],
        [
            context,
            context | {"sliding_window": 4096},
            {k: v for k, v in context.items() if k != "sliding_window"},
        ],
        [
            QWEN2,
            QWEN2 | {"use_sliding_window": True},  # From the third block on.
            QWEN2 | {"layer_types": ["full_attention"] * 3},
            QWEN2 | {"sliding_window": None},
        ],
        [
            QWEN2 | {"use_sliding_window": True, "max_window_layers": 0},
            QWEN2
            | {"use_sliding_window": True}
            | {"layer_types": ["sliding_attention"] * 3},
        ],
    ]
    windows = []
    for group in groups:
        weights = files.llama_weights(group[0])
        found = [
            load_pretrained(files.write(tmp_path / "m", config, weights))
            for config in group
        ]
        configs = [one.model.config for one in found]
        assert configs == configs[:1] * len(group)
        windows.append(configs[0].attention.window)
    assert windows == [20, 40, 20, 20, 5]


@pytest.mark.parametrize("tied", [True, False, None])
def test_the_head_that_is_present_counts(tmp_path, tied):
    config = LLAMA | {"tie_word_embeddings": tied}
    separate = files.llama_weights(LLAMA)
    embedding = separate["model.embed_tokens.weight"]
    equal = separate | {"lm_head.weight": embedding}
    without = {k: v for k, v in separate.items() if k != "lm_head.weight"}
    for weights, expected in (
        (separate, separate["lm_head.weight"]),
        (equal, None if tied else embedding),
        (without, None),
    ):
        folder = files.write(tmp_path / "m", config, weights)
        if weights is without and tied is False:
            refused(folder, "lacks the tensor lm_head.weight")
            continue
        pretrained = load_pretrained(folder)
        assert pretrained.model.config.tie_embeddings == (expected is None)
        head = pretrained.variables["params"].get("head")
        assert (head is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(head, expected)


def test_entries_of_well_known_models_are_known(tmp_path):
    """Those that change nothing, in configurations that are often read."""
    kept = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [1, 2],
        "initializer_range": 0.02,
        "is_llama_config": True,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": "float16"},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "use_mrope": False,
        "unknown": None,
    }
    folder = files.write(tmp_path, LLAMA | kept, files.llama_weights(LLAMA))
    assert load_pretrained(folder).model.config.vocab_size == 23
    kept = {
        "attn_pdrop": 0.1,
        "n_ctx": 1024,
        "summary_proj_to_labels": True,
        "task_specific_params": {"text-generation": {"max_length": 50}},
    }
    folder = files.write(tmp_path, GPT2 | kept, files.gpt2_weights(GPT2))
    assert load_pretrained(folder).model.config.vocab_size == 23


def test_names_without_a_prefix_and_half_precision(tmp_path):
    """As a model without a head is saved; float16 and bfloat16 weights."""
    config = LLAMA | {"tie_word_embeddings": True}
    weights = files.llama_weights(config)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        low = {name: a.astype(dtype) for name, a in weights.items()}
        bare = {name.removeprefix("model."): a for name, a in low.items()}
        bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, dtype)
        folder = files.write(tmp_path / dtype.__name__, config, bare)
        found = logits_of(load_pretrained(folder), IDS)
        expected = files.llama_logits(config, low, IDS)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_equals_numpy(tmp_path, prefix):
    weights = files.gpt2_weights(GPT2)
    named = {
        name.replace("transformer.", prefix): a for name, a in weights.items()
    }
    named[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 20, 20), np.float32)
    folder = files.write(tmp_path / "m", GPT2, named)
    pretrained = load_pretrained(folder)
    check_same(pretrained, lambda ids: files.gpt2_logits(GPT2, weights, ids))


def test_a_window_is_the_context_that_is_seen(tmp_path):
    """With a window of 5 the last of 12 tokens knows of the last 5 alone."""
    config = LLAMA | {"num_hidden_layers": 1}
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights)
    pretrained = load_pretrained(folder, window=5)
    found = logits_of(pretrained, IDS)[-1]
    expected = files.llama_logits(config, weights, IDS[-5:])[-1]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="window=21 must be from 1 to 20"):
        load_pretrained(folder, window=21)
    gpt2 = files.write(tmp_path / "g", GPT2, files.gpt2_weights(GPT2))
    positions = load_pretrained(gpt2, window=5).variables["params"]
    assert positions["positions"].shape == (5, 16)


@pytest.mark.parametrize(
    "config",
    [
        GPT2,
        LLAMA,
        LLAMA | {"head_dim": 8, "rope_theta": None, "rope_parameters": LLAMA3},
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
        MISTRAL,
        QWEN2,
        QWEN2
        | {"use_sliding_window": True, "max_window_layers": 0}
        | {"sliding_window": 5, "tie_word_embeddings": True},
    ],
)
def test_transformers_own_checkpoints_give_its_own_logits(tmp_path, config):
    """In several files, as large models are saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {k: v for k, v in config.items() if v is not None}
    kind = config.pop("model_type")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **config)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor(ids[None])).logits[0].numpy()

    check_same(load_pretrained(tmp_path), logits)
